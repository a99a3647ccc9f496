"""An operator stopped, disabled or masked the engine's unit. It is never started again by Holdfast.

Told quietly, so that a forgotten maintenance is seen. What to do: nothing, or `systemctl start` it when done.
"""

from __future__ import annotations

from collections.abc import Iterable

from agent.model import Finding, Moment, Observation, Results, Status, Verdict
from agent.plugin import EVENT, Rule

SILENT = ("engine.unit", "engine.progress", "engine.alive", "engine.generates")


def diagnose(results: Results, now: Moment) -> Iterable[Finding]:
    """Stopped by an operator's hand, as the unit and the journal tell."""
    for unit in results.of("engine.unit"):
        if unit.verdict is Verdict.STOPPED:
            how = str(unit.value("unit.operator_how") or "stopped by an operator")
            yield Finding(
                id="engine-stopped",
                subject=unit.subject,
                status=Status.WARNING,
                summary=f"{unit.subject.removeprefix('engine:')} does not run: {how}",
                evidence=(Observation("evidence", unit.summary),),
                results=((unit.check, unit.subject),),
                explains=tuple((check, unit.subject) for check in SILENT),
                quiet=True,
            )


RULE = Rule(
    id="engine-stopped",
    title="The engine was stopped by an operator",
    reads=("engine.unit",),
    confirm=EVENT,
    diagnose=diagnose,
    manual=True,
    expected_in_change=True,
)
