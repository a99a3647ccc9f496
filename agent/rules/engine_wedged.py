"""The engine accepts requests but produces no tokens, and it is not busy.

Its health endpoint may well answer 200. The evidence is one of three: the inference thread has not run at all while a
question or a request waits for it (stillness); it runs, but nothing has progressed for a very long time (spinning); or
the one-token canary got nothing several times although a slot was free. What to do: restart it; a wedged server ignores
SIGTERM, so the runbook kills it after a short grace.
"""

from __future__ import annotations

from collections.abc import Iterable

from agent.model import CheckResult, Finding, Moment, Observation, Results, Verdict
from agent.plugin import EVENT, Rule
from agent.rules._gpu import last_words


def diagnose(results: Results, now: Moment) -> Iterable[Finding]:
    """Wedged by the passive probe, or by the canary."""
    told: set[str] = set()
    for check in ("engine.progress", "engine.generates"):
        for result in results.of(check):
            if result.verdict is Verdict.WEDGED and result.subject not in told:
                told.add(result.subject)
                yield _finding(result, last_words(results, result.subject, now))


def _finding(result: CheckResult, kernel: str) -> Finding:
    name = result.subject.removeprefix("engine:")
    pending = result.value("pending")
    waiting = f", {pending} waiting" if pending else ""
    return Finding(
        id="engine-wedged",
        subject=result.subject,
        status=Verdict.WEDGED.status,
        summary=f"{name} accepts requests but produces no tokens{waiting}{kernel}",
        evidence=(Observation("evidence", result.summary),),
        results=((result.check, result.subject),),
        explains=tuple((check, result.subject) for check in ("engine.alive", "engine.generates", "engine.progress")),
        since=result.at.wall - float(result.value("stalled_s") or result.value("still_s") or 0.0),
        signature="wedged",
    )


# The verdict already rests on two looks at least five seconds apart (agent/verdict.py), so it is believed at once.
RULE = Rule(
    id="engine-wedged",
    title="The engine is wedged",
    reads=("engine.progress", "engine.generates", "gpu.xid"),
    explainers=("engine.unit", "driver.lock", "engine.blocked", "gpu.xid"),
    confirm=EVENT,
    diagnose=diagnose,
    expected_in_change=True,
)
