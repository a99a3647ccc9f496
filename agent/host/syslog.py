"""One line to the system's log, for what has no journal of its own: it never waits, and it never fails.

libc's syslog() blocks while the log's socket is full; under apt's lock that would hold up every package operation.
"""

from __future__ import annotations

import contextlib
import os
import socket

SOCKET = "/dev/log"
WARNING = 3 * 8 + 4
"""Facility daemon, severity warning (syslog(3))."""
_LONGEST = 1000


def warn(tag: str, text: str, path: str = SOCKET) -> None:
    """Log a warning; where no log listens, or it is full, nothing happens."""
    line = " ".join(text.split())[:_LONGEST]
    with contextlib.suppress(OSError, ValueError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.setblocking(False)
        log.sendto(f"<{WARNING}>{tag}[{os.getpid()}]: {line}".encode("utf-8", "replace"), path)
