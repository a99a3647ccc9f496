"""The engine crashes again and again, and systemd starts it each time: it serves nobody for long.

Three crashes within ten minutes. Holdfast does not join in: another restart would be one more of the same. What to do:
read the quoted line; it is the reason. A binary that does not fit the driver must be rebuilt, a model that does not fit
the memory must be changed.
"""

from __future__ import annotations

from collections.abc import Iterable

from agent.model import Finding, Moment, Observation, Results, Status, Verdict
from agent.plugin import Confirm, Rule
from agent.rules._gpu import last_words

CRASHES = 3
WITHIN_S = 600.0
"""Three crashes within ten minutes are a loop: fewer may be bad luck; systemd gives up after five in ten seconds."""

GIVE_UP_S = 15.0
"""By default systemd gives up after five starts within ten seconds; then the engine is dead, which is another cause."""


def diagnose(results: Results, now: Moment) -> Iterable[Finding]:
    """A unit that keeps crashing while systemd keeps it going; one that lies dead is `engine-dead`."""
    for unit in results.of("engine.unit"):
        times = [float(at) for at in unit.value("crash.times") or () if 0 <= now.wall - float(at) < WITHIN_S]
        # systemd counts afresh with every start that is not its own: what was before a start by hand is over.
        by_hand = not int(unit.value("unit.n_restarts") or 0)
        if len(times) < CRASHES or by_hand or unit.verdict in (Verdict.DEAD, Verdict.STOPPED):
            continue
        name = unit.subject.removeprefix("engine:")
        line = str(unit.value("failure.text") or unit.value("unit.failure") or "")
        quoted = (f': "{line}"' if line else "") + last_words(results, unit.subject, now, times[-1])
        yield Finding(
            id="engine-crash-loop",
            subject=unit.subject,
            status=Status.CRITICAL,
            summary=f"{name} crashed {len(times)} times in {WITHIN_S / 60:.0f} min{quoted}",
            evidence=(Observation("evidence", str(unit.value("failure.meaning") or unit.summary)),),
            results=((unit.check, unit.subject),),
            explains=tuple((check, unit.subject) for check in ("engine.progress", "engine.alive", "engine.unit")),
            since=times[0],
            signature=str(unit.value("failure.cause") or ""),
        )


RULE = Rule(
    id="engine-crash-loop",
    title="The engine crashes again and again",
    reads=("engine.unit", "gpu.xid"),
    explainers=("gpu.xid",),
    confirm=Confirm(for_s=GIVE_UP_S, clear_s=30.0),
    diagnose=diagnose,
    manual=True,
    expected_in_change=True,
)
