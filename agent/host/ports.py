"""Which TCP ports are listened on, from /proc: nothing is opened to find out."""

from __future__ import annotations

from agent.errors import FileTrouble, HostError
from agent.host import Host

_LISTENING = "0A"
"""net/tcp_states.h: TCP_LISTEN."""


def listening(host: Host) -> frozenset[int]:
    """Every port that somebody listens on, at whatever address. Raises FileTrouble."""
    found: set[int] = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = host.files.read_text(table).splitlines()[1:]
        except FileTrouble as trouble:
            if trouble.kind != "missing":  # a kernel without IPv6
                raise
            continue
        rows = (line.split() for line in lines)
        found.update(int(row[1].rpartition(":")[2], 16) for row in rows if len(row) > 3 and row[3] == _LISTENING)
    return frozenset(found)


def spare(host: Host, first: int, count: int = 100) -> int:
    """The first of `count` ports that nobody listens on now. Raises HostError when all are taken, and FileTrouble."""
    taken = listening(host)
    for port in range(first, first + count):
        if port not in taken:
            return port
    raise HostError(f"every port from {first} to {first + count - 1} is taken")
