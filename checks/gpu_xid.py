"""What the kernel's log says of the GPUs: every Xid with its meaning, cards that fell off the bus, a driver that hangs.

Reads /dev/kmsg from where it was left, over restarts too, and believes only what the kernel itself wrote. A flood of
one code is one event with a count. CRITICAL: the card is lost, or needs a reset or a reboot. WARNING: something to look
at. UNKNOWN: records were lost before they could be read, or the log cannot be read, and an Xid may have been among
them. A program's fault is shown, and is OK for the card. What needs a reset stays until the card takes it back (Xid
154), the driver is loaded afresh or the host rebooted; a program's fault is forgotten after `forget_after_s`. What to
do: `holdfast explain xid CODE` says what each means. The inspector opens the log once and hands it over, so that a look
starts no process.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from typing import Any

from pydantic import Field

from agent.errors import FileTrouble, HostError
from agent.host import Host, driver, journal, kernel_log, process
from agent.host.gpu_events import Memory
from agent.model import Judgement, Moment, Observation, Observed, Status
from agent.plugin import Check, Parameters, Target

SHOWN = 3
_RANK = {"critical": 2, "warning": 1, "note": 0}


class GpuXidParameters(Parameters):
    """What gpu.xid can be told."""

    forget_after_s: float = Field(default=3600.0, gt=0)
    """How long a fault of a program is remembered, seconds."""
    unknown_after_loss_s: float = Field(default=3600.0, gt=0)
    """How long nobody can tell after records were lost, seconds."""


def observe(host: Host, target: Target, before: Observed | None) -> Iterable[Observation]:
    """Go on reading; find the unit of each process that a message names, while that can still be told."""
    now = host.clock.now()
    past = before if before is not None and before.value("log.boot") == now.boot_id else None
    traces = past is not None or driver.traces(host)
    yield Observation("traces", traces)
    if not traces:
        return
    memory, after, lost, lost_at = _recall(past)
    try:
        read = _read(host, after)
    except FileTrouble as trouble:
        contained = trouble.kind == "missing"
        yield Observation(
            "log.problem", "this is a container: the kernel's log is the host's" if contained else trouble.message
        )
    else:
        running_s = now.boot_s - host.clock.suspended_s()
        memory.take(kernel_log.events(read.records), lambda at_s: round(now.wall - running_s + at_s, 3))
        after = after if read.last is None else read.last
        if read.lost:
            lost, lost_at = lost + read.lost, now.wall
    memory.forget(now.wall, target.params.forget_after_s)
    for each in memory.entries:
        _attribute(host, each, now)
    yield Observation("log.boot", now.boot_id)
    yield Observation("log.last", after)
    yield Observation("lost", lost)
    yield Observation("lost.at", lost_at)
    yield Observation("uuids", memory.uuids)
    yield Observation("events", memory.entries)


def _recall(past: Observed | None) -> tuple[Memory, int | None, int, float | None]:
    """What was known in this boot: events, the last record read, how many records were lost and when."""
    if past is None:
        return Memory(), None, 0, None
    entries = [dict(each) for each in past.value("events") or ()]
    lost, lost_at = int(past.value("lost") or 0), past.value("lost.at")
    return Memory(entries, dict(past.value("uuids") or {})), past.value("log.last"), lost, lost_at


def _read(host: Host, after: int | None) -> kernel_log.Excerpt:
    """The next records. What seems lost is looked for once more: an earlier look may have failed after reading it."""
    found = kernel_log.excerpt(host.kmsg.read(), after)
    if found.lost:
        host.kmsg.rewind()
        found = kernel_log.excerpt(host.kmsg.read(), after)
    return found


def _attribute(host: Host, event: dict[str, Any], now: Moment) -> None:
    """Which unit the named process belongs to, asked once while it lives or from the journal; and whether it lives."""
    pid = event["pid"]
    if pid is None:
        return
    unit = _living(host, pid, event["first"], now)
    if "unit" not in event:
        event["unit"] = unit or _logged(host, pid, event["last"])
    event["alive"] = bool(unit) and unit == event["unit"]


def _living(host: Host, pid: int, at_wall: float, now: Moment) -> str:
    """The unit of a process that lives and lived then; "" otherwise."""
    try:
        started_wall = now.wall - now.boot_s + process.started_boot_s(host, pid)
        return process.unit_of(host, pid) if started_wall <= at_wall + 1.0 else ""
    except FileTrouble:
        return ""


def _logged(host: Host, pid: int, at_wall: float) -> str:
    """The unit of a process that is gone, if it ever wrote to the journal."""
    try:
        return journal.unit_of(host, pid, at_wall)
    except HostError:
        return ""


def judge(now: Observed, before: Observed | None, params: GpuXidParameters) -> Judgement:
    """The worst event first; without one, what was lost makes everything UNKNOWN for a while."""
    if not now.value("traces"):
        return Judgement(Status.OK, "nothing of NVIDIA's is here")
    events = sorted(now.value("events") or (), key=lambda each: (-_RANK[each["severity"]], -each["last"]))
    worst = _RANK[events[0]["severity"]] if events else 0
    lost_at = now.value("lost.at")
    blind = str(now.value("log.problem") or "")
    if lost_at is not None and 0 <= now.at.wall - lost_at < params.unknown_after_loss_s:
        lost = f"{now.value('lost')} records of the kernel's log were lost before {_clock(lost_at)}"
        blind = blind or f"{lost}, and an Xid may have been among them"
    words = [_words(each) for each in events[:SHOWN]] + ([f"{len(events) - SHOWN} more"] if len(events) > SHOWN else [])
    if worst:
        status = Status.CRITICAL if worst == _RANK["critical"] else Status.WARNING
        return Judgement(status, "; ".join([*words, *([blind] if blind else [])]))
    if blind:
        return Judgement(Status.UNKNOWN, "; ".join([f"cannot tell: {blind}", *words]))
    return Judgement(Status.OK, "; ".join(words) or "the kernel reports nothing about the GPUs")


def _words(event: Mapping[str, Any]) -> str:
    """Say "Xid 31 (GPU memory page fault) on 0000:18:00, 3 times since 07:42 UTC, in llama-server.service"."""
    kind = {"xid": "Xid", "sxid": "SXid"}.get(event["kind"])
    title = f"{kind} {event['code']} ({event['name']})" if kind else str(event["name"])
    place = f" on {event['gpu']}" if event["gpu"] else ""
    times = (
        f"{event['count']} times since {_clock(event['first'])}"
        if event["count"] > 1
        else f"at {_clock(event['first'])}"
    )
    whose = event.get("unit") or (f"process {event['pid']}" if event["pid"] is not None else "")
    after = f", after Xid {event['follows']}" if event["follows"] else ""
    return f"{title}{place}, {times}{after}{f', in {whose}' if whose else ''}"


def _clock(at: float) -> str:
    return f"{datetime.fromtimestamp(at, timezone.utc):%H:%M} UTC"


CHECK = Check(
    id="gpu.xid",
    scope="host",
    every_s=10.0,
    timeout_s=15.0,
    observe=observe,
    judge=judge,
    params=GpuXidParameters,
)
