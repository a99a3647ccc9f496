"""Which run holds which subject: one lock per engine and one for the host.

A run on an engine holds its engine alone and shares the host; a run on the host holds the host alone. The locks die
with their process, so that a run that was killed holds nothing.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from types import TracebackType

from agent.errors import HostError
from agent.host import Host, locks, process
from agent.ledger import DIRECTORY
from agent.model import Json

LOCKS = f"{DIRECTORY}/locks"
HOST = "host"
WAIT_S = 1.0
"""A follower that only looks holds a lock for microseconds; that must not refuse a run."""
START_TOLERANCE_S = 1.0
"""By how much a process's start may differ between two readings: the kernel counts it in ticks."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A subject that this process holds."""

    held: tuple[locks.Lock, ...]

    def __enter__(self) -> Claim:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for lock in self.held:
            lock.release()


def take(host: Host, subject: str, run: str) -> Claim | str:
    """Hold a subject for this run; or the id of the run that holds it ("another run" when it cannot be told)."""
    engine = subject.removeprefix("engine:") if subject.startswith("engine:") else None
    whole = locks.acquire(host, f"{LOCKS}/{HOST}", shared=engine is not None, wait_s=WAIT_S)
    if whole is None:
        return _holder(host, None)
    if engine is None:
        whole.note(_note(host, run))
        return Claim((whole,))
    own = locks.acquire(host, f"{LOCKS}/engine-{engine}", wait_s=WAIT_S)
    if own is None:
        whole.release()
        return _holder(host, f"engine-{engine}")
    own.note(_note(host, run))
    return Claim((own, whole))


def alive(host: Host, run: str) -> bool:
    """Whether this run still holds its subject."""
    return any(note.get("run") == run for note in _notes(host))


def in_flight(host: Host) -> tuple[str, ...]:
    """The ids of all runs in flight."""
    return tuple(str(note["run"]) for note in _notes(host) if "run" in note)


def stop(host: Host, run: str) -> bool:
    """Ask a run in flight to stop, with its undo. False when it is not in flight."""
    for note in _notes(host):
        if note.get("run") != run:
            continue
        pid, started = int(note["pid"]), float(note["started_boot_s"])
        try:
            same = abs(process.started_boot_s(host, pid) - started) < START_TOLERANCE_S
        except HostError:
            return False
        return same and locks.terminate(pid)
    return False


def _note(host: Host, run: str) -> dict[str, Json]:
    pid = os.getpid()
    try:
        started = process.started_boot_s(host, pid)
    except HostError:
        started = -1.0
    return {"run": run, "pid": pid, "started_boot_s": started}


def _notes(host: Host) -> list[dict[str, Json]]:
    names = [name for name in host.files.listdir(LOCKS) if name == HOST or name.startswith("engine-")]
    return [note for note in (locks.holder(host, f"{LOCKS}/{name}") for name in names) if note]


def _holder(host: Host, name: str | None) -> str:
    """Who holds the lock called `name`; None: whoever keeps the host from being held alone, or holds it."""
    notes = _notes(host) if name is None else [locks.holder(host, f"{LOCKS}/{name}")]
    return next((str(note["run"]) for note in notes if note.get("run")), "another run")
