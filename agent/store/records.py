"""What the store hands out besides the nouns; `agent.store.codec` makes JSON text of them.

Everything here is pure: no database, no clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from agent.model import Alert, Moment, Status, _Word
from agent.store.codec import from_text, to_text

__all__ = [
    "Attempt",
    "Dispatch",
    "Edit",
    "OutboxView",
    "Queued",
    "ReceiverHealth",
    "RowState",
    "StatusChange",
    "Told",
    "elapsed_s",
    "from_text",
    "to_text",
]


def elapsed_s(now: Moment, then: Moment) -> float:
    """Seconds from `then` to `now`; infinite when the wall clock went back over a boot.

    A wait that can no longer be measured is over: better one attempt too early than a page that waits for a
    clock to catch up.
    """
    if now.boot_id != then.boot_id and now.wall < then.wall:
        return float("inf")
    return now.since(then)


@dataclass(frozen=True, slots=True)
class StatusChange:
    """A check's answer about one subject became another one. `at` is Unix seconds."""

    check: str
    subject: str
    status: Status
    summary: str
    at: float


class RowState(_Word):
    """What became of one alert for one receiver."""

    WAITING = "waiting"
    SENT = "sent"
    DEAD = "dead"
    """The receiver will never take it."""
    MERGED = "merged"
    """Another row, `merged_into`, tells what this one would have told."""
    MOOT = "moot"
    """Nothing to tell: the receiver never heard of what this acknowledges or resolves."""


class Told(_Word):
    """What one receiver knows about one key."""

    CLOSED = "closed"
    """Nothing is open there (also: it never heard of the key)."""
    OPEN = "open"
    """It took a trigger and no resolve since."""
    MAYBE = "maybe"
    """It may have taken a trigger: a resolve must follow to be sure."""
    MISSED = "missed"
    """It refused the trigger for good and knows nothing."""


@dataclass(frozen=True, slots=True)
class Queued:
    """One alert for one receiver in the outbox.

    id: grows, so it is the order of the states. alert: what will be sent, which may tell several rows at once.
    alert_id: the alert that was queued. attempts: attempts begun. tried: when the last one began. wait_s: how
    long to wait after `tried`. uncertain: an attempt may have been taken. trying: an attempt is under way.
    """

    id: int
    receiver: str
    key: str
    alert_id: str
    alert: Alert
    state: RowState
    queued: Moment
    attempts: int = 0
    tried: Moment | None = None
    wait_s: float = 0.0
    uncertain: bool = False
    trying: bool = False
    merged_into: int | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class OutboxView:
    """Everything `agent.pager.outbox.plan` needs.

    rows: every waiting row, every other row with the same alert, and what those were merged into; in order.
    told: what each receiver knows of each key, by (receiver, key); missing is CLOSED.
    """

    rows: tuple[Queued, ...] = ()
    told: Mapping[tuple[str, str], Told] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Edit:
    """A row that will tell more than its own alert: what it now says, and the rows it stands for."""

    row: int
    alert: Alert
    merged: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Attempt:
    """One alert to hand to one receiver now. `number` is 1 for the first attempt."""

    row: int
    receiver: str
    alert: Alert
    number: int


@dataclass(frozen=True, slots=True)
class Dispatch:
    """What to do with the outbox now. Store it with `Store.begin` before the first attempt is made.

    moot: rows with nothing to tell, with the reason. wake_after_s: when to plan again at the latest, None when
    only a new alert or the end of an attempt changes anything.
    """

    attempts: tuple[Attempt, ...] = ()
    edits: tuple[Edit, ...] = ()
    moot: tuple[tuple[int, str], ...] = ()
    wake_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class ReceiverHealth:
    """How one receiver does.

    failing_since: the first failure after the last success, None while it works. refused: it answered that it
    will never take the last alert. dead: alerts it refused for good, ever. sent: alerts it took, ever.
    """

    name: str
    failing_since: Moment | None = None
    reason: str = ""
    refused: bool = False
    dead: int = 0
    sent: int = 0
    last_sent: Moment | None = None
