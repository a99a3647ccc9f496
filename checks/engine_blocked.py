"""Where in the kernel an engine's threads wait, and whether they read or write: evidence for a wedge.

A thread in state D inside the NVIDIA driver cannot be killed; knowing so before a restart spares a hopeless one. The
states are evidence for a person only: no verdict rests on them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from agent.errors import HostError
from agent.host import Host, process, systemd
from agent.model import Judgement, Observation, Observed, Status
from agent.plugin import Check, NoParameters, Target

MOST_PLACES = 8


def observe(host: Host, target: Target, before: Observed | None) -> Iterable[Observation]:
    """The unit's processes, thread by thread; read as root, because the kernel tells nobody else."""
    if target.unit is None:
        return
    unit = systemd.unit_state(host, target.unit)
    group = unit.control_group
    pids = process.cgroup_pids(host, group) if group else []
    places: Counter[tuple[str, str]] = Counter()
    stuck: list[str] = []
    for pid in sorted(pids):
        try:
            waits = process.kernel_wait(host, pid)
            yield from _io(host, pid)
        except HostError:
            continue  # it ended while we looked
        for wait in waits:
            places[(wait.state, wait.wchan or "user space")] += 1
            if wait.state == "D":
                stuck.append(f"{pid}/{wait.tid} in {wait.wchan or 'an unknown place'}")
    yield Observation("unit.active", unit.active_state)
    yield Observation("processes", len(pids))
    yield Observation("uninterruptible", stuck[:MOST_PLACES])
    for (state, wchan), threads in places.most_common(MOST_PLACES):
        yield Observation("waits", threads, "threads", (("state", state), ("in", wchan)))


def _io(host: Host, pid: int) -> Iterable[Observation]:
    """The bytes that really went to or came from a disk, since the process started."""
    for line in host.files.read_text(f"/proc/{pid}/io", limit=4096).splitlines():
        name, _, value = line.partition(": ")
        if name in ("read_bytes", "write_bytes") and value.strip().isdigit():
            yield Observation(f"io.{name}", int(value), "bytes", (("pid", str(pid)),))


def judge(now: Observed, before: Observed | None, params: NoParameters) -> Judgement:
    """Threads in uninterruptible sleep are worth a warning; healthy ones pass through it in milliseconds."""
    if not now.value("processes"):
        return Judgement(Status.UNKNOWN, "the unit has no process")
    stuck = now.value("uninterruptible") or ()
    if stuck:
        return Judgement(Status.WARNING, f"uninterruptible in the kernel: {', '.join(stuck)}")
    places = [
        f"{each.value} × {labels['state']} in {labels['in']}"
        for each in now.observations
        if each.name == "waits" and (labels := dict(each.labels))
    ]
    return Judgement(Status.OK, "threads: " + "; ".join(places[:3]))


CHECK = Check(
    id="engine.blocked",
    scope="engine",
    every_s=0.0,
    timeout_s=10.0,
    observe=observe,
    judge=judge,
    applies=lambda target: target.unit is not None,
    as_root=True,
    gives_verdict=False,
)
