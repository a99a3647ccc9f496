"""The engine does not run, nobody stopped it, and systemd will not start it again by itself.

An engine that exited with status 0 under `Restart=on-failure` is dead too: it serves nobody. An engine without a unit
here is dead when its port stays closed. Where the kernel reported an Xid for it, the same page says which. What to do:
restart it; if its log shows a failure that a restart cannot cure, mend that first.
"""

from __future__ import annotations

from collections.abc import Iterable

from agent.model import CheckResult, Finding, Moment, Observation, Results, Verdict
from agent.plugin import EVENT, Rule
from agent.rules._gpu import last_words

SILENT = ("engine.progress", "engine.alive", "engine.generates")


def diagnose(results: Results, now: Moment) -> Iterable[Finding]:
    """Dead by its unit's account, or by the probe where the unit has nothing to say."""
    for unit in results.of("engine.unit"):
        if unit.verdict is Verdict.DEAD and not unit.value("unit.pending"):
            died_at = unit.value("crash.last_at")
            how = _how(unit) + last_words(results, unit.subject, now, died_at)
            yield _finding(unit, how, ("engine.unit", *SILENT), since=died_at)
    for probe in results.of("engine.progress"):
        unit_says = results.one("engine.unit", probe.subject)
        if probe.verdict is Verdict.DEAD and (unit_says is None or unit_says.verdict is not Verdict.DEAD):
            yield _finding(probe, probe.summary + last_words(results, probe.subject, now), SILENT[1:], since=None)


def _finding(result: CheckResult, how: str, explains: Iterable[str], since: float | None) -> Finding:
    name = result.subject.removeprefix("engine:")
    curable = result.value("failure.curable")
    return Finding(
        id="engine-dead",
        subject=result.subject,
        status=Verdict.DEAD.status,
        summary=f"{name} is dead: {how}",
        evidence=(Observation("evidence", str(result.value("failure.meaning") or result.summary)),),
        results=((result.check, result.subject),),
        explains=tuple((check, result.subject) for check in explains),
        since=since,
        signature=str(result.value("failure.cause") or result.value("unit.failure") or ""),
        incurable=curable is False,
    )


def _how(unit: CheckResult) -> str:
    ended = str(unit.value("unit.failure") or unit.value("unit.result") or "not running")
    line = str(unit.value("failure.text") or "")
    return f'{ended}: "{line}"' if line else ended


RULE = Rule(
    id="engine-dead",
    title="The engine is dead",
    reads=("engine.unit", "engine.progress", "gpu.xid"),
    explainers=("engine.unit", "engine.progress", "driver.lock", "gpu.xid"),
    confirm=EVENT,
    diagnose=diagnose,
    expected_in_change=True,
)
