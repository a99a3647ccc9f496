#!/usr/bin/env python3
"""What the apt guard adds to an apt run: the same run with and without its hook, in turns on one host. See README.md.

On Ubuntu 24.04 with the real packages of driver 550 and a real kernel; the packages that are installed here are small.

    benchmarks/apt_guard.py [--rounds 15]
    benchmarks/apt_guard.py --render      write the table again from the figures
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

from bed import make_deb, publish
from bed.host import booted
from bed.kernels import (
    DRIVER,
    KERNEL,
    NEXT_KERNEL_DEBS,
    set_grub_default,
    show_running_kernel,
    ubuntu_with_driver,
    without_a_disk,
)
from spine import built_package

RESULTS = Path(__file__).with_name("results")
LOCK = "/etc/holdfast/driver.lock"
HOOK = "/etc/apt/apt.conf.d/80holdfast"
PARTS = tuple(f"libnvidia-part{number}-550-server" for number in range(24))
"""As many packages as a whole driver has, made here in the locked version."""
INSTALL = "DEBIAN_FRONTEND=noninteractive apt-get -q -y --allow-downgrades install"
OTHER = f"case $(dpkg-query -W -f '${{Version}}' {PARTS[0]}) in *2) n=3 ;; *) n=2 ;; esac"
CASES = {
    "an unrelated package, nothing locked": (False, f"{INSTALL} --reinstall hello"),
    "an unrelated package": (True, f"{INSTALL} --reinstall hello"),
    "50 unrelated packages": (True, f"{INSTALL} --reinstall {' '.join(f'lib{number}' for number in range(50))}"),
    "24 packages of the driver, a new revision": (
        True,
        f"{OTHER}; {INSTALL} {' '.join(f'{name}={DRIVER}-0ubuntu$n' for name in PARTS)}",
    ),
}
"""Each passes, so that it can be run again and again, and does the same work with and without the hook."""
REFUSED = {
    "a real kernel without its module": f"install {NEXT_KERNEL_DEBS}/*.deb",
    "the driver's removal": "remove libnvidia-compute-550-server",
}
TIMER = """
import json, os, resource, subprocess, sys, time
hook, rounds, command = sys.argv[1], int(sys.argv[2]), sys.argv[3]
def used():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
rows = {"with": [], "without": []}
for number in range(2 * rounds + 2):
    name = "with" if number % 2 else "without"
    if name == "without":
        os.rename(hook, "/root/hook")
    cpu, began = used(), time.perf_counter()
    done = subprocess.run(["sh", "-c", command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    row = [time.perf_counter() - began, used() - cpu]
    if name == "without":
        os.rename("/root/hook", hook)
    assert done.returncode == 0, done
    if number > 1:
        rows[name].append(row)
print(json.dumps(rows))
"""
GUARD = """
import glob, json, resource, subprocess, sys, time
def used():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
said, rows = open("/root/said", "rb").read(), []
for _ in range(int(sys.argv[1])):
    cpu, began = used(), time.perf_counter()
    done = subprocess.run(["/usr/lib/holdfast/apt-guard"], input=said, stderr=subprocess.DEVNULL)
    rows.append([time.perf_counter() - began, used() - cpu])
    assert done.returncode == 77, done
print(json.dumps(rows))
"""


def prepare(host: BootedHost, folder: Path) -> None:
    """Real driver, real kernel, Holdfast; an archive with the packages of every case, all installed."""
    without_a_disk(host)
    set_grub_default(host, "0")
    show_running_kernel(host, KERNEL)
    source = {"Source": "nvidia-graphics-drivers-550-server"}
    plain = ["hello", *(f"lib{number}" for number in range(50))]
    debs = [make_deb(folder, name, "1.0") for name in plain]
    debs += [
        make_deb(folder, name, f"{DRIVER}-0ubuntu{revision}", architecture="amd64", fields=source)
        for name in PARTS
        for revision in (2, 3)
    ]
    publish(host, debs)
    host.write("/etc/dpkg/dpkg.cfg.d/bench", "force-unsafe-io\n")  # the disk is not what is measured
    host.run("apt-get", "-q", "-y", "install", *plain, *PARTS, timeout=300)
    host.install_deb(built_package())


def measure(rounds: int) -> None:
    """Every case on one host, and write figures and table."""
    figures: dict[str, Any] = {
        "setting": {"began": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()), "cores": os.cpu_count()},
        "cases": {},
        "refused": {},
    }
    ensure()
    with (
        tempfile.TemporaryDirectory() as folder,
        booted("noble", ubuntu_with_driver(), name="aptguard", writable=True, binds={}) as host,
    ):
        prepare(host, Path(folder))
        for name, (locked, command) in CASES.items():
            host.sh(f"echo {DRIVER} >{LOCK}" if locked else f"rm -f {LOCK}")
            said = host.run("python3", "-IS", "-c", TIMER, HOOK, str(rounds), command, timeout=1800).stdout
            figures["cases"][name] = {**json.loads(said), "load": round(os.getloadavg()[0], 1)}
            print(name, flush=True)
        host.sh(f"echo {DRIVER} >{LOCK}")
        for name, words in REFUSED.items():
            host.sh(
                "mv /usr/lib/holdfast/apt-guard /root/guard; "
                "printf '#!/bin/sh\\ncat >/root/said; exit 77\\n' >/usr/lib/holdfast/apt-guard; "
                f"chmod 755 /usr/lib/holdfast/apt-guard; apt-get -q -y {words} >/dev/null 2>&1 || true; "
                "mv /root/guard /usr/lib/holdfast/apt-guard"
            )
            rows = json.loads(host.run("python3", "-IS", "-c", GUARD, str(rounds), timeout=300).stdout)
            figures["refused"][name] = {"guard": rows, "load": round(os.getloadavg()[0], 1)}
            print(name, flush=True)
    save(figures)


def save(figures: dict[str, Any]) -> None:
    """Write figures and table."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "apt_guard.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "apt_guard.md").write_text(table(figures), encoding="utf-8")


def table(figures: dict[str, Any]) -> str:
    """The figures as a page."""

    def median(rows: list[list[float]], part: int) -> float:
        return statistics.median(row[part] for row in rows)

    setting = f"{figures['setting']['began']}, {figures['setting']['cores']} cores"
    lines = [
        "# What the apt guard adds to an apt run",
        "",
        f"{setting}; medians of runs with and without its hook, in turns on one host. Added: the median of the pairs.",
        "Wall times grow with the load that other work on the machine makes (noted); CPU time hardly does.",
        "",
        "| apt-get install | runs | load | wall without | with | added | CPU without | with | added |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, case in figures["cases"].items():
        cells: list[float] = []
        for part in (0, 1):
            added = statistics.median(
                one[part] - other[part] for one, other in zip(case["with"], case["without"], strict=True)
            )
            cells += [median(case["without"], part), median(case["with"], part), added]
        shown = " | ".join(f"{cell:.2f} s" for cell in cells)
        lines.append(f"| {name} | {len(case['with'])} | {case['load']:.1f} | {shown} |")
    lines += [
        "",
        "| refused; the guard alone | runs | load | wall, median (most) | CPU, median (most) |",
        "|---|---|---|---|---|",
    ]
    for name, case in figures["refused"].items():
        rows = case["guard"]
        shown = " | ".join(f"{median(rows, part):.2f} s ({max(row[part] for row in rows):.2f})" for part in (0, 1))
        lines.append(f"| {name} | {len(rows)} | {case['load']:.1f} | {shown} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, or render what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--render", action="store_true", help="only write the table again")
    options = parser.parse_args()
    if options.render:
        save(json.loads((RESULTS / "apt_guard.json").read_text(encoding="utf-8")))
    else:
        measure(options.rounds)


if __name__ == "__main__":
    main()
