"""Who could change a file that root is about to obey: its owner, its mode, and those of every directory on the way."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator

from agent.errors import FileTrouble, Mistake
from agent.host import Files

STICKY = 0o1000
"""In such a directory (/tmp) only an entry's own owner can rename or remove it."""


DAEMON_GROUP = "holdfast"
"""What the daemon may read is of this group."""


def has_daemon_group(files: Files) -> bool:
    """Whether this host has the daemon's group; a demo has none."""
    try:
        return any(line.startswith(f"{DAEMON_GROUP}:") for line in files.read_text("/etc/group").splitlines())
    except FileTrouble:
        return False


def mistake(files: Files, path: str, owner: int) -> Mistake | None:
    """Why the runner must not obey this file or directory: somebody else than root and `owner` could change it.

    None when nobody can. A link is refused, because what it says may change between two looks. For an `owner` other
    than root only the path and its directory are looked at: who may change the rest is that user's own business.
    Raises FileTrouble.
    """
    for place in _way(files, path, whole=owner == 0):
        stat = files.stat(place)
        if stat.is_link:
            return Mistake(path, "", "is a symbolic link, so the runner refuses it", "a plain file")
        shared = stat.mode & 0o022 and not (stat.is_dir and stat.mode & STICKY)
        if stat.uid not in (0, owner) or shared:
            where = "" if place == path else f" (through {place})"
            wrong = f"others than root can write it{where}, so the runner refuses it"
            return Mistake(path, "", wrong, f"chown root {place}; chmod go-w {place}")
    return None


def _way(files: Files, path: str, *, whole: bool) -> Iterator[str]:
    """The path itself, its directory and, when `whole`, every directory above, links in directories resolved."""
    yield path
    here = files.realpath(posixpath.dirname(path))
    yield here
    while whole and here != "/":
        here = posixpath.dirname(here)
        yield here
