"""The real clocks: UTC wall time, time since boot with suspend, and the identity of this boot."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

from agent.host import Files
from agent.model import Moment

BOOT_ID = "/proc/sys/kernel/random/boot_id"
BOOT_ID_VARIABLE = "HOLDFAST_BOOT_ID"
"""Our units set it to systemd's own boot id (`%b`). In a system container the file is a mount over the kernel's, which
a unit with ProtectKernelTunables= does not see: daemon, runner and journal would each speak of another boot."""


class RealClock:
    """The `Clock` primitive. The boot id is read once: it cannot change while this process lives."""

    def __init__(self, files: Files, environ: Mapping[str, str] = os.environ) -> None:
        self._files = files
        self._boot_id = environ.get(BOOT_ID_VARIABLE, "")

    def now(self) -> Moment:
        """This moment. Raises FileTrouble when the boot id cannot be read."""
        if not self._boot_id:
            self._boot_id = self._files.read_text(BOOT_ID).strip().replace("-", "")  # as systemd and journald write it
        return Moment(time.time(), time.clock_gettime(time.CLOCK_BOOTTIME), self._boot_id)

    def suspended_s(self) -> float:
        """Seconds that this boot has spent suspended: systemd's monotonic stamps lag the boot clock by as much."""
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC))

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(max(0.0, seconds))
