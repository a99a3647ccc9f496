"""How a path is mounted for the host as a whole, whatever the walls of our own service make of it.

`ProtectSystem=strict` makes every file system read-only in our own mount namespace, so statvfs says nothing about the
host. PID 1 lives in the host's namespace, and its list of mounts is readable by everybody.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from agent.errors import FileTrouble
from agent.host import Host

MOUNTS = "/proc/1/mountinfo"
LIMIT = 8 << 20
"""A host full of containers has thousands of mounts of 200 bytes each."""


def read_only(host: Host, path: str) -> bool | None:
    """Whether PID 1 sees the path read-only, by its mount or by its file system; None when that cannot be told.

    Raises FileTrouble(missing) when the path does not exist.
    """
    found = _mount(host, path)
    return None if found is None else "ro" in (*found.options, *found.super_options)


def device(host: Host, path: str) -> str | None:
    """The device of the file system that holds the path, "254:0"; None when that cannot be told.

    Raises FileTrouble(missing) when the path does not exist.
    """
    found = _mount(host, path)
    return None if found is None else found.device


@dataclass(frozen=True, slots=True)
class _Mount:
    device: str
    options: tuple[str, ...]
    super_options: tuple[str, ...]


def _mount(host: Host, path: str) -> _Mount | None:
    """The mount that holds the path, as PID 1 sees it. The format is that of proc_pid_mountinfo(5)."""
    real = host.files.realpath(path)
    try:
        lines = host.files.read_text(MOUNTS, LIMIT).splitlines()
    except FileTrouble:
        return None
    found: tuple[str, _Mount] | None = None
    for line in lines:
        mounted, _, source = line.partition(" - ")
        fields, about = mounted.split(), source.split()
        if len(fields) < 6 or len(about) < 3:
            continue
        point = _plain(fields[4])
        # The deepest mount holds the path; of several on one point the last one covers the others.
        if _below(real, point) and (found is None or len(point) >= len(found[0])):
            found = (point, _Mount(fields[2], tuple(fields[5].split(",")), tuple(about[2].split(","))))
    return None if found is None else found[1]


def _below(path: str, point: str) -> bool:
    return path == point or path.startswith(point.rstrip("/") + "/")


def _plain(escaped: str) -> str:
    r"""A mount point with its blanks: the kernel writes them as \040."""
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), escaped)
