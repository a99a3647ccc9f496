"""Kernel messages put into a host: what user space writes to the real device never looks like the kernel's."""

from __future__ import annotations

import itertools

from bed.host import BootedHost

FIFO = "/run/bed-kmsg"


class KernelLog:
    """A pipe over the host's /dev/kmsg whose records come from the test. It lasts until the host's next boot.

    Made before the reader under test opens the device. The device gives one record per read and can seek; a pipe is
    a stream, cannot, and shares its records between readers, so there should be one reader.
    """

    def __init__(self, host: BootedHost) -> None:
        self._host = host
        self._numbers = itertools.count(1)
        host.sh(f"mkfifo -m 644 {FIFO}; touch /dev/kmsg; mount --bind {FIFO} /dev/kmsg")
        # Somebody must hold the writing end, or the reader sees the end of the stream.
        holder = f"exec 3<>{FIFO}; exec sleep infinity"
        host.run("systemd-run", "--quiet", "--collect", "--unit=bed-kmsg", "sh", "-c", holder)
        host.wait_for(lambda: host.unit("bed-kmsg.service", "ActiveState")["ActiveState"] == "active", 10, "the pipe")

    def write(self, message: str, *, level: int = 4) -> None:
        """Add one record of facility 0, as ``NVRM: Xid (PCI:0000:01:00): 79, …``, stamped now (boot time)."""
        microseconds = int(float(self._host.read("/proc/uptime").split()[0]) * 1_000_000)
        record = f"{level},{next(self._numbers)},{microseconds},-;{message}"
        self._host.run("timeout", "5", "tee", FIFO, input=record + "\n")
