"""Knowing at once that a process has ended, without polling: pidfd and epoll; `wake` comes through an eventfd."""

from __future__ import annotations

import contextlib
import os
import select
import threading

from agent.errors import HostError


class RealEvents:
    """The `Events` primitive. One thread waits; any thread may watch, forget and wake. Waiting costs no CPU."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._subjects: dict[int, str] = {}  # pidfd -> subject
        self._pids: dict[tuple[int, str], int] = {}  # (pid, subject) -> pidfd
        self._ended: list[str] = []  # processes that were gone before they could be watched
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._wake, select.EPOLLIN)

    def watch_process(self, pid: int, subject: str) -> None:
        """Wake with `subject` when this process ends, at once when it has already. Once watched is enough.

        Raises HostError when the process cannot be watched (out of file descriptors).
        """
        with self._lock:
            if (pid, subject) in self._pids:
                return
            try:
                pidfd = os.pidfd_open(pid)
            except ProcessLookupError:
                self._ended.append(subject)
                os.eventfd_write(self._wake, 1)
                return
            except OSError as error:
                raise HostError(f"process {pid} cannot be watched: {error}", code="cannot-watch") from error
            self._subjects[pidfd] = subject
            self._pids[pid, subject] = pidfd
            self._epoll.register(pidfd, select.EPOLLIN)

    def forget(self, subject: str) -> None:
        """Stop watching whatever was watched for `subject`."""
        with self._lock:
            self._ended = [each for each in self._ended if each != subject]
            for pidfd in [pidfd for pidfd, each in self._subjects.items() if each == subject]:
                self._drop(pidfd)

    def wait(self, timeout_s: float) -> list[str]:
        """The subjects whose processes have ended, each once; empty after `timeout_s` or a `wake`."""
        ready = [descriptor for descriptor, _ in self._epoll.poll(max(0.0, timeout_s))]
        with self._lock:
            if self._wake in ready:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._wake)
            found = self._ended
            self._ended = []
            for descriptor in ready:
                if descriptor in self._subjects:
                    found.append(self._subjects[descriptor])
                    self._drop(descriptor)
        return list(dict.fromkeys(found))

    def wake(self) -> None:
        """End a `wait` in another thread, or the next one."""
        with self._lock:
            os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """Release everything. Nothing may wait any more."""
        with self._lock:
            for pidfd in list(self._subjects):
                self._drop(pidfd)
            self._epoll.close()
            os.close(self._wake)

    def _drop(self, pidfd: int) -> None:
        self._epoll.unregister(pidfd)
        del self._subjects[pidfd]
        self._pids = {key: each for key, each in self._pids.items() if each != pidfd}
        os.close(pidfd)
