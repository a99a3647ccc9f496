"""Restart an engine so that it really starts: stop, a short grace, SIGKILL, empty cgroup, free VRAM, start.

Stopping is part of restarting. A wedged server ignores SIGTERM, so after the grace its whole control group is killed.
A control group that does not empty is D state, a hung GPU: the engine is not started on top of it. The stop is
announced to systemd first, so that `Restart=` does not race with us, and noted for the checks, so that it is not taken
for an operator's. Never a daemon-reload: it detaches GPUs from running containers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agent.actions import _restarting as restarting
from agent.actions._restarting import STOPPED
from agent.host import Host, stops, systemd
from agent.host.systemd import UnitState
from agent.model import Json, Risk
from agent.plugin import Action, EngineParameters, Noop, Plan, PlanStep, Refuse, Target


def plan(host: Host, target: Target, params: Any) -> Plan:
    """Stop what runs, for good, and start it; or why that must not be done now."""
    unit = target.unit
    if unit is None:
        reason = f"{params.engine} has no unit here: it is watched, and restarted by whoever runs it"
        return restarting.refuse(reason, "no-unit")
    state = systemd.unit_state(host, unit)
    refusal = _hands_off(host, state)
    if refusal is not None:
        return Plan((refusal,))
    before = restarting.noted_before(host, state)
    pids = tuple(before["pids"])
    steps: list[PlanStep] = []
    if state.active_state not in STOPPED or pids:
        steps += restarting.stop(host, target, state, before)
    return Plan((*steps, *restarting.start(host, target, before, pids)), before)


def undo(host: Host, target: Target, params: Any, before: Mapping[str, Json]) -> Plan:
    """The right end of a cut-off restart is an engine that runs, unless an operator wants otherwise."""
    unit = str(before["unit"])
    state = systemd.unit_state(host, unit)
    if state.invocation_id and state.invocation_id != before.get("invocation_id"):
        return Plan((Noop(f"{unit} has been started since"),))
    if restarting.noted(host, unit).get("started") == before.get("mark"):
        return Plan((Noop(f"{unit} was started, and has ended again"),))
    if state.active_state == "active" and not state.job:
        return Plan((Noop(f"{unit} was not stopped yet", untouched=True),))
    if state.active_state == "activating":
        return Plan((Noop(f"{unit} is starting"),))
    if restarting.masked(state):
        return restarting.refuse(f"{unit} is masked by an operator, so it stays as it is", "operator-masked")
    if restarting.taken(state, before):
        reason = f"{unit} was disabled by an operator meanwhile, so it stays as it is"
        return restarting.refuse(reason, "operator-disabled")
    if not state.job and not before.get("disabled"):
        operators, how = stops.operators_hand(host, state)
        if operators:
            return restarting.refuse(f"{unit} was {how}, so it stays as it is", "operator-stopped")
    group = state.control_group or str(before.get("control_group", ""))
    known = tuple(int(pid) for pid in before.get("pids") or ())
    stopping = state.active_state not in STOPPED or bool(restarting.processes(host, group))
    steps = restarting.kill(unit, group, 0.0) if stopping else []
    return Plan((*steps, *restarting.start(host, target, before, known)))


def _hands_off(host: Host, state: UnitState) -> Refuse | None:
    """Why this unit must not be touched now, None when it may be."""
    refusal = restarting.out_of_service(host, state)
    if refusal is not None:
        return refusal
    if state.job:
        return Refuse(f"{state.unit} has a job queued: systemd is at work", "unit-busy", 5.0)
    if state.active_state in ("activating", "deactivating", "reloading"):
        return Refuse(f"{state.unit} is {state.active_state} ({state.sub_state})", "unit-busy", 5.0)
    return None


ACTION = Action(id="engine.restart", params=EngineParameters, risk=Risk.SERVICE, plan=plan, undo=undo)
