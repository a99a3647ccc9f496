"""The engine crashed and systemd has already started it again: told once for each crash, quietly.

Nothing is done about it, and it counts towards the crash loop. What to do: read why it crashed when there is time.
"""

from __future__ import annotations

from collections.abc import Iterable

from agent.model import Finding, Moment, Observation, Results, Status
from agent.plugin import EVENT, Rule
from agent.rules._gpu import last_words

FRESH_S = 600.0
"""A crash older than this is history: a daemon that was down for long does not tell it any more."""


def diagnose(results: Results, now: Moment) -> Iterable[Finding]:
    """The latest crash, where systemd's own restart repaired it."""
    for unit in results.of("engine.unit"):
        last = unit.value("crash.last_at")
        repaired = unit.value("crash.repaired") and int(unit.value("unit.n_restarts") or 0) > 0
        if last is None or not repaired or not 0 <= now.wall - float(last) < FRESH_S:
            continue
        why = str(unit.value("failure.text") or unit.value("unit.failure") or "for an unknown reason")
        kernel = last_words(results, unit.subject, now, float(last))
        yield Finding(
            id="engine-crashed",
            subject=unit.subject,
            status=Status.WARNING,
            summary=f"{unit.subject.removeprefix('engine:')} crashed ({why}{kernel}); systemd has started it again",
            evidence=(Observation("evidence", unit.summary),),
            results=((unit.check, unit.subject),),
            since=float(last),
            signature=f"{float(last):.0f}",
            quiet=True,
            over=True,
        )


RULE = Rule(
    id="engine-crashed",
    title="The engine crashed and was started again",
    reads=("engine.unit", "gpu.xid"),
    confirm=EVENT,
    diagnose=diagnose,
    manual=True,
    expected_in_change=True,
)
