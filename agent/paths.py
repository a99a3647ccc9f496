"""Notices that files have changed, so that the checks which read them are looked at within seconds. Never judges.

One stat for each path every two seconds, and no inotify: most of these files are replaced by a rename, which only a
watch on their folder would see, and `/var/lib/dpkg` changes hundreds of times in one upgrade; some of them, and their
folders, do not exist yet; and a watch can overflow or be lost with a mount. A stat costs some microseconds, cannot be
lost, and is at most two seconds late. What a path cannot tell (no permission) counts as unchanged: the check's own
cadence is there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from agent.errors import FileTrouble
from agent.host import Host
from agent.model import Moment

POLL_S = 2.0
"""How often every path is asked for, seconds. Sixteen paths cost 0.1 ms of CPU."""
APART_S = 3.0
"""A file that is written again and again makes a check due at most this often, seconds, and after the last time."""
SHARE = 10.0
"""A check that takes long is made due at most this many times its own duration apart."""

Key: TypeAlias = tuple[str, str]
Stamp: TypeAlias = tuple[int, int, float]


@dataclass
class _Due:
    """A check whose paths have changed, and when it was last made due by that."""

    waiting: bool = False
    at: Moment | None = None


class WatchedPaths:
    """Which checks are due because a path has changed. Asked from one thread, at every tick."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._readers: dict[str, tuple[Key, ...]] = {}
        self._seen: dict[str, Stamp | None] = {}
        self._due: dict[Key, _Due] = {}
        self._polled_at: Moment | None = None

    def watch(self, paths: Mapping[Key, Iterable[str]]) -> None:
        """Watch these paths of these checks, and none besides. What they are like now is where it begins."""
        readers: dict[str, list[Key]] = {}
        for key, each in paths.items():
            for path in each:
                readers.setdefault(path, []).append(key)
        self._readers = {path: tuple(keys) for path, keys in readers.items()}
        self._seen = {path: self._stamp(path) for path in self._readers}
        self._due = {key: self._due.get(key, _Due()) for key in paths}

    def due(self, now: Moment, took_s: Callable[[Key], float]) -> list[Key]:
        """The checks to look at now. took_s: how long one took last time, seconds."""
        if self._polled_at is not None and now.since(self._polled_at) < POLL_S:
            return []
        self._polled_at = now
        for path, keys in self._readers.items():
            stamp = self._stamp(path)
            if stamp != self._seen[path]:
                self._seen[path] = stamp
                for key in keys:
                    self._due[key].waiting = True
        return [key for key, due in self._due.items() if due.waiting and self._take(due, now, took_s(key))]

    @staticmethod
    def _take(due: _Due, now: Moment, duration_s: float) -> bool:
        if due.at is not None and now.since(due.at) < max(APART_S, SHARE * duration_s):
            return False
        due.waiting, due.at = False, now
        return True

    def _stamp(self, path: str) -> Stamp | None:
        """Inode, size and time of the path itself; None while it is not there; as before where that cannot be told."""
        try:
            seen = self._host.files.stat(path)
        except FileTrouble as trouble:
            return None if trouble.kind == "missing" else self._seen.get(path)
        return (seen.inode, seen.size, seen.mtime)
