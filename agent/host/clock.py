"""The real clocks: UTC wall time, time since boot with suspend, and the identity of this boot."""

from __future__ import annotations

import time

from agent.host import Files
from agent.model import Moment

BOOT_ID = "/proc/sys/kernel/random/boot_id"


class RealClock:
    """The `Clock` primitive. The boot id is read once: it cannot change while this process lives."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._boot_id = ""

    def now(self) -> Moment:
        """This moment. Raises FileTrouble when the boot id cannot be read."""
        if not self._boot_id:
            self._boot_id = self._files.read_text(BOOT_ID).strip()
        return Moment(time.time(), time.clock_gettime(time.CLOCK_BOOTTIME), self._boot_id)

    def suspended_s(self) -> float:
        """Seconds that this boot has spent suspended: systemd's monotonic stamps lag the boot clock by as much."""
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC))

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(max(0.0, seconds))
