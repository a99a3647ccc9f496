#!/usr/bin/env python3
"""What watching costs: memory and CPU over idle minutes with two engines, and how long `holdfast status` takes.

Hosts that differ only in what watches stand side by side for the same minutes. See README.md.

    benchmarks/cost.py [--seconds 600] [--only holdfast,monit-120,prometheus,systemd]
    benchmarks/cost.py --render        write the table again from the figures
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from variants import BY_NAME, BootedHost, Variant, ensure

RESULTS = Path(__file__).with_name("results")
SLICE = "sys/fs/cgroup/system.slice"
SAMPLE_S = 15.0
WARM_UP_S = 60.0
OWN = {"holdfast": ("holdfast",), "monit": ("monit",), "prometheus": ("prometheus",), "systemd": ()}
"""What the units of a watcher have in their names; anything that lived for less than a sample counts as theirs too."""
STATUS_RUNS = 20
COMMANDS = ("holdfast status", "holdfast status --json", "holdfast --version", "/usr/bin/python3 -IS -c pass")
TIMER = """
import json, resource, subprocess, sys, time
def used():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
rows = []
for _ in range(int(sys.argv[1])):
    cpu, began = used(), time.perf_counter()
    subprocess.run(sys.argv[2:], stdout=subprocess.DEVNULL, check=False)
    rows.append([time.perf_counter() - began, used() - cpu])
print(json.dumps(rows))
"""


@dataclass(frozen=True, slots=True)
class Meter:
    """Reads a host's control groups and processes from outside, so that measuring costs the host nothing."""

    host: BootedHost
    words: tuple[str, ...]

    def groups(self) -> dict[str, float]:
        """CPU seconds of every unit and slice directly below system.slice, by name."""
        folder = self.host.root / SLICE
        return {each.name: _cpu_s(each) for each in folder.iterdir() if (each / "cpu.stat").exists()}

    def total(self) -> float:
        """CPU seconds of system.slice, with what units used that are gone by now."""
        return _cpu_s(self.host.root / SLICE)

    def own(self, name: str) -> bool:
        """Whether this is a unit of the watcher."""
        return any(word in name for word in self.words)

    def memory(self) -> dict[str, float]:
        """PSS and RSS in MiB and the number of processes, summed over the watcher's units and their children."""
        sums = {"pss_mib": 0.0, "rss_mib": 0.0, "processes": 0.0}
        for group in (self.host.root / SLICE).iterdir():
            if not self.own(group.name):
                continue
            for member in group.rglob("cgroup.procs"):
                for pid in member.read_text(encoding="ascii").split():  # numbered as on this machine
                    with contextlib.suppress(OSError):
                        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
                        sums["pss_mib"] += _field(text, "Pss:")
                        sums["rss_mib"] += _field(text, "Rss:")
                        sums["processes"] += 1
        return sums


def _cpu_s(group: Path) -> float:
    try:
        text = (group / "cpu.stat").read_text(encoding="ascii")
    except OSError:
        return 0.0
    return int(text.split()[1]) / 1e6  # usage_usec comes first


def _field(text: str, name: str) -> float:
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith(name)) / 1024


def times(host: BootedHost, command: str, runs: int) -> list[list[float]]:
    """Wall and CPU seconds of each run of a command."""
    said = host.run("python3", "-c", TIMER, str(runs), *command.split(), timeout=120)
    rows: list[list[float]] = json.loads(said.stdout)
    return rows


def measure(options: argparse.Namespace) -> None:
    """Boot the hosts, let them idle, read what was used."""
    bed = ensure("bookworm")
    chosen = [BY_NAME[name] for name in options.only.split(",")]
    figures: dict[str, Any] = {
        "setting": {
            "seconds": options.seconds, "cores": os.cpu_count(),
            "began": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        },
        "watchers": {}, "commands": {},
    }  # fmt: skip
    with contextlib.ExitStack() as stack:
        meters: dict[Variant, Meter] = {}
        for variant in chosen:
            # A tree of its own: pages shared with another host's processes would make PSS look smaller.
            host = stack.enter_context(
                bed.boot("bookworm", packages=variant.packages, name=variant.name, writable=True)
            )
            variant.set_up(host, variant, 2)
            host.sh("systemctl stop 'bed-*'")  # where alerts would go, a process in the same interpreter
            meters[variant] = Meter(host, OWN[variant.name.split("-")[0]])
        watched = next((meter.host for variant, meter in meters.items() if variant.name == "holdfast"), None)
        if watched is not None:
            figures["commands"]["first"] = times(watched, COMMANDS[0], 1)
        time.sleep(WARM_UP_S)
        idle(meters, options.seconds, figures)
        if watched is not None:
            figures["commands"]["load"] = round(os.getloadavg()[0], 1)
            for command in COMMANDS:
                figures["commands"][command] = times(watched, command, STATUS_RUNS)
    save(figures)


