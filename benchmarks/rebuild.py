#!/usr/bin/env python3
"""What a rebuild through Holdfast costs beside the same cmake by hand: time, ccache, service, memory. See README.md.

One booted host with the real llama.cpp source and compiler. Each round builds one commit four times: through Holdfast
and by hand with the very same cmake words, each with an empty ccache of its own and with the one it has just filled.

    benchmarks/rebuild.py [--rounds 1] [--standin]
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
PLAIN = "/var/tmp/plain"  # noqa: S108 - in the host
PLAIN_S = 7200
TIMER = """
import json, os, resource, shlex, subprocess, sys, time
began, log = time.perf_counter(), open("/var/tmp/plain.log", "w")
for words in sys.argv[1:]:
    done = subprocess.run(shlex.split(words), stdout=log, stderr=log)
    assert done.returncode == 0, words
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([time.perf_counter() - began, usage.ru_utime + usage.ru_stime]))
"""
KINDS = ("cold", "warm")


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
        status, said, took = box.holdfast("run", "rebuild-llama-cpp", "--engine", "chat", "--force", timeout=PLAIN_S)
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
    """What that run built, with the same words of cmake, in another folder, as root and with nothing around it."""
    host = box.host
    lines = [line for event in box.transcript(run) for line in event["data"].get("lines", ())]
    words = [shlex.split(line) for line in lines if line.startswith("systemd-run") and " -- cmake " in line]
    cmake = [shlex.join(each[each.index("--") + 1 :]).replace(WORK, PLAIN) for each in words]
    if len(cmake) != 2:
        raise BedError(f"not two builds in the plan: {lines}")
    commit = box.commits[box.serving]
    host.sh(
        f"rm -rf {PLAIN}/src {PLAIN}/build; mkdir -p {PLAIN}/src {PLAIN}/ccache; "
        f"git -c safe.directory='*' -C {box.source} archive {commit} | tar -x -C {PLAIN}/src",
        timeout=120,
    )
    timer = ("env", f"CCACHE_DIR={PLAIN}/ccache", "CCACHE_MAXSIZE=2G", "python3", "-IS", "-c", TIMER)
    wall, cpu = json.loads(host.run(*timer, *cmake, timeout=PLAIN_S).stdout)
    return {"build_s": wall, "cpu_s": cpu, "load": round(os.getloadavg()[0], 1)}


def measure(rounds: int, *, small: bool) -> None:
    """Every round on a host of its own, and write figures and table."""
    figures: dict[str, Any] = {
        "setting": {
            "began": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
            "cores": os.cpu_count(),
            "source": "the stand-in" if small else "llama.cpp",
        },
        "rounds": [],
    }
    bed = ensure()
    for number in range(rounds):
        with contextlib.ExitStack() as stack:
            box = (standin if small else real)(lambda **words: stack.enter_context(bed.boot(**words)))
            row: dict[str, Any] = {}
            box.host.sh(f"rm -rf {WORK}/ccache {PLAIN}")
            for kind in KINDS:
                ours = through_holdfast(box)
                row[kind] = {"holdfast": ours, "hand": by_hand(box, str(ours["run"]))}
                print(f"round {number + 1}, {kind}: {json.dumps(row[kind])}", flush=True)
            figures["rounds"].append(row)
    save(figures)


def save(figures: dict[str, Any]) -> None:
    """Write figures and table."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "rebuild.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "rebuild.md").write_text(table(figures), encoding="utf-8")


def table(figures: dict[str, Any]) -> str:
    """The figures as a page."""
    rounds, setting = figures["rounds"], figures["setting"]

    def median(kind: str, who: str, what: str) -> float:
        return statistics.median(float(row[kind][who][what]) for row in rounds)

    def ratio(kind: str, what: str) -> float:
        return statistics.median(row[kind]["holdfast"][what] / row[kind]["hand"][what] for row in rounds)

    loads = sorted(row[kind][who]["load"] for row in rounds for kind in KINDS for who in ("holdfast", "hand"))
    lines = [
        "# A rebuild through Holdfast, and the same cmake by hand",
        "",
        f"{setting['began']}, {setting['cores']} cores, {setting['source']} for the CPU, medians of {len(rounds)}.",
        f"Load of the machine meanwhile: {loads[0]:.1f} to {loads[-1]:.1f}. Holdfast builds with the lowest priority,",
        "so other work on the machine makes its wall time longer; CPU time tells what it adds itself.",
        "",
        "| ccache | wall, Holdfast | by hand | ratio | CPU, Holdfast | by hand | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind in KINDS:
        cells = []
        for what in ("build_s", "cpu_s"):
            cells += [f"{median(kind, who, what):.1f} s" for who in ("holdfast", "hand")] + [f"{ratio(kind, what):.3f}"]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    warm = statistics.median(row["warm"]["holdfast"]["build_s"] / row["cold"]["holdfast"]["build_s"] for row in rounds)
    lines += [
        "",
        "| of a rebuild through Holdfast | cold | warm |",
        "|---|---|---|",
        *(
            f"| {words} | {median('cold', 'holdfast', what) * by:.1f} {unit} "
            f"| {median('warm', 'holdfast', what) * by:.1f} {unit} |"
            for words, what, by, unit in (
                ("the whole run, from the command to the proof", "all_s", 1.0, "s"),
                ("its step that builds, packs and unpacks", "step_s", 1.0, "s"),
                ("without service at the switch", "without_service_s", 1.0, "s"),
                ("the runner's memory at most", "runner_kib", 1 / 1024, "MiB"),
            )
        ),
        "",
        f"Warm to cold: {warm:.3f}. Probes for the service: a completion of one token every 0.1 s.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, or render what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--standin", action="store_true", help="a source that builds in a second, to try this program")
    parser.add_argument("--render", action="store_true", help="only write the table again")
    options = parser.parse_args()
    if options.render:
        save(json.loads((RESULTS / "rebuild.json").read_text(encoding="utf-8")))
    else:
        measure(options.rounds, small=options.standin)


if __name__ == "__main__":
    main()
