"""The kernel's own log, /dev/kmsg, read from where it was left, without a process for each look.

Most distributions let only root open the device (kernel.dmesg_restrict), but the kernel asks at the opening and never
again: so the daemon has the inspector open it once and hand the open descriptor over the socket. From then on one look
costs a few system calls. It gives the daemon nothing that group systemd-journal does not.
"""

from __future__ import annotations

import errno
import os
import select
import stat as modes
import time

from agent.errors import DaemonUnreachable, FileTrouble, HoldfastError
from agent.host import Ipc

DEVICE = "/dev/kmsg"
INSPECTOR = "/run/holdfast-inspect.sock"
QUESTION = b'{"v":1,"hand":"kernel-log"}'
"""What the inspector is asked (agent/protocol.py, Hand)."""
CONNECT_S = 2.0
ANSWER_S = 10.0
"""The inspector is a fresh process."""
MOST_BYTES = 16 << 20
"""Of one look; the kernel's buffer is rarely larger than a mebibyte."""
UNOPENED_S = 2.0
"""How often to see whether there is something to wait for yet."""
_RECORD = 16 << 10  # the device gives one record per read, of less than 9 KiB, or fails
_NUMBER = os.makedev(1, 11)


class RealKmsg:
    """The `Kmsg` primitive. It keeps its place in the log. One thread reads; another may `wait`."""

    def __init__(self, ipc: Ipc, device: str = DEVICE, inspector: str = INSPECTOR) -> None:
        self._ipc, self._device, self._inspector = ipc, device, inspector
        self._descriptor = -1

    def read(self) -> bytes:
        """See `Kmsg`."""
        if self._descriptor < 0:
            self._descriptor = self._open()
        found = bytearray()
        while len(found) < MOST_BYTES:
            try:
                record = os.read(self._descriptor, _RECORD)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno == errno.EPIPE:  # overwritten before it was read: the numbers show how many
                    continue
                self.close()
                raise FileTrouble(f"{self._device}: {error.strerror}", kind="other", where=self._device) from error
            if not record:
                break
            found += record
        return bytes(found)

    def rewind(self) -> None:
        """See `Kmsg`."""
        try:
            os.lseek(self._descriptor, 0, os.SEEK_SET)
        except OSError:  # never opened, or a pipe
            self.close()

    def wait(self, timeout_s: float) -> bool:
        """See `Kmsg`."""
        descriptor = self._descriptor
        if descriptor < 0:
            time.sleep(min(timeout_s, UNOPENED_S))
            return False
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return any(event & select.POLLIN for _, event in poll.poll(timeout_s * 1000))

    def close(self) -> None:
        """Forget the open device; the next look opens it again."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    def _open(self) -> int:
        try:
            return open_log(self._device)
        except FileTrouble as trouble:
            if trouble.kind != "denied":
                raise
        try:
            with self._ipc.connect(self._inspector, timeout_s=CONNECT_S) as connection:
                if not connection.send(QUESTION):
                    raise DaemonUnreachable("the inspector closed the connection", where=self._inspector)
                _, descriptor = connection.receive_descriptor(ANSWER_S)
        except HoldfastError as error:
            raise FileTrouble(f"{self._device}: {error.message}", kind="denied", where=self._device) from error
        if descriptor is None:
            words = f"{self._device}: the inspector may not read it either"
            raise FileTrouble(words, kind="denied", where=self._device)
        return int(descriptor)


def open_log(device: str = DEVICE) -> int:
    """A descriptor of the kernel's log, which never blocks. Raises FileTrouble.

    What is neither the device nor a file or pipe put in its place is not opened: in some containers it is a terminal.
    """
    try:
        known = os.stat(device)
        ours = modes.S_ISREG(known.st_mode) or modes.S_ISFIFO(known.st_mode)
        if not ours and not (modes.S_ISCHR(known.st_mode) and known.st_rdev == _NUMBER):
            raise FileTrouble(f"{device} is not the kernel's log here", kind="missing", where=device)
        return os.open(device, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        kinds = {errno.ENOENT: "missing", errno.EACCES: "denied", errno.EPERM: "denied"}
        kind = kinds.get(error.errno or 0, "other")
        raise FileTrouble(f"{device}: {error.strerror}", kind=kind, where=device) from error
