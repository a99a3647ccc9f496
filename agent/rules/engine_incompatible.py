"""The engine's program does not fit this machine any more: only another build, or another driver, can help.

It was built for another GPU or processor, with a newer CUDA toolkit than the driver, or against libraries that are
gone. No restart helps, so none is tried; and as building disturbs nobody, it is told at once, also while systemd goes
on starting the engine in vain. What to do: Holdfast rebuilds it by itself where `[engine.rebuild]` is configured; the
page for hands is `holdfast runbook print rebuild-llama-cpp`. Where only the driver has changed, the driver can be put
back instead. Where nothing is configured, install a build that fits, and start the unit.
"""

from __future__ import annotations

from collections.abc import Iterable

from agent.model import CheckResult, Finding, Moment, Observation, Results, Status, Verdict
from agent.plugin import Confirm, Rule
from agent.rules._releases import way_back

WITHIN_S = 600.0
"""A crash older than this says nothing about a unit that systemd has started again since."""
CLEAR_S = 30.0
"""A unit that systemd starts again and again looks well for some seconds each time."""
AGAIN = 2
"""Of an illegal instruction, or of an engine that seems to serve, one death may be bad luck; a second one is not."""
SERVING = (Verdict.READY, Verdict.BUSY, Verdict.SLEEPING, Verdict.DEGRADED)
ILLEGAL = "SIGILL"


def diagnose(results: Results, now: Moment) -> Iterable[Finding]:
    """A unit that is down, or goes down again and again, for a reason that lies in its program."""
    for unit in results.of("engine.unit"):
        why = _why(unit, now)
        if not why or not _down(results, unit, now) or way_back(results, unit.subject, now):
            continue  # an earlier release is put back in seconds: see release-failing
        text, meaning = why
        driver = results.one("driver.lock", "host")
        other = driver.summary if driver is not None and driver.status is Status.CRITICAL else ""
        yield Finding(
            id="engine-incompatible",
            subject=unit.subject,
            status=Status.CRITICAL,
            summary=f'{unit.subject.removeprefix("engine:")} does not fit this machine: "{text}"',
            evidence=(Observation("evidence", f"{meaning} The driver: {other}." if other else meaning),),
            results=((unit.check, unit.subject),),
            explains=tuple(
                (check, unit.subject)
                for check in ("engine.unit", "engine.progress", "engine.alive", "engine.generates")
            ),
            since=unit.value("crash.last_at"),
            signature=str(unit.value("failure.cause") or "illegal-instruction"),
        )


def _why(unit: CheckResult, now: Moment) -> tuple[str, str] | None:
    """The line that says it, and what it means; None where the reason lies elsewhere, or nobody knows."""
    if unit.value("failure.cure") == "rebuild":
        return str(unit.value("failure.text")), str(unit.value("failure.meaning"))
    ended = str(unit.value("unit.failure") or "")
    if ILLEGAL not in ended or unit.value("failure.cause") or len(_recent(unit, now)) < AGAIN:
        return None
    return (
        ended,
        "The processor does not know an instruction of this build, which was made for another one. Rebuild it.",
    )


def _down(results: Results, unit: CheckResult, now: Moment) -> bool:
    """Whether it serves nobody now, or not for long."""
    if unit.verdict is Verdict.STOPPED:
        return False
    if unit.verdict is Verdict.DEAD and not unit.value("unit.pending"):
        return True
    # systemd counts afresh with every start that is not its own: what was before a start by hand is over.
    crashes = _recent(unit, now) if int(unit.value("unit.n_restarts") or 0) else []
    probe = results.one("engine.progress", unit.subject)
    serves = probe is not None and probe.verdict in SERVING
    return len(crashes) >= (AGAIN if serves else 1)


def _recent(unit: CheckResult, now: Moment) -> list[float]:
    return [float(at) for at in unit.value("crash.times") or () if 0 <= now.wall - float(at) < WITHIN_S]


RULE = Rule(
    id="engine-incompatible",
    title="The engine does not fit this machine",
    reads=("engine.unit", "engine.progress", "engine.release", "driver.lock"),
    explainers=("engine.unit", "engine.progress", "engine.release", "driver.lock"),
    confirm=Confirm(clear_s=CLEAR_S),
    diagnose=diagnose,
    expected_in_change=True,
)
