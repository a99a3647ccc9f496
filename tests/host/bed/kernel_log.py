"""Kernel messages put into a host: what user space writes to the real device never looks like the kernel's."""

from __future__ import annotations

import itertools

from bed.host import BootedHost

LOG = "/run/bed-kmsg"


class KernelLog:
    """A file over the host's /dev/kmsg whose records come from the test. It lasts until the host's next boot.

    As on the device, every reader sees every record from the oldest on, and only root may read. Unlike there, one read
    may give several records, and what is overwritten must be said: `lose`.
    """

    def __init__(self, host: BootedHost) -> None:
        self._host = host
        self._numbers = itertools.count(1)
        host.sh(f"install -m 600 /dev/null {LOG}; touch /dev/kmsg; mount --bind {LOG} /dev/kmsg")

    def write(self, message: str, *, level: int = 4, facility: int = 0) -> None:
        """Add one record, as ``NVRM: Xid (PCI:0000:01:00): 79, …``, stamped now (boot time).

        facility: 0 is the kernel's own; the device gives 1 and above to what user space writes.
        """
        microseconds = int(float(self._host.read("/proc/uptime").split()[0]) * 1_000_000)
        record = f"{facility << 3 | level},{next(self._numbers)},{microseconds},-;{message}"
        self._host.run("tee", "-a", LOG, input=record + "\n")

    def lose(self, records: int) -> None:
        """That many records are written and overwritten before anybody could read them."""
        for _ in range(records):
            next(self._numbers)
