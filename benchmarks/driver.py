#!/usr/bin/env python3
"""What the driver's truths cost, and how soon a driver that changes under a running host is told. See README.md.

On Ubuntu 24.04 with the real packages of driver 550 and a real kernel; only the card is not there.

    benchmarks/driver.py [--rounds 5]
    benchmarks/driver.py --render      write the table again from the figures
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from variants import BootedHost, ensure  # isort: skip (makes the bed importable)

from bed import PagerInbox, make_deb
from bed.host import booted
from bed.kernels import run_the_driver, ubuntu_with_driver
from spine import told

RESULTS = Path(__file__).with_name("results")
NEWER = "550.54.99"
LIB = "/usr/lib/x86_64-linux-gnu"
TRUTHS = """\
import json, resource, sys, time
def used():
    asked = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in asked)
ours = "/usr/lib/holdfast"
sys.path[:0] = [ours, f"{ours}/vendor/common", f"{ours}/vendor/cp{sys.version_info[0]}{sys.version_info[1]}"]
from agent import frame, plugin
from agent.host.real import real_host
from agent.plugin import Target
host, before, spent = real_host(), {}, []
names = [name for name in plugin.checks() if name.startswith("driver.")] + ["host.reboot"]
for _ in range(int(sys.argv[1]) + 1):
    cpu, wall = used(), time.perf_counter()
    for name in names:
        check = plugin.checks()[name]
        result = frame.run_check(host, check, Target("host", check.params(), 60.0), frame.before_of(before.get(name)))
        before[name] = result
    host.run(["true"], timeout_s=5)  # so that the children of before are counted
    spent.append([used() - cpu, time.perf_counter() - wall])
print(json.dumps({"spent": spent, "status": {name: str(result.status) for name, result in before.items()}}))
"""


def watched(host: BootedHost) -> PagerInbox:
    """Holdfast with its default settings and a pager, and a lock that agrees."""
    run_the_driver(host)
    scene = told(host)
    host.run("holdfast", "lock", "write")
    return scene.inbox


def paged(inbox: PagerInbox, cause: str, since: float, timeout_s: float = 120.0) -> float | None:
    """Seconds from `since` (Unix) to the arrival of the first page about this cause; None when none came."""
    while time.time() < since + timeout_s:
        for event in inbox.events():
            if event.at >= since and f"/{cause}/" in str(event.json().get("dedup_key", "")):
                return round(event.at - since, 2)
        time.sleep(0.2)
    return None


def newer_library(host: BootedHost, folder: Path) -> str:
    """A newer package of the same name as the library's, as dpkg would get it from an archive; its path in the host."""
    links = "".join(f"ln -sfn {name}.so.{NEWER} {LIB}/{name}.so.1\n" for name in ("libnvidia-ml", "libcuda"))
    built = make_deb(
        folder,
        "libnvidia-compute-550-server",
        f"{NEWER}-0ubuntu1",
        architecture="amd64",
        fields={"Source": "nvidia-graphics-drivers-550-server"},
        files={f"{LIB}/{name}.so.{NEWER}": "newer\n" for name in ("libnvidia-ml", "libcuda")},
        scripts={"postinst": links},
    )
    host.push(built, f"/root/{built.name}")
    return f"/root/{built.name}"


def measure(rounds: int) -> None:
    """Boot a host for each round, and write figures and table."""
    figures: dict[str, Any] = {
        "setting": {"began": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()), "cores": os.cpu_count()},
        "truths": [],
        "pages": [],
    }
    ensure()
    for number in range(rounds):
        with (
            tempfile.TemporaryDirectory() as folder,
            booted("noble", ubuntu_with_driver(), name=f"driver{number}", writable=True, binds={}) as host,
        ):
            inbox = watched(host)
            said = json.loads(host.run("python3", "-IS", "-c", TRUTHS, "5", timeout=120).stdout)
            figures["truths"].append({**said, "load": round(os.getloadavg()[0], 1)})
            deb = newer_library(host, Path(folder))
            time.sleep(60 * number / rounds)  # a different part of every cadence each time
            began = time.time()
            host.run("dpkg", "-i", deb)
            installed = round(time.time() - began, 2)
            figures["pages"].append(
                {"dpkg_s": installed, "to_page_s": paged(inbox, "driver-mismatch", began), "load": os.getloadavg()[0]}
            )
        print(json.dumps([figures["truths"][-1], figures["pages"][-1]]), flush=True)
    save(figures)


def save(figures: dict[str, Any]) -> None:
    """Write figures and table."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "driver.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "driver.md").write_text(table(figures), encoding="utf-8")


def table(figures: dict[str, Any]) -> str:
    """The figures as a page."""
    cold = [each["spent"][0] for each in figures["truths"]]
    warm = [spent for each in figures["truths"] for spent in each["spent"][1:]]
    loads = [each["load"] for each in figures["truths"] + figures["pages"]]
    setting = f"{figures['setting']['began']}, {figures['setting']['cores']} cores"
    lines = [
        "# What the driver's truths cost",
        "",
        f"{setting}, load {min(loads):.1f} to {max(loads):.1f}; {len(cold)} hosts one after the other.",
        "",
        "| all truths once | CPU, median (most) | wall, median (most) |",
        "|---|---|---|",
    ]
    for name, rows in (("cold: nothing known", cold), ("warm: unchanged since", warm)):
        cells = [[row[part] for row in rows] for part in (0, 1)]
        lines.append(
            f"| {name} | " + " | ".join(f"{statistics.median(each):.3f} s ({max(each):.3f})" for each in cells) + " |"
        )
    lines += [
        "",
        "# From the start of `dpkg -i` of a newer library to the page",
        "",
        "| round | dpkg itself | to the page |",
        "|---|---|---|",
    ]
    for number, row in enumerate(figures["pages"], start=1):
        told = "never" if row["to_page_s"] is None else f"{row['to_page_s']:.1f} s"
        lines.append(f"| {number} | {row['dpkg_s']:.1f} s | {told} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, or render what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--render", action="store_true", help="only write the table again")
    options = parser.parse_args()
    if options.render:
        save(json.loads((RESULTS / "driver.json").read_text(encoding="utf-8")))
    else:
        measure(options.rounds)


if __name__ == "__main__":
    main()
