"""The engine has been loading its model for longer than its configuration allows (`load_timeout_s`).

A slow disk, a model on a network share, or a load that hangs. Restarting would begin the load again, so a person
decides. What to do: look at the disk's throughput; if it moves, raise `load_timeout_s`; if not, restart by hand.
"""

from __future__ import annotations

from collections.abc import Iterable

from agent.model import Finding, Moment, Observation, Results, Status, Verdict
from agent.plugin import EVENT, Rule


def diagnose(results: Results, now: Moment) -> Iterable[Finding]:
    """Loading for too long, by the engine's own account."""
    for probe in results.of("engine.progress"):
        loading_s = float(probe.value("loading_s") or 0.0)
        limit_s = float(probe.value("load_timeout_s") or 0.0)
        if probe.verdict is Verdict.LOADING and 0 < limit_s < loading_s:
            name = probe.subject.removeprefix("engine:")
            yield Finding(
                id="engine-loading-too-long",
                subject=probe.subject,
                status=Status.CRITICAL,
                summary=f"{name} has been loading for {loading_s:.0f} s; {limit_s:.0f} s are allowed",
                evidence=(Observation("evidence", probe.summary),),
                results=((probe.check, probe.subject),),
                explains=(("engine.alive", probe.subject), ("engine.generates", probe.subject)),
                since=probe.at.wall - loading_s,
            )


RULE = Rule(
    id="engine-loading-too-long",
    title="The engine loads for too long",
    reads=("engine.progress",),
    explainers=("host.disk",),
    confirm=EVENT,
    diagnose=diagnose,
    manual=True,
    expected_in_change=True,
)
