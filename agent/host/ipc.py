"""Unix sockets that carry one JSON object per line, with limits in both directions.

Whoever is at the other end may be slow, gone or hostile: a line that is too long, a reader that never reads and a
peer that hangs up are ordinary results here, not surprises.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import stat as modes
import struct
import time

from agent.errors import DaemonUnreachable, HostError, Unreachable
from agent.host import Peer

LINE_LIMIT = 64 << 10
"""Bytes in one line, unless a caller says otherwise."""
SEND_TIMEOUT_S = 5.0
"""How long a peer may take to make room for one line; a follower that stopped reading must not hold up a run."""
_BACKLOG = 64
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid (unix(7))


class Lines:
    """One end of a connected Unix stream socket, read and written line by line. Not shared between threads."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._socket.setblocking(False)
        self._unread = bytearray()
        self._ended = False
        self._gone = False

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, line: bytes, *, timeout_s: float = SEND_TIMEOUT_S) -> bool:
        """Send one line (a missing line break is added). False when the peer is gone or does not read.

        After the first False nothing more is sent: half a line may have gone out.
        """
        if self._gone:
            return False
        data = memoryview(line if line.endswith(b"\n") else line + b"\n")
        deadline = time.monotonic() + timeout_s
        while data:
            try:
                data = data[self._socket.send(data, socket.MSG_NOSIGNAL) :]
            except BlockingIOError:
                if not _ready(self._socket, select.POLLOUT, deadline):
                    self._gone = True
                    return False
            except OSError:
                self._gone = True
                return False
        return True

    def receive(self, timeout_s: float, limit: int = LINE_LIMIT) -> bytes | None:
        """The next line without its line break; None when the peer has closed (a line torn off by that is dropped).

        Raises Unreachable: timeout when no complete line came within `timeout_s`, too-large above `limit` bytes.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            line, found, rest = self._unread.partition(b"\n")
            if len(line) > limit:
                raise Unreachable(f"the peer sent a line of more than {limit} bytes", kind="too-large")
            if found:
                self._unread = rest
                return bytes(line)
            if self._ended:
                return None
            if not _ready(self._socket, select.POLLIN, deadline):
                raise Unreachable(f"the peer sent no complete line within {timeout_s:g} s", kind="timeout")
            try:
                chunk = self._socket.recv(1 << 16)
            except BlockingIOError:
                continue
            except OSError:  # reset by the peer
                chunk = b""
            self._ended = not chunk
            self._unread += chunk

    def send_descriptor(self, line: bytes, descriptor: int) -> bool:
        """Send one short line with an open descriptor. False when the peer is gone or does not read."""
        data = line if line.endswith(b"\n") else line + b"\n"
        try:
            return socket.send_fds(self._socket, [data], [descriptor], socket.MSG_NOSIGNAL) == len(data)
        except OSError:
            return False

    def receive_descriptor(self, timeout_s: float) -> tuple[bytes, int | None]:
        """One short line and the descriptor that came with it, None when none did. The caller closes it.

        Raises Unreachable(timeout), DaemonUnreachable when the peer closed.
        """
        if not _ready(self._socket, select.POLLIN, time.monotonic() + timeout_s):
            raise Unreachable(f"the peer sent nothing within {timeout_s:g} s", kind="timeout")
        data, descriptors, _, _ = socket.recv_fds(self._socket, LINE_LIMIT, 1)
        if not data:
            raise DaemonUnreachable("the peer closed the connection without an answer")
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        return data.partition(b"\n")[0], descriptors[0] if descriptors else None

    def peer(self) -> Peer:
        """Who is at the other end, as the kernel saw it when it connected (SO_PEERCRED). Raises HostError."""
        try:
            raw = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        except OSError as error:
            raise HostError(f"the peer's identity cannot be read: {error}", code="peer-unknown") from error
        return Peer(*_CREDENTIALS.unpack(raw))

    def fileno(self) -> int:
        """The descriptor, to hand to a child or a selector."""
        return self._socket.fileno()

    def close(self) -> None:
        """Hang up."""
        self._socket.close()


class RealIpc:
    """The `Ipc` primitive."""

    def connect(self, path: str, *, timeout_s: float) -> Lines:
        """See `connect`."""
        return connect(path, timeout_s)


def connect(path: str, timeout_s: float) -> Lines:
    """A connection to the Unix socket at `path`. Raises DaemonUnreachable with what is wrong and what to do."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    connection.settimeout(max(0.001, timeout_s))
    try:
        connection.connect(path)
    except OSError as error:
        connection.close()
        if error.errno in (errno.EACCES, errno.EPERM):
            raise DaemonUnreachable(
                f"{path}: you may not connect", hint="use sudo, or join the group holdfast to read", where=path
            ) from error
        if isinstance(error, (TimeoutError, BlockingIOError)):  # EAGAIN: its backlog is full
            raise DaemonUnreachable(f"{path}: it takes no connection within {timeout_s:g} s", where=path) from error
        words = os.strerror(error.errno) if error.errno else str(error)
        raise DaemonUnreachable(f"{path}: {words}", hint="is the service running?", where=path) from error
    return Lines(connection)


