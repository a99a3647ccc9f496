"""Whether a planned change of the driver is open, and for how long still.

A planned change opens the way for a new driver: the guard lets it pass, our holds are suspended, engines are not
restarted. WARNING: it is open beyond its window, or its record cannot be read; nobody may remember it, and nothing
looks after the engines meanwhile. What to do: `holdfast change status` says what is missing; then
`sudo holdfast change finish`, or `sudo holdfast change abort`.
"""

from __future__ import annotations

from collections.abc import Iterable

from agent.errors import FileTrouble
from agent.host import Host, changes
from agent.model import Judgement, Observation, Observed, Status
from agent.plugin import Check, NoParameters, Target


def observe(host: Host, target: Target, before: Observed | None) -> Iterable[Observation]:
    """The record of the open change."""
    try:
        change = changes.read(host)
    except FileTrouble as error:
        yield Observation("problem", error.message)
        yield Observation("denied", error.kind == "denied")
        return
    yield Observation("open", change is not None)
    if change is not None:
        yield Observation("words", change.words)
        yield Observation("by", change.by)
        yield Observation("since", change.since.wall, "s")
        yield Observation("left_s", -change.overdue_s(host.clock.now()), "s")


def judge(now: Observed, before: Observed | None, params: NoParameters) -> Judgement:
    """None, one within its window, one beyond it, one that nobody can read."""
    problem = now.value("problem")
    if problem:
        if now.value("denied"):
            return Judgement(Status.UNKNOWN, f"whether a planned change is open cannot be told: {problem}")
        return Judgement(Status.WARNING, f"a planned change counts as open, and its record is broken: {problem}")
    if not now.value("open"):
        return Judgement(Status.OK, "no planned change is open")
    words, left_s = f"{now.value('words')}, begun by {now.value('by')}", float(now.value("left_s") or 0.0)
    if left_s < 0:
        return Judgement(Status.WARNING, f"a planned change is open beyond its window: {words}")
    return Judgement(Status.OK, f"a planned change is open: {words}")


CHECK = Check(
    id="driver.change",
    scope="host",
    every_s=60.0,
    timeout_s=10.0,
    observe=observe,
    judge=judge,
    due_when_changed=(changes.FILE,),
)
