"""Prove that every engine that is meant to run generates tokens: each is asked for one, or its users get theirs.

An engine that an operator has stopped, disabled or masked is not asked, and named. One that is down by itself is a
refusal at once; one that loads is waited for. Nothing is restarted here: during a planned change that is the person's
who is at it, and the refusal says what to type.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from agent.actions._proving import Users, generates
from agent.errors import HostError
from agent.host import Host, stops, systemd
from agent.model import Risk
from agent.plugin import Action, Condition, Noop, Parameters, Plan, PlanStep, Read, Refuse, Target, Wait

SILENT_S = 120.0
"""A server that is ready with a free slot and gives no token for so long hangs: one batch may take
41 s where weights lie in the main memory."""
PAUSE_S = 1.0
"""Between two questions to an engine that loads or whose slots are all taken."""


class EngineProveParameters(Parameters):
    """How patient to be."""

    within_s: float = Field(default=300.0, gt=0, le=86400)
    """How long each engine may take until its token, seconds; loading a large model takes minutes."""


def plan(host: Host, target: Target, params: Any) -> Plan:
    """One wait for each engine that is meant to run; a refusal that names every engine that is down."""
    steps: list[PlanStep] = []
    down: list[str] = []
    asked: list[str] = []
    left: list[str] = []
    at_hand = bool(target.engines)
    for each in target.engines or (target,):
        if each.engine is None or each.settings is None:
            continue
        name = each.settings.name
        skipped, fault = _state(host, each)
        if fault and at_hand:  # a run on the engine itself starts it first
            down.append(f"{name} does not run: {fault}; {way_out(each)}")
        elif skipped:
            left.append(f"{name} is {skipped}")
        else:
            asked.append(name)
            steps.append(_proof(each, params.within_s, at_hand=at_hand))
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
    again = f"sudo systemctl restart {target.unit}"
    if getattr(target.settings, "rebuild", None) is None:
        return f"{again} (or rebuild it for the new driver), then try again"
    page = f"holdfast runbook print rebuild-llama-cpp --engine {target.settings.name}"
    return f"{again} (or rebuild it for the new driver, by hand: {page}), then try again"


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


def _proof(target: Target, within_s: float, *, at_hand: bool) -> Wait:
    name, seen, starts = target.settings.name, Users(), dict[str, int]()
    proven = Condition(f"{name} generates a token", lambda host: _generates(host, target, seen, starts, at_hand))
    why = f"{name} generated no token within {within_s:g} s{_advice(target, at_hand)}"
    return Wait(proven, within_s, why=why, code=f"no-token-{name}")


def _advice(target: Target, at_hand: bool) -> str:
    """What to type, where a person is at it; a run on the engine itself goes on by itself."""
    return f"; {way_out(target)}" if at_hand else ""


def _generates(host: Host, target: Target, seen: Users, starts: dict[str, int], at_hand: bool) -> bool:
    """Whether it has just generated a token. Raises HostError when it went down, or is ready and stays silent."""
    name = target.settings.name
    _, fault = _state(host, target)
    fault = fault or _crashed(host, target, starts)
    if fault:
        raise HostError(f"{name} went down: {fault}{_advice(target, at_hand)}", code="engine-down")
    if generates(host, target, seen):
        return True
    if seen.silent_since is not None and host.clock.now().since(seen.silent_since) >= SILENT_S:
        words = f"{name} is ready, and generated no token for {SILENT_S:g} s{_advice(target, at_hand)}"
        raise HostError(words, code=f"no-token-{name}")
    host.clock.sleep(PAUSE_S)
    return False


def _crashed(host: Host, target: Target, starts: dict[str, int]) -> str:
    """How it has crashed since the first look, "" when it has not: waiting longer for such an engine proves nothing."""
    if target.unit is None:
        return ""
    state = systemd.unit_state(host, target.unit)
    first = starts.setdefault(target.unit, state.n_restarts)
    crashes = state.n_restarts - first + (1 if state.sub_state.startswith("auto-restart") else 0)
    return f"{target.unit} crashed, and systemd starts it again" if crashes > 0 else ""


ACTION = Action(id="engine.prove", params=EngineProveParameters, risk=Risk.NONE, plan=plan)
