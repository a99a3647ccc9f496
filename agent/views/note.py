"""What the daemon says of itself for whoever reads the store: that it lives, since when, and with which settings.

The daemon stores it (`store.set(NOTE, note.as_json())`) at its start, after each reload, every `NOTE_EVERY_S` and,
with `stopped`, when it ends cleanly. `holdfast status` and `doctor` read it, with the daemon up or down.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from agent.model import Json, Moment

if TYPE_CHECKING:  # `holdfast status` reads a note without paying for the configuration's schema
    from agent.config import Config

NOTE = "daemon"
"""The name the note is stored under."""
NOTE_EVERY_S = 10.0
"""How often the daemon notes that it lives."""
TOKENS = "tokens"
"""The name under which it is stored when each engine was last proven to generate a token: name to Unix seconds."""
REHEARSALS = "rehearsals"
"""The name under which it is stored what is said of each rehearsal that is possible here: a list of lines."""
FRESH_S = 45.0
"""Four notes missed are no hiccup any more: it is down, or stuck."""


@dataclass(frozen=True, slots=True)
class DaemonNote:
    """What the daemon noted last; None for what it never noted.

    at, started_at: Unix seconds. mode: the autonomy. configured: whether it has anything to watch or to page.
    receivers: their names. heartbeat: whether one is configured. problem: what is wrong with its configuration or
    its memory, "" when nothing is. stopped: it ended cleanly.
    """

    at: float | None = None
    pid: int | None = None
    boot_id: str = ""
    started_at: float | None = None
    stopped: bool = False
    mode: str | None = None
    configured: bool | None = None
    receivers: tuple[str, ...] = ()
    heartbeat: bool | None = None
    problem: str = ""
    loop_lag_s: float | None = None

    def alive(self, now: Moment) -> bool:
        """Whether it lives, as far as its last note tells."""
        return not self.stopped and self.at is not None and self.boot_id == now.boot_id and now.wall - self.at < FRESH_S

    def as_json(self) -> Json:
        """The note as the store keeps it."""
        return {**asdict(self), "receivers": list(self.receivers)}


def note_of(settings: Config, now: Moment, started_at: Moment, problem: str, loop_lag_s: float) -> DaemonNote:
    """The note of this moment. problem: what is wrong with the daemon itself, "" when nothing is."""
    return DaemonNote(
        at=now.wall,
        pid=os.getpid(),
        boot_id=now.boot_id,
        started_at=started_at.wall,
        mode=settings.autonomy.mode.value,
        configured=settings.configured,
        receivers=tuple(receiver.name for receiver in settings.receivers),
        heartbeat=settings.heartbeat is not None,
        problem=problem,
        loop_lag_s=round(loop_lag_s, 3),
    )


def daemon_note(raw: Json) -> DaemonNote:
    """The note from what the store holds; anything unexpected in it is left out."""
    if not isinstance(raw, dict):
        return DaemonNote()

    def of(name: str, *kinds: type) -> Json:
        value = raw.get(name)
        return value if isinstance(value, kinds) else None

    return DaemonNote(
        at=of("at", int, float),
        pid=of("pid", int),
        boot_id=of("boot_id", str) or "",
        started_at=of("started_at", int, float),
        stopped=bool(raw.get("stopped")),
        mode=of("mode", str),
        configured=of("configured", bool),
        receivers=tuple(str(name) for name in of("receivers", list) or ()),
        heartbeat=of("heartbeat", bool),
        problem=of("problem", str) or "",
        loop_lag_s=of("loop_lag_s", int, float),
    )
