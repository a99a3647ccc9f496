"""The engine fails since it was switched to another release, and an earlier one was proven with this driver.

Within a day of the switch it is dead, crashes again and again, or hangs: then the new release is the first suspect, and
going back takes seconds. Never after a way back: whoever is back and fails again has another fault. What to do:
Holdfast goes back by itself; by hand it is `sudo holdfast run rollback-llama-cpp --engine NAME`. Then find out what is
wrong with the new release: `holdfast runbook print rollback-llama-cpp` says where both lie.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable

from agent.model import CheckResult, Finding, Moment, Observation, Results, Status, Verdict
from agent.plugin import EVENT, Rule
from agent.rules._releases import way_back

CRASHES = 2
CRASHES_WITHIN_S = 600.0
"""Right after a switch two crashes are a loop already: waiting for the third costs users more than going back."""


def diagnose(results: Results, now: Moment) -> Iterable[Finding]:
    """A fault of the engine that is younger than the switch to the release that serves."""
    for release in results.of("engine.release"):
        fallback = way_back(results, release.subject, now)
        at, new = release.value("switch.at"), release.value("switch.new")
        if not fallback:
            continue
        failing = _failing(results, release.subject, float(at), now)
        if failing is None:
            continue
        result, how = failing
        name, back = posixpath.basename(str(new)), posixpath.basename(fallback)
        engine = release.subject.removeprefix("engine:")
        silent = ("engine.unit", "engine.progress", "engine.alive", "engine.generates")
        yield Finding(
            id="release-failing",
            subject=release.subject,
            status=Status.CRITICAL,
            summary=f"{engine} fails since it was switched to {name}: {how}",
            evidence=(Observation("evidence", f"{back} was proven before, with the driver that is loaded now."),),
            results=((release.check, release.subject), (result.check, result.subject)),
            explains=tuple((check, release.subject) for check in silent),
            since=result.value("crash.last_at"),
            signature=str(result.value("failure.cause") or result.value("unit.failure") or result.verdict or ""),
        )


def _failing(results: Results, subject: str, at: float, now: Moment) -> tuple[CheckResult, str] | None:
    """The result that shows the fault, and the fault in words; only what was seen after the switch counts."""
    unit = results.one("engine.unit", subject)
    if unit is not None and unit.at.wall > at and unit.verdict is not Verdict.STOPPED:
        text = str(unit.value("failure.text") or unit.value("unit.failure") or "")
        quoted = f': "{text}"' if text else ""
        if unit.verdict is Verdict.DEAD and not unit.value("unit.pending"):
            return unit, f"it is dead{quoted}"
        crashes = [float(each) for each in unit.value("crash.times") or () if float(each) > at]
        recent = [each for each in crashes if 0 <= now.wall - each < CRASHES_WITHIN_S]
        if len(recent) >= CRASHES and int(unit.value("unit.n_restarts") or 0):
            return unit, f"it crashed {len(recent)} times{quoted}"
    probe = results.one("engine.progress", subject)
    if probe is not None and probe.at.wall > at and probe.verdict is Verdict.WEDGED:
        return probe, f"it hangs: {probe.summary}"
    return None


RULE = Rule(
    id="release-failing",
    title="The new release fails",
    reads=("engine.release", "engine.unit", "engine.progress"),
    explainers=("engine.release", "engine.unit", "engine.progress"),
    confirm=EVENT,
    diagnose=diagnose,
    expected_in_change=True,
)
