"""Whether an engine generates, for us or for its users: shared by every action that must know."""

from __future__ import annotations

from agent.host import Host
from agent.model import Moment, Sample
from agent.plugin import Target

CANARY_S = 20.0
"""How long one question may take: as long as the check engine.generates gives it."""


class Users:
    """The last look at an engine whose slots are all taken: the next one shows whether its users get tokens.

    silent_since: the first of the questions in a row that were taken and brought no token, None after any other.
    """

    def __init__(self) -> None:
        self.last: Sample | None = None
        self.silent_since: Moment | None = None


def generates(host: Host, target: Target, seen: Users) -> bool:
    """Whether it has just generated a token, for us, or for somebody else since the last look."""
    if target.engine is None:
        return False
    asked = host.clock.now()
    canary = target.engine.canary(host, target.settings, CANARY_S)
    if canary.tokens >= 1:
        return True
    seen.silent_since = None if canary.refused else seen.silent_since or asked
    if canary.refused:
        now = target.engine.sample(host, target.settings)
        if seen.last is not None and seen.last.generated_until(now):
            return True
        seen.last = now if now.progress else seen.last
    return False
