"""Whether an engine generates a token: the only proof that it works.

The token is asked for only where it disturbs nobody: with a free slot, not while loading or asleep, one at a time.
Where every slot is taken, tokens that are generated for the users between two looks prove as much.
"""

from __future__ import annotations

from collections.abc import Iterable

from agent.errors import InternalError
from agent.host import Host
from agent.model import EngineState, Judgement, Observation, Observed, Sample, Status, Verdict
from agent.plugin import Check, NoParameters, Target

TIMEOUT_S = 30.0
CANARY_TIMEOUT_S = 20.0
BETWEEN_LOOKS_S = 1.0
"""A busy server generates several tokens a second; prefill of a long prompt is waited for by asking again later."""
LOOKS = 5


def observe(host: Host, target: Target, before: Observed | None) -> Iterable[Observation]:
    """Ask for one token; where it would have to wait, look whether others get theirs."""
    if target.engine is None:
        raise InternalError("engine.generates was given no engine")
    canary = target.engine.canary(host, target.settings, CANARY_TIMEOUT_S)
    flow = False
    if canary.refused:
        state, flow = _tokens_flow(host, target)
        yield Observation("answer.state", str(state))
    missed = canary.tokens < 1 and not canary.refused
    misses = int(before.value("canary.misses") or 0) if before is not None else 0
    yield Observation("canary.tokens", canary.tokens)
    yield Observation("canary.duration_s", canary.duration_s, "s")
    yield Observation("canary.refused", canary.refused)
    yield Observation("canary.detail", canary.detail)
    yield Observation("canary.misses", misses + 1 if missed else misses if canary.refused and not flow else 0)
    yield Observation("tokens_flow", flow)
    yield Observation("proven", canary.tokens >= 1 or flow)


def _tokens_flow(host: Host, target: Target) -> tuple[EngineState, bool]:
    """What the engine says of itself, and whether its own counters of generated tokens move."""
    if target.engine is None:
        return EngineState.SILENT, False
    last: Sample | None = None
    state = EngineState.SILENT
    for look in range(LOOKS):
        if look:
            host.clock.sleep(BETWEEN_LOOKS_S)
        now = target.engine.sample(host, target.settings)
        state = now.state
        if now.state is not EngineState.SILENT and not now.unanswered and not now.pending:
            break  # nobody waits for a token: a slot is free, or it does not serve at all
        if last is not None and last.generated_until(now):
            return state, True
        last = now if now.progress else last  # a busy server may leave one question unanswered
    return state, False


def judge(now: Observed, before: Observed | None, params: NoParameters) -> Judgement:
    """OK only with tokens: an engine that loads, sleeps or has no free slot has proven nothing."""
    verdict = now.verdict or Verdict.UNKNOWN
    if now.value("proven"):
        return Judgement(Status.OK, now.reason)
    status = Status.UNKNOWN if verdict.status is Status.OK else verdict.status
    return Judgement(status, now.reason)


CHECK = Check(
    id="engine.generates",
    scope="engine",
    every_s=0.0,
    own_every_s="idle_canary_s",
    timeout_s=TIMEOUT_S,
    observe=observe,
    judge=judge,
)
