"""Whether an engine answers at all, and as what: version, models, loading, asleep.

This is the slow look that also names what `engine.progress` does not care about: a server that refuses our API key,
or shows no counters, can only be judged by a token.
"""

from __future__ import annotations

from collections.abc import Iterable

from agent.errors import HostError, InternalError
from agent.host import Host, stops, systemd
from agent.model import EngineState, Judgement, Observation, Observed, Status, Verdict
from agent.plugin import Check, NoParameters, Target


def observe(host: Host, target: Target, before: Observed | None) -> Iterable[Observation]:
    """One passive look; systemd is asked only when nothing listens."""
    if target.engine is None:
        raise InternalError("engine.alive was given no engine")
    sample = target.engine.sample(host, target.settings)
    yield Observation("answer.state", str(sample.state))
    yield Observation("answer.detail", sample.detail)
    yield Observation("answer.unanswered", list(sample.unanswered))
    yield Observation("models", list(sample.models))
    yield Observation("version", sample.version)
    yield Observation("pending", sample.pending)
    yield Observation("known", sample.answered or bool(before is not None and before.value("known")))
    yield Observation("seen", sample.state is EngineState.SLEEPING or sample.pending is not None)
    yield Observation("loading_s", _loading_s(host, sample.state, before), "s")
    if sample.state is EngineState.REFUSED and target.unit is not None:
        yield from _unit(host, target.unit)


def _loading_s(host: Host, state: EngineState, before: Observed | None) -> float:
    """For how long it has been loading, as far as this check has seen it; seconds."""
    if state is not EngineState.LOADING or before is None or before.value("answer.state") != EngineState.LOADING:
        return 0.0
    return float(before.value("loading_s") or 0.0) + host.clock.now().since(before.at)


def _unit(host: Host, unit: str) -> Iterable[Observation]:
    try:
        state = systemd.unit_state(host, unit)
    except HostError:
        return
    yield Observation("unit.active", state.active_state)
    yield Observation("unit.pending", state.job or state.active_state == "activating")
    yield Observation("process.alive", state.main_pid > 0)
    operator, how = stops.operators_hand(host, state)
    yield Observation("unit.operator", operator)
    yield Observation("unit.operator_how", how)
    yield Observation("unit.failure", stops.how_it_ended(state))


def judge(now: Observed, before: Observed | None, params: NoParameters) -> Judgement:
    """The verdict's status; an engine that answers and shows no counters is a blind spot worth a warning."""
    verdict = now.verdict or Verdict.UNKNOWN
    models = ", ".join(now.value("models") or ())
    version = str(now.value("version") or "")
    if verdict is Verdict.READY and not now.value("seen"):
        return Judgement(Status.WARNING, str(now.value("answer.detail") or "its progress cannot be seen"))
    what = " ".join(part for part in (models, f"({version})" if version else "") if part)
    return Judgement(verdict.status, now.reason + (f"; {what}" if what and verdict is Verdict.READY else ""))


CHECK = Check(id="engine.alive", scope="engine", every_s=60.0, timeout_s=10.0, observe=observe, judge=judge)
