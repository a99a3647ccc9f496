"""Locks between processes: flock, which dies with its holder, so that no lock is ever stale.

The lock file's text says who holds it, for people and for `stop`; the lock itself is the truth.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
from collections.abc import Mapping
from types import TracebackType

from agent.errors import FileTrouble
from agent.host import Host
from agent.model import Json


class Lock:
    """A held lock; released by `release`, at the end of a `with`, or by the holder's death."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __enter__(self) -> Lock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def note(self, text: Mapping[str, Json]) -> None:
        """Say in the lock file who holds it, or what must outlive the holder (not durable: never a record)."""
        data = json.dumps(text).encode()
        with contextlib.suppress(OSError):  # a full disk must not break the lock; the text is a convenience
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, data, 0)

    def noted(self) -> dict[str, Json]:
        """What the lock file says; empty when it says nothing readable."""
        with contextlib.suppress(OSError, ValueError):
            found = json.loads(os.pread(self._descriptor, 1 << 16, 0))
            if isinstance(found, dict):
                return found
        return {}

    def release(self) -> None:
        """Let go; nothing happens the second time."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def acquire(host: Host, path: str, *, shared: bool = False, wait_s: float = 0.0) -> Lock | None:
    """The lock at `path`, or None when another process still holds it after `wait_s` seconds.

    shared: several may hold it at once, as long as nobody holds it alone. Raises FileTrouble when the file cannot
    be opened.
    """
    real = host.files.root / path.lstrip("/")
    try:
        descriptor = os.open(real, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
    except OSError as error:
        raise FileTrouble(f"cannot open the lock {path}: {error.strerror}", kind="other", where=path) from error
    flags = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB
    started = host.clock.now()
    while True:
        try:
            fcntl.flock(descriptor, flags)
            return Lock(descriptor)
        except BlockingIOError:
            if host.clock.now().since(started) >= wait_s:
                os.close(descriptor)
                return None
            host.clock.sleep(0.02)


def holder(host: Host, path: str) -> dict[str, Json]:
    """What the holder of the lock says of itself; empty when nobody holds it."""
    if not host.files.exists(path):
        return {}
    held = acquire(host, path, shared=True)
    if held is not None:
        held.release()
        return {}
    with contextlib.suppress(FileTrouble, ValueError):
        found = json.loads(host.files.read_text(path))
        return found if isinstance(found, dict) else {}
    return {}


def terminate(pid: int) -> bool:
    """Ask a process to end (SIGTERM). False when it is gone. The caller has made sure that it is the right one."""
    return _signal(pid, signal.SIGTERM)


def kill(pid: int) -> bool:
    """End a process (SIGKILL). False when it is gone. The caller has made sure that it is the right one."""
    return _signal(pid, signal.SIGKILL)


def _signal(pid: int, number: signal.Signals) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True
