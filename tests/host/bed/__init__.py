"""A disposable Linux host for tests: real systemd, apt, dpkg and journald, faked only where a GPU would be.

bed = ensure()
with bed.boot("trixie", writable=True) as host:
    host.install_deb(Path("holdfast.deb"))
    unit = llama_unit(host)
    with freeze_thread(host, unit.pid):
        ...
    host.power_cut()
    host.boot_again()
"""

from __future__ import annotations

import sys
from pathlib import Path

# The engine builder serves the engine tier too, so it lives there.
_ENGINE = str(Path(__file__).resolve().parents[2] / "engine")
if _ENGINE not in sys.path:
    sys.path.insert(0, _ENGINE)

from bed.bed import Bed, ensure  # noqa: E402 (needs the path above)
from bed.client import Answer, Background, Client, long_prompt  # noqa: E402
from bed.errors import BedError, NotServedError, UnavailableError  # noqa: E402
from bed.faults import freeze_thread, kill, spin_thread, stopped, throttle  # noqa: E402
from bed.gpu import fake_devices, fake_driver, fake_nvml, nvml_library, set_nvml  # noqa: E402
from bed.host import BootedHost, wait_for  # noqa: E402
from bed.inbox import Event, PagerInbox  # noqa: E402
from bed.kernel_log import KernelLog  # noqa: E402
from bed.llama import LlamaUnit, llama_unit  # noqa: E402
from bed.packages import make_deb, publish  # noqa: E402

__all__ = [
    "Answer",
    "Background",
    "Bed",
    "BedError",
    "BootedHost",
    "Client",
    "Event",
    "KernelLog",
    "LlamaUnit",
    "NotServedError",
    "PagerInbox",
    "UnavailableError",
    "ensure",
    "fake_devices",
    "fake_driver",
    "fake_nvml",
    "freeze_thread",
    "kill",
    "llama_unit",
    "long_prompt",
    "make_deb",
    "nvml_library",
    "publish",
    "set_nvml",
    "spin_thread",
    "stopped",
    "throttle",
    "wait_for",
]
