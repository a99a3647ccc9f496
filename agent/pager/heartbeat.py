"""The dead man's switch: someone outside this host notices when Holdfast falls silent.

It beats only after a complete round whose alerts were told (`outbox.untold` is 0): a watcher that cannot page is as
good as dead, and silence is the only way left to say so.
"""

from __future__ import annotations

from dataclasses import dataclass

from agent.config import HeartbeatSettings
from agent.errors import Unreachable
from agent.host import Host
from agent.model import Moment
from agent.store import elapsed_s

TIMEOUT_S = 10.0
"""How long one beat may take in all, seconds."""


@dataclass(frozen=True, slots=True)
class Pulse:
    """When it last beat, and what was wrong with the last beat ("" when nothing was)."""

    at: Moment | None = None
    failure: str = ""


def due(pulse: Pulse, settings: HeartbeatSettings | None, now: Moment, *, round_complete: bool, untold: int) -> bool:
    """Whether to beat now: after a complete round with nothing untold, at most every `every_s`."""
    if settings is None or not round_complete or untold:
        return False
    return pulse.at is None or elapsed_s(now, pulse.at) >= settings.every_s


def beat(host: Host, settings: HeartbeatSettings) -> str:
    """Fetch the address once, in a worker. Returns what was wrong, "" when nothing was.

    The words hold no path, because the path is the secret of most such services.
    """
    try:
        reply = host.http("GET", settings.url, timeout_s=TIMEOUT_S, limit=64 << 10)
    except Unreachable as error:
        return error.message
    return "" if 200 <= reply.status < 300 else f"answered {reply.status}"


def noted(pulse: Pulse, now: Moment, failure: str) -> tuple[Pulse, str]:
    """The pulse after a beat, and the line to log: only when it began or ceased to fail, else ""."""
    line = ""
    if failure and not pulse.failure:
        line = f"the heartbeat fails: {failure}"
    elif pulse.failure and not failure:
        line = "the heartbeat works again"
    return Pulse(now, failure), line
