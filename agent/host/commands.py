"""Running programs: argv only, a clean environment, bounded output, and a deadline that always holds.

Python's own `subprocess.run(timeout=)` kills and then waits without end; a program in D state would hang the caller
for good. Here nothing ever waits without a limit: a program that does not die is left on a list and reaped later.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO

from agent.errors import CommandFailed
from agent.host import Completed

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
TERM_GRACE_S = 2.0
"""How long a program may take to end after SIGTERM."""
KILL_GRACE_S = 1.0
"""How long SIGKILL may take to show; longer means D state."""
STOP_POLL_S = 0.2
"""How often a program that may be stopped is asked about."""
_CHUNK = 1 << 16


class RealCommands:
    """The `RunCommand` primitive."""

    def __init__(self) -> None:
        self._left: list[subprocess.Popen[bytes]] = []
        self._lock = threading.Lock()

    def __call__(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float,
        user: str | None = None,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        limit: int = 1 << 20,
        stopping: Callable[[], bool] | None = None,
    ) -> Completed:
        """Run to the end and return, whatever its exit status.

        limit: bytes kept of stdout and of stderr each; what comes after is read and dropped.
        Raises CommandFailed with code command-not-found, command-not-started, command-timeout or command-stopped.
        """
        self.reap()
        started = time.monotonic()
        process = _start(argv, user, cwd, {"PATH": PATH, "LC_ALL": "C", **(env or {})})
        try:
            with _Watch(process, limit) as watch:
                if not watch.until(started + timeout_s, stopping):
                    self._end(process, watch)
                    if time.monotonic() < started + timeout_s:
                        raise CommandFailed(f"{argv[0]} was stopped", where=argv[0], code="command-stopped")
                    raise CommandFailed(
                        f"{argv[0]} did not end within {timeout_s:g} s", where=argv[0], code="command-timeout"
                    )
                return Completed(
                    argv=tuple(argv),
                    rc=process.returncode,
                    stdout=watch.text(0),
                    stderr=watch.text(1),
                    duration_s=time.monotonic() - started,
                    truncated=watch.truncated,
                )
        except OSError as error:  # out of file descriptors
            with self._lock:
                self._left.append(process)
            raise CommandFailed(f"{argv[0]}: lost sight of it: {error}", where=argv[0], code="command-lost") from error
        finally:
            for stream in (process.stdout, process.stderr):
                if stream is not None:
                    stream.close()

    def reap(self) -> int:
        """Collect programs that were left to die; how many still have not. Never blocks."""
        with self._lock:
            self._left = [process for process in self._left if process.poll() is None]
            return len(self._left)

    def _end(self, process: subprocess.Popen[bytes], watch: _Watch) -> None:
        """SIGTERM, then SIGKILL to the whole group, each with its grace; what survives goes on the list."""
        for number, grace in ((signal.SIGTERM, TERM_GRACE_S), (signal.SIGKILL, KILL_GRACE_S)):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, number)
            if watch.until(time.monotonic() + grace) and number == signal.SIGTERM:
                # The leader is gone; what it started may have ignored SIGTERM.
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
                return
        if process.poll() is None:
            with self._lock:
                self._left.append(process)


def _start(argv: Sequence[str], user: str | None, cwd: str | None, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    if isinstance(argv, str) or not argv:
        raise CommandFailed("a command is a list of words", code="command-not-started")
    try:
        uid, gid = _identity(user)
        return subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            cwd=cwd,
            env=dict(env),
            start_new_session=True,
            user=uid,
            group=gid,
            extra_groups=None if uid is None else [],
        )
    except FileNotFoundError as error:
        missing = cwd if cwd is not None and error.filename == cwd else argv[0]
        raise CommandFailed(f"{missing}: not found", where=argv[0], code="command-not-found") from error
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise CommandFailed(
            f"{argv[0]} could not be started: {error}", where=argv[0], code="command-not-started"
        ) from error


def _identity(user: str | None) -> tuple[int | None, int | None]:
    """The uid and gid to switch to, None when we are that user already."""
    if user is None:
        return None, None
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise ValueError(f"there is no user {user!r}") from None
    if entry.pw_uid == os.geteuid() != 0:
        return None, None
    return entry.pw_uid, entry.pw_gid


class _Watch:
    """Reads a program's output while waiting for its end, never beyond a deadline."""

    def __init__(self, process: subprocess.Popen[bytes], limit: int) -> None:
        self._process = process
        self._limit = limit
        self.truncated = False
        self._poll = select.poll()
        self._kept = (bytearray(), bytearray())
        self._streams: dict[int, bytearray] = {}
        for stream, kept in zip((process.stdout, process.stderr), self._kept, strict=True):
            self._add(stream, kept)
        # The program's own end counts, not the end of its output: what it started may keep the pipe open.
        self._pidfd = os.pidfd_open(process.pid)
        self._poll.register(self._pidfd, select.POLLIN)

    def __enter__(self) -> _Watch:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._pidfd)

    def until(self, deadline: float, stopping: Callable[[], bool] | None = None) -> bool:
        """Read until the program ends; False when it had not at `deadline` (monotonic seconds), or is to be stopped."""
        while True:
            left = deadline - time.monotonic()
            if stopping is not None and stopping():
                return False
            pause = left if stopping is None else min(left, STOP_POLL_S)
            ready = [descriptor for descriptor, _ in self._poll.poll(max(0.0, pause) * 1000)]
            for descriptor in ready:
                if descriptor != self._pidfd:
                    self._read(descriptor)
            if self._pidfd in ready and self._process.poll() is not None:
                self._drain()
                return True
            if left <= 0:
                return False

    def text(self, index: int) -> str:
        """What was kept of stdout (0) or stderr (1)."""
        return self._kept[index].decode("utf-8", "replace")

    def _add(self, stream: IO[bytes] | None, kept: bytearray) -> None:
        if stream is not None:
            os.set_blocking(stream.fileno(), False)
            self._streams[stream.fileno()] = kept
            self._poll.register(stream.fileno(), select.POLLIN)

    def _read(self, descriptor: int) -> bool:
        """One read; False when there is nothing (more) now."""
        try:
            chunk = os.read(descriptor, _CHUNK)
        except BlockingIOError:
            return False
        if not chunk:
            self._poll.unregister(descriptor)
            del self._streams[descriptor]
            return False
        kept = self._streams[descriptor]
        room = self._limit - len(kept)
        self.truncated = self.truncated or len(chunk) > room
        kept += chunk[:room] if room > 0 else b""
        return True

    def _drain(self) -> None:
        """Read what is already in the pipes, at most one pipe's content more (someone may keep writing)."""
        for descriptor in list(self._streams):
            for _ in range(16):
                if not self._read(descriptor):
                    break
