#!/usr/bin/env python3
"""Seconds from a fault to the first alert and to the next completion, for Holdfast and for what stands in its place.

Every case boots a fresh host, starts a real llama-server and one watcher, lets a random part of the watcher's cycle
pass (seeded) and injects one fault. One user asks for one token at a time throughout. See README.md.

    benchmarks/faults.py [--rounds 3] [--watch 240] [--hosts 4] [--only holdfast,monit-10] [--faults killed,frozen]
    benchmarks/faults.py --render        write the table again from the figures
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from variants import (
    BY_NAME,
    GUEST,
    PROGRAM,
    VARIANTS,
    Bed,
    BootedHost,
    Variant,
    ensure,
    freeze_thread,
    kill,
    lines_of,
    stopped,
)

RESULTS = Path(__file__).with_name("results")
PROBES = "var/lib/bed/probes.jsonl"
STARTS = "var/lib/bed/starts"
BROKEN = f"""\
#!/bin/sh
echo start >>/{STARTS}
echo "ggml_cuda_init: failed to initialize CUDA: forward compatibility was attempted on non supported HW" >&2
exit 127
"""
BROKEN_S = 300.0
POLL_S = 0.5
FAULTS = {
    "killed": "SIGKILL of the engine",
    "stopped": "SIGSTOP of the process",
    "frozen": "inference thread frozen",
    "broken": "broken binary, 5 min",
}


@contextlib.contextmanager
def injected(host: BootedHost, fault: str) -> Iterator[None]:
    """Hold the fault in place; on entering it has just happened."""
    pid = host.main_pid("llama-server.service")
    if fault == "stopped":
        with stopped(host, pid):
            yield
    elif fault == "frozen":
        with freeze_thread(host, pid):
            yield
    elif fault == "broken":
        host.write(f"{PROGRAM}.broken", BROKEN, mode=0o755)
        host.run("mv", f"{PROGRAM}.broken", PROGRAM)
        kill(host, pid)
        yield
    else:
        kill(host, pid)
        yield


def served(host: BootedHost, since: float) -> float | None:
    """When a completion that was asked for after `since` came back."""
    for probe in lines_of(host, PROBES):
        sent = float(str(probe["at"]))
        if probe["ok"] and sent >= since:
            return sent + float(str(probe["seconds"]))
    return None


def case(
    bed: Bed, variant: Variant, fault: str, number: int, options: argparse.Namespace, awaited: set[str]
) -> dict[str, Any]:
    """Boot, inject, watch until the awaited figures are there; the figures of one round."""
    # A seed of its own for each case, so that a case can be repeated alone.
    seed = int.from_bytes(hashlib.sha256(f"{variant.name}/{fault}/{number}".encode()).digest()[:4], "big")
    # Each round has its own part of the cycle: three moments by pure chance may all lie just before the next look.
    moment = (number % options.rounds + random.Random(seed).random()) / options.rounds  # noqa: S311 (a moment, not a secret)
    wait_s = moment * variant.cycle_s
    with bed.boot("bookworm", packages=variant.packages, name=variant.name) as host:
        variant.set_up(host, variant, 1)
        host.push(GUEST / "prober.py", "/var/lib/bed/prober.py")
        host.run(
            "systemd-run", "--quiet", "--unit=bed-prober", "python3", "-IS", "/var/lib/bed/prober.py",
            "http://127.0.0.1:8080", f"/{PROBES}",
        )  # fmt: skip
        time.sleep(variant.settle_s + wait_s)
        if served(host, time.time() - 5) is None:
            raise RuntimeError(f"{variant.name}: the engine does not serve before the fault")
        false_alarms = len(variant.alerts(host))
        with injected(host, fault):
            at = time.time()
            seen = _watch(host, variant, at, BROKEN_S if fault == "broken" else options.watch, awaited)
        return {
            **{name: value for name, value in seen.items() if name in awaited or value is not None},
            "alerts": len([each for each in variant.alerts(host) if each >= at]),
            "alerts_before": false_alarms,
            "starts": _starts(host) if fault == "broken" else None,
            "waited_s": round(wait_s, 1),
            "load": round(os.getloadavg()[0], 1),
        }


def _watch(host: BootedHost, variant: Variant, at: float, watch_s: float, awaited: set[str]) -> dict[str, float | None]:
    seen: dict[str, float | None] = {}
    while time.time() < at + watch_s:
        told = next((each for each in variant.alerts(host) if each >= at), None)
        back = served(host, at)
        seen = {"alert_s": _since(told, at), "served_s": _since(back, at)}
        if awaited and all(seen[name] is not None for name in awaited):
            break
        time.sleep(POLL_S)
    return seen


def _since(moment: float | None, at: float) -> float | None:
    return None if moment is None else round(moment - at, 2)


def _starts(host: BootedHost) -> int:
    try:
        return len((host.root / STARTS).read_text(encoding="ascii").splitlines())
    except OSError:
        return 0


def median(values: list[float | None]) -> float | None:
    """The median where None is later than everything."""
    found = statistics.median_high([float("inf") if each is None else each for each in values])
    return None if found == float("inf") else found


def undecided(rounds: list[dict[str, Any]], wanted: int, variant: Variant) -> set[str]:
    """The figures whose median a further round can still move: not those that most rounds already saw as "never"."""
    names = {"alert_s", "served_s"} if variant.tells else {"served_s"}
    return {name for name in names if sum(name in r and r[name] is None for r in rounds) <= wanted // 2}


def series(bed: Bed, variant: Variant, fault: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """All rounds of one fault under one watcher."""
    wanted = 1 if fault == "broken" else options.rounds
    rounds: list[dict[str, Any]] = []
    for number in range(wanted):
        # A round costs the whole time watched for everything that never comes: what is decided is not awaited again.
        awaited = set() if fault == "broken" else undecided(rounds, wanted, variant)
        if not awaited and fault != "broken":
            break
        result = case(bed, variant, fault, number, options, awaited)
        rounds.append(result)
        print(f"{variant.name:15} {fault:8} {json.dumps(result)}", flush=True)
    return rounds


def measure(options: argparse.Namespace) -> None:
    """Run everything that was asked for and write the figures after each series."""
    bed = ensure("bookworm")
    chosen = [BY_NAME[name] for name in options.only.split(",")] if options.only else list(VARIANTS)
    # The slow ones first, so that the last hosts do not wait for one of them alone.
    jobs = sorted(
        ((variant, fault) for variant in chosen for fault in options.faults.split(",")),
        key=lambda job: -job[0].cycle_s - (job[1] != "killed") * 50,
    )
    lock = threading.Lock()
    figures = load()
    figures["runs"].append({
        "faults": options.faults, "only": options.only, "rounds": options.rounds, "watched_s": options.watch,
        "hosts_at_once": options.hosts, "cores": os.cpu_count(),
        "began": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    })  # fmt: skip

    def one(job: tuple[Variant, str]) -> None:
        variant, fault = job
        rounds = series(bed, variant, fault, options)
        with lock:
            figures["cases"].setdefault(variant.name, {})[fault] = rounds
            save(figures)

    failed = []
    with ThreadPoolExecutor(options.hosts) as pool:
        for job, future in [(job, pool.submit(one, job)) for job in jobs]:
            error = future.exception()
            if error is not None:
                failed.append(f"{job[0].name} {job[1]}: {error}")
    if failed:
        sys.exit("\n".join(failed))


def load() -> dict[str, Any]:
    """The figures so far."""
    try:
        figures: dict[str, Any] = json.loads((RESULTS / "faults.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        figures = {"runs": [], "cases": {}}
    return figures


def save(figures: dict[str, Any]) -> None:
    """Write figures and table."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "faults.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "faults.md").write_text(table(figures), encoding="utf-8")


