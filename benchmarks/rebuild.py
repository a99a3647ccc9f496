#!/usr/bin/env python3
"""What a rebuild through Holdfast costs beside the same cmake by hand: time, ccache, service, memory. See README.md.

One booted host with the real llama.cpp source and compiler. One commit is built again and again, through Holdfast and
by hand: in the same folder, as the same user, with the very words of cmake, from an empty ccache and from a full one.

    benchmarks/rebuild.py [--cold 1] [--warm 5] [--standin]
    benchmarks/rebuild.py --render      write the table again from the figures
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shlex
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from variants import BootedHost, ensure  # isort: skip (makes the bed importable)

from bed import BedError
from cutting import holder
from rebuilding import BUILDS, Box, real, standin

RESULTS = Path(__file__).with_name("results")
WORK = f"{BUILDS}/work"
BUILD_S = 7200
TIMER = """
import json, os, resource, shlex, subprocess, sys, time
began, log = time.perf_counter(), open("by-hand.log", "w")
for words in sys.argv[1:]:
    done = subprocess.run(shlex.split(words), stdout=log, stderr=log)
    assert done.returncode == 0, words
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([time.perf_counter() - began, usage.ru_utime + usage.ru_stime]))
"""


@contextlib.contextmanager
def peak_memory(host: BootedHost) -> Iterator[list[int]]:
    """The most memory that any runner has had resident meanwhile, KiB, as the kernel counts it."""
    over, seen = threading.Event(), [0]

    def look() -> None:
        while not over.wait(0.2):
            with contextlib.suppress(Exception):  # none in flight, or gone between two looks
                status = Path(f"/proc/{host.outer_pid(int(holder(host)['pid']))}/status").read_text(encoding="utf-8")
                seen[0] = max(seen[0], int(re.findall(r"VmHWM:\s+(\d+)", status)[0]))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def through_holdfast(box: Box) -> dict[str, Any]:
    """One rebuild, as an operator asks for it: seconds of its build and of all of it, CPU, service, memory."""
    host = box.host
    with box.scene.engine.client.timeline(every=0.1) as probes, peak_memory(host) as memory:
        host.wait_for(lambda: len(probes.successes()) > 10, 60, "answers")
        began = probes.successes()[-1]
        since = host.sh("date +%s").strip()
        status, said, took = box.holdfast("run", "rebuild-llama-cpp", "--engine", "chat", "--force", timeout=BUILD_S)
        if status != 0:
            raise BedError(f"the rebuild failed: {said}")
        host.wait_for(lambda: probes.successes()[-1] > began + took, 60, "answers")
        gap = probes.longest_gap(began, probes.successes()[-1])
    journal = host.run(
        "journalctl", "--unit=holdfast-build-chat", f"--since=@{since}", "-o", "cat", "--no-pager"
    ).stdout
    past = json.loads(host.read("/var/lib/holdfast-runner/builds/chat/history.json"))[0]
    return {
        "build_s": past["configure_s"] + past["compile_s"],
        "run": (run := re.findall(r"^run +(\w+):", said, re.MULTILINE)[0]),
        "step_s": box.steps(run)["Build"],
        "all_s": took,
        "cpu_s": sum(cpu_seconds(each) for each in re.findall(r"Consumed (.*) CPU time", journal)),
        "without_service_s": gap,
        "runner_kib": memory[0],
        "load": round(os.getloadavg()[0], 1),
    }


def cpu_seconds(words: str) -> float:
    """How systemd words a span of time: "1min 2.345s"."""
    units = {"h": 3600.0, "min": 60.0, "s": 1.0, "ms": 0.001}
    return sum(float(number) * units[unit] for number, unit in re.findall(r"([\d.]+)(h|min|ms|s)\b", words))


def by_hand(box: Box, run: str) -> dict[str, Any]:
    """What that run built, with its words of cmake, in its place and as its user, with nothing around it."""
    host = box.host
    lines = [line for event in box.transcript(run) for line in event["data"].get("lines", ())]
    words = [shlex.split(line) for line in lines if line.startswith("systemd-run") and " -- cmake " in line]
    cmake = [shlex.join(each[each.index("--") + 1 :]) for each in words]
    if len(cmake) != 2:
        raise BedError(f"not two builds in the plan: {lines}")
    host.sh(
        f"cd {WORK}; rm -rf src build tmp; mkdir src tmp ccache 2>/dev/null || true; "
        f"git -c safe.directory='*' --git-dir={git_dir(box)} archive {box.commits[box.serving]} | tar -x -C src; "
        f"chown -R holdfast-build: {WORK}",
        timeout=300,
    )
    setting = (f"CCACHE_DIR={WORK}/ccache", "CCACHE_MAXSIZE=2G", f"HOME={WORK}", "LC_ALL=C")
    as_builder = ("runuser", "-u", "holdfast-build", "--", "env", "-C", WORK, *setting)
    wall, cpu = json.loads(host.run(*as_builder, "python3", "-IS", "-c", TIMER, *cmake, timeout=BUILD_S).stdout)
    host.sh(f"cd {WORK}; rm -rf src build tmp", timeout=300)
    return {"build_s": wall, "cpu_s": cpu, "load": round(os.getloadavg()[0], 1)}


def git_dir(box: Box) -> str:
    """Where the host's repository is, with a work tree or without."""
    inside = f"{box.source}/.git"
    return inside if box.host.exists(inside) else box.source


