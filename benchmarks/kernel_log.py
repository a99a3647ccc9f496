#!/usr/bin/env python3
"""What reading the kernel's log costs, and how fast it may speak before anything is lost. See README.md.

benchmarks/kernel_log.py            on this machine's own log, as root: it is written full of test lines
benchmarks/kernel_log.py --render   write the table again from the figures
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from agent import frame, plugin  # noqa: E402 (needs the path above)
from agent.host import kernel_log  # noqa: E402
from agent.host.gpu_events import Memory  # noqa: E402
from agent.host.kmsg import RealKmsg  # noqa: E402
from agent.host.real import real_host  # noqa: E402
from agent.model import Observation, Observed  # noqa: E402
from agent.plugin import Target  # noqa: E402

RESULTS = HERE / "results"
LIMIT = Path("/proc/sys/kernel/printk_devkmsg")
LINE = b"NVRM: Xid (PCI:0000:01:00): 31, pid=4242, name=llama-server, Ch 00000008, intr 10000000. MMU Fault: E"
RATES = (100, 300, 600, 1000, 2000, 4000, 8000)
"""Records in a second."""
LASTS_S = 6.0


@contextmanager
def unlimited() -> Iterator[None]:
    """The kernel takes every line that user space writes, until this ends."""
    before = LIMIT.read_text()
    LIMIT.write_text("on\n")
    try:
        yield
    finally:
        LIMIT.write_text(before)


def cpu_ms(act: Callable[[], object], times: int) -> float:
    """CPU time of one call, milliseconds."""
    began = time.process_time()
    for _ in range(times):
        act()
    return round((time.process_time() - began) / times * 1000, 4)


def looks() -> dict[str, float]:
    """One look of the check at a log that says nothing new."""
    host, check = real_host(), plugin.checks()["gpu.xid"]
    target, boot = Target("host", check.params(), check.every_s), host.clock.now()
    here = Observed(boot, (Observation("traces", True), Observation("log.boot", boot.boot_id)))
    result = frame.run_check(host, check, target, here)
    return {"look_ms": cpu_ms(lambda: frame.run_check(host, check, target, frame.before_of(result)), 500)}


def full() -> dict[str, float]:
    """The kernel's buffer, full: how much it holds, and what reading all of it costs when every record is an Xid."""
    with os.fdopen(os.open("/dev/kmsg", os.O_WRONLY), "wb", buffering=0) as device:
        for _ in range(20000):
            device.write(b"<15>" + LINE + b"\n")
    data = RealKmsg(None).read()  # type: ignore[arg-type] - root asks nobody
    found = kernel_log.excerpt(data)
    as_kernel = data.replace(b"\n15,", b"\n4,")

    def understand() -> None:
        Memory().take(kernel_log.events(kernel_log.excerpt(as_kernel).records), lambda at_s: at_s)

    return {"buffer_records": (found.last or 0) - (found.first or 0) + 1, "buffer_ms": cpu_ms(understand, 10)}


def lost_at(rate: int) -> float:
    """The share of records that is lost at this rate, read as the daemon does: once a second while there are any."""
    reader = RealKmsg(None)  # type: ignore[arg-type] - root asks nobody
    last = kernel_log.excerpt(reader.read()).last
    writer = os.fork()
    if writer == 0:
        _write(rate)
        os._exit(0)
    seen = lost = 0
    end = time.monotonic() + LASTS_S + 2
    while time.monotonic() < end:
        if reader.wait(0.5):
            found = kernel_log.excerpt(reader.read(), last)
            if found.first is not None and found.last is not None:
                seen, lost, last = seen + found.last - found.first + 1, lost + found.lost, found.last
        time.sleep(1.0)
    os.waitpid(writer, 0)
    return round(lost / max(1, seen + lost), 4)


def _write(rate: int) -> None:
    device = os.open("/dev/kmsg", os.O_WRONLY)
    began, written = time.monotonic(), 0
    while (passed := time.monotonic() - began) < LASTS_S:
        while written < passed * rate:
            os.write(device, b"<15>" + LINE + b"\n")
            written += 1
        time.sleep(0.002)


def measure() -> None:
    """Measure here, and write figures and table."""
    figures: dict[str, Any] = {
        "setting": {
            "began": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
            "cores": os.cpu_count(),
            "kernel": platform.release().partition("-")[0],
            "load": round(os.getloadavg()[0], 1),
        },
        "look_ms": statistics.median(looks()["look_ms"] for _ in range(5)),
    }
    with unlimited():
        figures |= full()
        figures["lost"] = {str(rate): lost_at(rate) for rate in RATES}
    (RESULTS / "kernel_log.json").write_text(json.dumps(figures, indent=1) + "\n")
    render()


def render() -> None:
    """Write the table from the figures."""
    figures = json.loads((RESULTS / "kernel_log.json").read_text())
    setting = figures["setting"]
    lines = [
        "# The kernel's log",
        "",
        f"{setting['began']}, {setting['cores']} cores, kernel {setting['kernel']}, load {setting['load']}.",
        "",
        "| what | figure |",
        "|---|---|",
        f"| CPU of one look of `gpu.xid` that finds nothing new | {figures['look_ms']:.3f} ms |",
        f"| records of {len(LINE)} characters that the kernel's buffer holds | {figures['buffer_records']} |",
        f"| CPU to understand a buffer full of Xids | {figures['buffer_ms']:.0f} ms |",
        "",
        "Looked at once a second, as the daemon does while the kernel speaks:",
        "",
        "| records in a second | lost, and noticed |",
        "|---:|---:|",
        *(f"| {rate} | {100 * share:.1f} % |" for rate, share in figures["lost"].items()),
    ]
    (RESULTS / "kernel_log.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--render", action="store_true", help="only write the table again")
    if parser.parse_args().render:
        render()
    else:
        measure()