def idle(meters: dict[Variant, Meter], seconds: float, figures: dict[str, Any]) -> None:
    """Wait, taking samples, and fill in the figures of each watcher."""
    before = {variant: (meter.total(), meter.groups()) for variant, meter in meters.items()}
    began, load = time.monotonic(), []
    samples: dict[Variant, list[dict[str, float]]] = {variant: [] for variant in meters}
    while time.monotonic() < began + seconds:
        for variant, meter in meters.items():
            samples[variant].append(meter.memory())
        load.append(os.getloadavg()[0])
        time.sleep(min(SAMPLE_S, max(0.0, began + seconds - time.monotonic())))
    lasted = time.monotonic() - began
    figures["setting"].update(seconds=round(lasted), load_median=round(statistics.median(load), 1))
    for variant, meter in meters.items():
        total, groups = before[variant]
        after = meter.groups()
        others = {name: after[name] - used for name, used in groups.items() if name in after and not meter.own(name)}
        cpu_s = meter.total() - total - sum(others.values())
        figures["watchers"][variant.name] = {
            "pss_mib": round(statistics.mean(each["pss_mib"] for each in samples[variant]), 1),
            "pss_mib_most": round(max(each["pss_mib"] for each in samples[variant]), 1),
            "rss_mib": round(statistics.mean(each["rss_mib"] for each in samples[variant]), 1),
            "processes": max(each["processes"] for each in samples[variant]),
            "cpu_s": round(cpu_s, 2),
            "cpu_percent_of_a_core": round(100 * cpu_s / lasted, 3),
            "engines_cpu_s": round(sum(used for name, used in others.items() if name.startswith("llama")), 2),
            "other_units_cpu_s": {
                name: round(used, 2) for name, used in others.items() if used >= 0.05 and not name.startswith("llama")
            },
        }  # fmt: skip
        print(variant.name, json.dumps(figures["watchers"][variant.name]), flush=True)


def save(figures: dict[str, Any]) -> None:
    """Write figures and table."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "cost.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "cost.md").write_text(table(figures), encoding="utf-8")


def table(figures: dict[str, Any]) -> str:
    """The figures as a page."""
    setting = figures["setting"]
    lines = [
        f"# The cost of watching two idle engines for {setting['seconds']} s",
        "",
        f"{setting['began']}, {setting['cores']} cores, load {setting['load_median']:g} (median); hosts side by side.",
        "",
        "| watcher | PSS, mean (most) | RSS | processes | CPU | of a core | both engines' CPU |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in figures["watchers"].items():
        lines.append(
            f"| {BY_NAME[name].title if row['processes'] else 'nothing but systemd'} "
            f"| {row['pss_mib']:.1f} MiB ({row['pss_mib_most']:.1f}) | {row['rss_mib']:.1f} MiB "
            f"| {row['processes']:g} | {row['cpu_s']:.2f} s | {row['cpu_percent_of_a_core']:.2f} % "
            f"| {row['engines_cpu_s']:.2f} s |"
        )
    commands = figures["commands"]
    if commands:
        wall_s, cpu_s = commands["first"][0]
        lines += [
            "",
            f"# Commands on the same host ({STATUS_RUNS} runs each, load {commands['load']:g})",
            "",
            "| command | wall, median | least | most | CPU, median |",
            "|---|---|---|---|---|",
            f"| holdfast status, the first after installation | {wall_s:.3f} s | | | {cpu_s:.3f} s |",
        ]
        for command in COMMANDS:
            wall = [row[0] for row in commands[command]]
            cpu = [row[1] for row in commands[command]]
            lines.append(
                f"| {command} | {statistics.median(wall):.3f} s | {min(wall):.3f} s | {max(wall):.3f} s "
                f"| {statistics.median(cpu):.3f} s |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, or render what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0, help="how long the engines idle")
    parser.add_argument("--only", default="holdfast,monit-120,prometheus,systemd", help=", ".join(BY_NAME))
    parser.add_argument("--render", action="store_true", help="only write the table again")
    options = parser.parse_args()
    if options.render:
        try:
            save(json.loads((RESULTS / "cost.json").read_text(encoding="utf-8")))
        except FileNotFoundError:
            sys.exit("nothing was measured yet")
    else:
        measure(options)


if __name__ == "__main__":
    main()
