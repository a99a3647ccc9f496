"""Which run holds which subject: one lock per engine and one for the host.

A run on an engine holds its engine alone and shares the host; a run on the host holds the host alone. The locks die
with their process, so that a run that was killed holds nothing.

A rehearsal holds its subject like a run, and one at a time on this host; but whatever is meant seriously gets its
place: a run that asks for any subject first ends every rehearsal, asks it to, waits a bounded time, and else kills it.
That is safe at any moment, because a rehearsal touches nothing that serves.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from agent.errors import HostError
from agent.host import Host, locks, process
from agent.ledger import DIRECTORY
from agent.model import Json

LOCKS = f"{DIRECTORY}/locks"
HOST = "host"
REHEARSAL = "rehearsal"
WAIT_S = 1.0
"""A follower that only looks holds a lock for microseconds; that must not refuse a run."""
GIVE_WAY_S = 20.0
"""How long a rehearsal may clear up before it is killed: who waits is the repair of an engine that is down."""
KILL_S = 5.0
"""How long a killed process may take to be gone."""
LOOK_S = 0.05
START_TOLERANCE_S = 1.0
"""By how much a process's start may differ between two readings: the kernel counts it in ticks."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A subject that this process holds. ended: the rehearsals that had to give way for it."""

    held: tuple[locks.Lock, ...]
    ended: tuple[str, ...] = ()

    def __enter__(self) -> Claim:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for lock in self.held:
            lock.release()


def take(host: Host, subject: str, run: str) -> Claim | str:
    """Hold a subject for this run; or the id of the run that holds it ("another run" when it cannot be told).

    Every rehearsal in flight is ended first, which may take up to GIVE_WAY_S + KILL_S seconds.
    """
    ended = end_rehearsals(host)
    held = _take(host, subject, {"run": run})
    return held if isinstance(held, str) else Claim(held, ended)


def rehearse(host: Host, subject: str, run: str) -> Claim | str:
    """Hold a subject for a rehearsal; or the id of what holds it, or of the other rehearsal in flight."""
    only = locks.acquire(host, f"{LOCKS}/{REHEARSAL}", wait_s=WAIT_S)
    if only is None:
        return next((str(note["run"]) for note in rehearsals(host)), "another rehearsal")
    held = clear_up(host, subject, run)
    if isinstance(held, str):
        only.release()
        return held
    return Claim((*held.held, only))


def clear_up(host: Host, subject: str, run: str) -> Claim | str:
    """Hold a subject to clear up after a rehearsal that was cut off: it gives way as the rehearsal would have."""
    held = _take(host, subject, {"run": run, "rehearsal": True})
    return held if isinstance(held, str) else Claim(held)


def _take(host: Host, subject: str, about: dict[str, Json]) -> tuple[locks.Lock, ...] | str:
    engine = subject.removeprefix("engine:") if subject.startswith("engine:") else None
    whole = locks.acquire(host, f"{LOCKS}/{HOST}", shared=engine is not None, wait_s=WAIT_S)
    if whole is None:
        return _holder(host, None)
    if engine is None:
        whole.note({**about, **_process(host)})
        return (whole,)
    own = locks.acquire(host, f"{LOCKS}/engine-{engine}", wait_s=WAIT_S)
    if own is None:
        whole.release()
        return _holder(host, f"engine-{engine}")
    own.note({**about, **_process(host)})
    return (own, whole)


def alive(host: Host, run: str) -> bool:
    """Whether this run still holds its subject."""
    return any(note.get("run") == run for note in _notes(host))


def in_flight(host: Host) -> tuple[str, ...]:
    """The ids of all runs and rehearsals in flight."""
    return tuple(str(note["run"]) for note in _notes(host) if "run" in note)


def rehearsals(host: Host) -> tuple[dict[str, Json], ...]:
    """What every rehearsal in flight says of itself."""
    return tuple(note for note in _notes(host) if note.get("rehearsal") and "run" in note)


def stop(host: Host, run: str) -> bool:
    """Ask a run in flight to stop, with its undo. False when it is not in flight."""
    return any(_reach(host, note, locks.terminate) for note in _notes(host) if note.get("run") == run)


def end_rehearsals(host: Host) -> tuple[str, ...]:
    """End every rehearsal in flight and wait until it is gone; the ids of those that were there.

    What still lives after being killed is stuck in the kernel; whoever needs its place is told so by the lock.
    """
    found = rehearsals(host)
    ended = tuple(str(note["run"]) for note in found)
    for end, wait_s in ((locks.terminate, GIVE_WAY_S), (locks.kill, KILL_S)):
        left = [note for note in found if alive(host, str(note["run"]))]
        for note in left:
            _reach(host, note, end)
        started = host.clock.now()
        while any(alive(host, str(note["run"])) for note in left) and host.clock.now().since(started) < wait_s:
            host.clock.sleep(LOOK_S)
    return ended


def _reach(host: Host, note: dict[str, Json], act: Callable[[int], bool]) -> bool:
    """Do this to the process that wrote the note; False when it is gone and another one has its number."""
    pid, started = int(note["pid"]), float(note["started_boot_s"])
    try:
        same = abs(process.started_boot_s(host, pid) - started) < START_TOLERANCE_S
    except HostError:
        return False
    return same and act(pid)


def _process(host: Host) -> dict[str, Json]:
    pid = os.getpid()
    try:
        started = process.started_boot_s(host, pid)
    except HostError:
        started = -1.0
    return {"pid": pid, "started_boot_s": started}


def _notes(host: Host) -> list[dict[str, Json]]:
    names = [name for name in host.files.listdir(LOCKS) if name == HOST or name.startswith("engine-")]
    return [note for note in (locks.holder(host, f"{LOCKS}/{name}") for name in names) if note]


def _holder(host: Host, name: str | None) -> str:
    """Who holds the lock called `name`; None: whoever keeps the host from being held alone, or holds it."""
    notes = _notes(host) if name is None else [locks.holder(host, f"{LOCKS}/{name}")]
    return next((str(note["run"]) for note in notes if note.get("run")), "another run")