def from_fd(descriptor: int) -> Lines:
    """The socket that systemd hands over (Accept=yes: on fd 0). Raises HostError when it is not a Unix socket."""
    try:
        connection = socket.socket(fileno=os.dup(descriptor))
    except OSError as error:
        raise HostError(f"fd {descriptor} is not a socket: {error}", code="not-a-socket") from error
    if connection.family != socket.AF_UNIX:
        connection.close()
        raise HostError(f"fd {descriptor} is not a Unix socket", code="not-a-socket")
    return Lines(connection)


def pair() -> tuple[Lines, Lines]:
    """Two connected ends, one of them to hand to a child process (the demo's runner, tests)."""
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    return Lines(one), Lines(other)


class Server:
    """A listening Unix socket, for `group` only. A socket file that a dead process left is replaced.

    Raises HostError when the path cannot be used, also when someone else is still listening there.
    """

    def __init__(self, path: str, group: str | None = None, mode: int = 0o660) -> None:
        self._path = path
        self._inode = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            _make_room(path)
            before = os.umask(0o177)  # nobody else can connect before owner and mode are right
            try:
                self._socket.bind(path)
            finally:
                os.umask(before)
            self._inode = os.stat(path).st_ino
            if group is not None:
                os.chown(path, -1, _gid(group))
            os.chmod(path, mode)
            self._socket.listen(_BACKLOG)
            self._socket.setblocking(False)
        except OSError as error:
            self.close()
            raise HostError(
                f"{path}: cannot listen: {error.strerror or error}", code="cannot-listen", where=path
            ) from error
        except HostError:
            self.close()
            raise

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def accept(self, timeout_s: float) -> Lines | None:
        """The next connection, None when none came in time or it was gone before it was taken."""
        if not _ready(self._socket, select.POLLIN, time.monotonic() + timeout_s):
            return None
        try:
            connection, _ = self._socket.accept()
        except OSError:
            return None
        return Lines(connection)

    def fileno(self) -> int:
        """The descriptor, for a selector."""
        return self._socket.fileno()

    def close(self) -> None:
        """Stop listening and remove the socket file, if it is still ours."""
        self._socket.close()
        with contextlib.suppress(OSError):
            if self._inode and os.stat(self._path).st_ino == self._inode:
                os.unlink(self._path)
        self._inode = 0


def _make_room(path: str) -> None:
    """Remove a socket file that nobody listens on."""
    try:
        if not modes.S_ISSOCK(os.lstat(path).st_mode):
            raise HostError(f"{path} is in the way and is not a socket", code="cannot-listen", where=path)
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except OSError:
            pass
    raise HostError(f"{path}: someone else is listening there", code="cannot-listen", where=path)


def _gid(group: str) -> int:
    import grp  # noqa: PLC0415 - only a server needs it

    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise HostError(f"there is no group {group!r}", code="cannot-listen") from None


def _ready(end: socket.socket, event: int, deadline: float) -> bool:
    """Whether the socket became ready (or broke, which the next call tells) by the deadline."""
    poll = select.poll()
    poll.register(end.fileno(), event)
    return bool(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))