def table(figures: dict[str, Any]) -> str:
    """The figures as a page."""
    last = figures["runs"][-1]
    loads = [r["load"] for faults in figures["cases"].values() for rounds in faults.values() for r in rounds]
    shown = [fault for fault in FAULTS if any(fault in faults for faults in figures["cases"].values())]
    lines = [
        "# From the fault to the first alert / to the next completion, in seconds",
        "",
        f"Median of {last['rounds']} rounds (least–most); where most were never, no further one was run. Never: not",
        f"within {last['watched_s']:g} s (broken binary: one round of {BROKEN_S:g} s). –: cannot alert.",
        f"{last['cores']} cores, load {min(loads):g} to {max(loads):g} (median {statistics.median(loads):g}).",
        "",
        *(
            f"- {run['began']}, hosts at once {run['hosts_at_once']}, {run['only'] or 'all watchers'}: {run['faults']}."
            for run in figures["runs"]
        ),
        "",
        "| watcher | " + " | ".join(FAULTS[fault] for fault in shown) + " |",
        "|---" * (len(shown) + 1) + "|",
    ]
    for variant in VARIANTS:
        cells = figures["cases"].get(variant.name)
        if cells:
            words = [_cell(variant, fault, cells.get(fault)) for fault in shown]
            lines.append(f"| {variant.title} | " + " | ".join(words) + " |")
    return "\n".join(lines) + "\n"


def _cell(variant: Variant, fault: str, rounds: list[dict[str, Any]] | None) -> str:
    if not rounds:
        return ""
    if fault == "broken":
        first = rounds[0]
        alerts = "cannot alert"
        if variant.tells:
            alerts = f"{first['alerts']} alerts" + (
                f", the first at {_number(first['alert_s'])} s" if first["alerts"] else ""
            )
        return f"{first['starts']} starts, {alerts}"
    alert = _figure("alert_s", rounds) if variant.tells else "–"
    return f"{alert} / {_figure('served_s', rounds)}"


def _figure(name: str, rounds: list[dict[str, Any]]) -> str:
    values = [each[name] for each in rounds if name in each]
    found = [each for each in values if each is not None]
    spread = f" ({_number(min(found))}–{_number(max(found))})" if len(found) > 1 else ""
    return f"**{_number(median(values))}**{spread}"


def _number(value: float | None) -> str:
    if value is None:
        return "never"
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"


def main() -> None:
    """Measure, or render what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--watch", type=float, default=240.0, help="seconds until a case counts as never")
    parser.add_argument("--hosts", type=int, default=4, help="hosts booted at once")
    parser.add_argument("--only", default="", help=", ".join(BY_NAME))
    parser.add_argument("--faults", default="killed,stopped,frozen", help=", ".join(FAULTS))
    parser.add_argument("--render", action="store_true", help="only write the table again")
    options = parser.parse_args()
    if options.render:
        save(load())
    else:
        measure(options)


if __name__ == "__main__":
    main()