def measure(cold: int, warm: int, *, small: bool) -> None:
    """Every build on one host, and write figures and table."""
    figures: dict[str, Any] = {
        "setting": {
            "began": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
            "cores": os.cpu_count(),
            "source": "the stand-in" if small else "llama.cpp",
        },
        "cold": [],
        "warm": [],
    }
    bed = ensure()
    with contextlib.ExitStack() as stack:
        box = (standin if small else real)(lambda **words: stack.enter_context(bed.boot(**words)))
        if not cold:
            through_holdfast(box)  # what the bed's own ccache lacks is filled in
        for number in range(cold + warm):
            kind = "cold" if number < cold else "warm"
            row: dict[str, Any] = {}
            for who in ("holdfast", "hand"):
                if kind == "cold":
                    box.host.sh(f"rm -rf {WORK}/ccache")
                row[who] = through_holdfast(box) if who == "holdfast" else by_hand(box, str(row["holdfast"]["run"]))
            figures[kind].append(row)
            print(f"{kind}: {json.dumps(row)}", flush=True)
    save(figures)


def save(figures: dict[str, Any]) -> None:
    """Write figures and table."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "rebuild.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "rebuild.md").write_text(table(figures), encoding="utf-8")


def table(figures: dict[str, Any]) -> str:
    """The figures as a page."""
    setting = figures["setting"]
    kinds = [kind for kind in ("cold", "warm") if figures[kind]]

    def median(kind: str, who: str, what: str) -> float:
        return statistics.median(float(row[who][what]) for row in figures[kind])

    def ratio(kind: str, what: str) -> float:
        return statistics.median(row["holdfast"][what] / row["hand"][what] for row in figures[kind])

    loads = sorted(row[who]["load"] for kind in kinds for row in figures[kind] for who in ("holdfast", "hand"))
    lines = [
        "# A rebuild through Holdfast, and the same cmake by hand",
        "",
        f"{setting['began']}, {setting['cores']} cores, {setting['source']} for the CPU; medians, ratios pair by pair.",
        f"Load of the machine meanwhile: {loads[0]:.1f} to {loads[-1]:.1f}. Wall times grow with what else runs,",
        "the more so as Holdfast builds with the lowest priority; CPU time hardly does.",
        "",
        "| ccache | builds | wall, Holdfast | by hand | ratio | CPU, Holdfast | by hand | ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for kind in kinds:
        cells = [str(len(figures[kind]))]
        for what in ("build_s", "cpu_s"):
            cells += [f"{median(kind, who, what):.1f} s" for who in ("holdfast", "hand")] + [f"{ratio(kind, what):.3f}"]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    lines += [
        "",
        f"| of a rebuild through Holdfast | {' | '.join(kinds)} |",
        "|---" * (len(kinds) + 1) + "|",
    ]
    for words, what, by, unit in (
        ("the whole run, from the command to the proof", "all_s", 1.0, "s"),
        ("its step that builds, packs and unpacks", "step_s", 1.0, "s"),
        ("without service at the switch", "without_service_s", 1.0, "s"),
        ("the runner's memory at most", "runner_kib", 1 / 1024, "MiB"),
    ):
        values = " | ".join(f"{median(kind, 'holdfast', what) * by:.1f} {unit}" for kind in kinds)
        lines.append(f"| {words} | {values} |")
    if len(kinds) == 2:
        lines += [
            "",
            f"Warm to cold: {median('warm', 'holdfast', 'build_s') / median('cold', 'holdfast', 'build_s'):.3f}.",
        ]
    return "\n".join([*lines, "", "Probes for the service: a completion of one token every 0.1 s."]) + "\n"


def main() -> None:
    """Measure, or render what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cold", type=int, default=1, help="builds from an empty ccache, minutes each")
    parser.add_argument("--warm", type=int, default=5, help="builds from a full one, seconds each")
    parser.add_argument("--standin", action="store_true", help="a source that builds in a second, to try this program")
    parser.add_argument("--render", action="store_true", help="only write the table again")
    options = parser.parse_args()
    if options.render:
        save(json.loads((RESULTS / "rebuild.json").read_text(encoding="utf-8")))
    else:
        measure(options.cold, options.warm, small=options.standin)


if __name__ == "__main__":
    main()
