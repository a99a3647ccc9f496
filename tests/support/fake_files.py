"""Files in memory, and fixture trees that nobody can write to."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from agent.errors import FileTrouble
from agent.host import Space, Stat
from agent.host.files import RealFiles


@dataclass(frozen=True)
class File:
    """A file with more than its text."""

    text: str = ""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: float = 0.0
    group: str | None = None


@dataclass(frozen=True)
class Link:
    """A symbolic link."""

    target: str


@dataclass(frozen=True)
class Special:
    """A FIFO, a device, a socket: there, and not to be read."""


@dataclass(frozen=True)
class Directory:
    """An empty directory; those on the way to a file need not be named."""

    mode: int = 0o755
    uid: int = 0
    group: str | None = None


Entry: TypeAlias = str | File | Link | Special | Directory | FileTrouble


class FakeFiles:
    """The `Files` primitive in memory. What is not named does not exist; a FileTrouble given as content is raised.

    full: whether the disk is full (every write fails). written: every path written, in order.
    """

    def __init__(self, files: Mapping[str, Entry] | None = None, spaces: Mapping[str, Space] | None = None) -> None:
        self.root = Path("/")
        self.entries: dict[str, Entry] = dict(files or {})
        self.spaces = dict(spaces or {})
        self.full = False
        self.written: list[str] = []

    def read_text(self, path: str, limit: int = 1 << 20) -> str:
        entry = self._entry(path)
        if isinstance(entry, FileTrouble):
            raise entry
        if isinstance(entry, Directory | Special):
            raise FileTrouble(f"{path} is not a regular file", kind="other", where=path)
        text = entry.text if isinstance(entry, File) else str(entry)
        if len(text.encode("utf-8", "replace")) > limit:
            raise FileTrouble(f"{path} is larger than {limit} bytes", kind="large", where=path)
        return text

    def exists(self, path: str) -> bool:
        try:
            entry = self._entry(path)
        except FileTrouble as trouble:
            if trouble.kind == "missing":
                return False
            raise
        return not (isinstance(entry, FileTrouble) and entry.kind == "missing")

    def listdir(self, path: str) -> list[str]:
        entry = self._entry(path)
        if isinstance(entry, FileTrouble):
            raise entry
        if not isinstance(entry, Directory):
            raise _missing(path, "Not a directory")
        inside = self._resolve(path).rstrip("/") + "/"
        return sorted({name[len(inside) :].split("/")[0] for name in self.entries if name.startswith(inside)} - {""})

    def readlink(self, path: str) -> str:
        entry = self._entry(path, follow=False)
        if not isinstance(entry, Link):
            raise FileTrouble(f"{path}: Invalid argument", kind="other", where=path)
        return entry.target

    def realpath(self, path: str) -> str:
        self._entry(path)
        return self._resolve(path)

    def stat(self, path: str) -> Stat:
        entry = self._entry(path, follow=False)
        if isinstance(entry, FileTrouble):
            raise entry
        known = entry if isinstance(entry, File) else File(entry if isinstance(entry, str) else "")
        if isinstance(entry, Directory):
            known = File(mode=entry.mode, uid=entry.uid)
        inode = sorted(self.entries).index(path) + 1 if path in self.entries else 0
        return Stat(
            size=len(known.text.encode()), mode=known.mode, uid=known.uid, gid=known.gid, mtime=known.mtime,
            inode=inode, is_dir=isinstance(entry, Directory), is_link=isinstance(entry, Link),
        )  # fmt: skip

    def space(self, path: str) -> Space:
        if path not in self.spaces:
            raise AssertionError(f"the fake host does not know the space of {path}")
        return self.spaces[path]

    def write_atomic(self, path: str, text: str, mode: int = 0o644, *, group: str | None = None) -> None:
        self._writable(path)
        self.entries[path] = File(text, mode, group=group)

    def append_durable(self, path: str, line: str, mode: int = 0o640, *, group: str | None = None) -> None:
        self._writable(path)
        line = line.removesuffix("\n")
        if "\n" in line:
            raise FileTrouble(f"a line for {path} holds a line break", kind="malformed", where=path)
        entry = self.entries.get(path, File("", mode, group=group))
        known = File(entry) if isinstance(entry, str) else entry
        if not isinstance(known, File):
            raise FileTrouble(f"{path} is not a regular file", kind="other", where=path)
        torn = "\n" if known.text and not known.text.endswith("\n") else ""
        self.entries[path] = replace(known, text=f"{known.text}{torn}{line}\n")

    def remove(self, path: str) -> None:
        self.entries.pop(path, None)

    def mkdir(self, path: str, mode: int = 0o755, *, group: str | None = None) -> None:
        if not self.exists(path):
            self.entries[path] = Directory(mode, group=group)

    def _writable(self, path: str) -> None:
        if self.full:
            raise FileTrouble(f"{path}: No space left on device", kind="other", where=path)
        if not self.exists(posixpath.dirname(path)):
            self.mkdir(posixpath.dirname(path))
        self.written.append(path)

    def _entry(self, path: str, *, follow: bool = True) -> Entry:
        folder, name = posixpath.split(posixpath.normpath(path))
        place = self._resolve(path) if follow else posixpath.join(self._resolve(folder), name)
        if place in self.entries:
            return self.entries[place]
        if place == "/" or any(name.startswith(place + "/") for name in self.entries):
            return Directory()
        raise _missing(path)

    def _resolve(self, path: str) -> str:
        if not path.startswith("/"):
            raise FileTrouble(f"{path!r} is not an absolute path", kind="other", where=path)
        place = "/"
        for part in posixpath.normpath(path).split("/")[1:]:
            place = posixpath.join(place, part)
            for _ in range(40):
                entry = self.entries.get(place)
                if not isinstance(entry, Link):
                    break
                place = self._resolve(posixpath.normpath(posixpath.join(posixpath.dirname(place), entry.target)))
        return place


class TreeFiles(RealFiles):
    """A recorded tree: read like the host it came from, never written."""

    def write_atomic(self, path: str, text: str, mode: int = 0o644, *, group: str | None = None) -> None:
        raise AssertionError(f"a fixture is never written: {path}")

    def append_durable(self, path: str, line: str, mode: int = 0o640, *, group: str | None = None) -> None:
        raise AssertionError(f"a fixture is never written: {path}")

    def remove(self, path: str) -> None:
        raise AssertionError(f"a fixture is never written: {path}")

    def mkdir(self, path: str, mode: int = 0o755, *, group: str | None = None) -> None:
        raise AssertionError(f"a fixture is never written: {path}")


def _missing(path: str, words: str = "No such file or directory") -> FileTrouble:
    return FileTrouble(f"{path}: {words}", kind="missing", where=path)
