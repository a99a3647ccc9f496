"""Prove that every engine that is meant to run generates tokens: each is asked for one, or its users get theirs.

An engine that an operator has stopped, disabled or masked is not asked, and named. One that is down by itself is a
refusal at once; one that loads is waited for. Nothing is restarted here: during a planned change that is the person's
who is at it, and the refusal says what to type.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from agent.errors import HostError
from agent.host import Host, stops, systemd
from agent.model import Risk, Sample
from agent.plugin import Action, Condition, Noop, Parameters, Plan, PlanStep, Read, Refuse, Target, Wait

CANARY_S = 20.0
"""How long one question may take: as long as the check engine.generates gives it."""
PAUSE_S = 1.0
"""Between two questions to an engine that loads or whose slots are all taken."""


class EngineProveParameters(Parameters):
    """How patient to be."""

    within_s: float = Field(default=300.0, gt=0, le=1800)
    """How long each engine may take until its token, seconds; loading a large model takes minutes."""


def plan(host: Host, target: Target, params: Any) -> Plan:
    """One wait for each engine that is meant to run; a refusal that names every engine that is down."""
    steps: list[PlanStep] = []
    down: list[str] = []
    asked: list[str] = []
    left: list[str] = []
    for each in target.engines or (target,):
        if each.engine is None or each.settings is None:
            continue
        name = each.settings.name
        skipped, fault = _state(host, each)
        if fault:
            down.append(f"{name} does not run: {fault}; {way_out(each)}")
        elif skipped:
            left.append(f"{name} is {skipped}")
        else:
            asked.append(name)
            steps.append(_proof(each, params.within_s))
    if down:
        return Plan((Refuse("; ".join(down), "engine-down"),))
    if not asked and not left:
        return Plan((Noop("no engine is configured"),))
    words = f"tokens from {', '.join(asked)}" if asked else "no engine is meant to run"
    done = Read("engines that were proven", lambda _: {"proven": asked, "left_out": left})
    return Plan((*steps, done, Noop("; ".join((words, *(f"not asked: {each}" for each in left))))))


def way_out(target: Target) -> str:
    """What a person types to get this engine to generate again."""
    if target.unit is None:
        return "start it where it runs"
    return f"sudo systemctl restart {target.unit} (or rebuild it for the new driver), then try again"


def _state(host: Host, target: Target) -> tuple[str, str]:
    """Whose hand keeps it from running, "" for nobody's; and why it is down by itself, "" when it is not.

    Raises HostError.
    """
    if target.unit is None:
        return "", ""
    state = systemd.unit_state(host, target.unit)
    if state.active_state not in ("inactive", "failed") or state.job:
        return "", ""
    stopped, how = stops.operators_hand(host, state)
    if stopped:
        return how, ""
    return "", f"{target.unit} is {state.active_state}"


def _proof(target: Target, within_s: float) -> Wait:
    name, seen = target.settings.name, _Users()
    proven = Condition(f"{name} generates a token", lambda host: _generates(host, target, seen))
    why = f"{name} generated no token within {within_s:g} s: {way_out(target)}"
    return Wait(proven, within_s, why=why, code=f"no-token-{name}")


class _Users:
    """The last look at an engine whose slots are all taken: the next one shows whether its users get tokens."""

    def __init__(self) -> None:
        self.last: Sample | None = None


def _generates(host: Host, target: Target, seen: _Users) -> bool:
    """Whether it has just generated a token, for us or for somebody else. Raises HostError when it went down."""
    if target.engine is None:
        return False
    _, fault = _state(host, target)
    if fault:
        raise HostError(f"{target.settings.name} went down: {fault}; {way_out(target)}", code="engine-down")
    canary = target.engine.canary(host, target.settings, CANARY_S)
    if canary.tokens >= 1:
        return True
    if canary.refused:
        now = target.engine.sample(host, target.settings)
        if seen.last is not None and seen.last.generated_until(now):
            return True
        seen.last = now if now.progress else seen.last
    host.clock.sleep(PAUSE_S)
    return False


ACTION = Action(id="engine.prove", params=EngineProveParameters, risk=Risk.NONE, plan=plan)
