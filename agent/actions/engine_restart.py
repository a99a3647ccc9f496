"""Restart an engine so that it really starts: stop, a short grace, SIGKILL, empty cgroup, free VRAM, start.

Stopping is part of restarting. A wedged server ignores SIGTERM, so after the grace its whole control group is killed.
A control group that does not empty is D state, a hung GPU: the engine is not started on top of it. The stop is
announced to systemd first, so that `Restart=` does not race with us, and noted for the checks, so that it is not taken
for an operator's. Never a daemon-reload: it detaches GPUs from running containers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import Field

from agent.errors import FileTrouble
from agent.host import Host, interlock, nvml, process, stops, systemd
from agent.host.systemd import UnitState
from agent.model import Json, Risk
from agent.plugin import Action, Command, Condition, Noop, Parameters, Plan, PlanStep, Refuse, Target, Wait, WriteFile

KILL_S = 30.0
"""How long processes may take to vanish after SIGKILL; longer is D state.

Freeing tens of GB of pinned memory takes seconds, not half a minute.
"""
VRAM_S = 30.0
"""How long the driver may take to give back the memory of processes that are gone."""
SYSTEMCTL_S = 20.0
"""How long one systemctl call may take; none of ours waits for a job."""
STOPPED = ("inactive", "failed")


class EngineRestartParameters(Parameters):
    """Which engine."""

    engine: str = Field(min_length=1)
    """The engine's name; its unit and its stop grace come from the configuration."""


def plan(host: Host, target: Target, params: Any) -> Plan:
    """Stop what runs, for good, and start it; or why that must not be done now."""
    unit = target.unit
    if unit is None:
        return _refuse(f"{params.engine} has no unit here: it is watched, and restarted by whoever runs it", "no-unit")
    state = systemd.unit_state(host, unit)
    refusal = _hands_off(host, state)
    if refusal is not None:
        return Plan((refusal,))
    pids, now = _processes(host, state.control_group), host.clock.now()
    before: dict[str, Json] = {
        "unit": unit,
        "invocation_id": state.invocation_id,
        "active": state.active_state,
        "disabled": state.unit_file_state == "disabled",
        "control_group": state.control_group,
        "pids": list(pids),
        "mark": f"{now.boot_id}/{now.boot_s:.3f}",
    }
    steps: list[PlanStep] = []
    if state.active_state not in STOPPED or pids:
        steps += _stop(host, target, state, before)
    return Plan((*steps, *_start(host, target, before, pids)), before)


def undo(host: Host, target: Target, params: Any, before: Mapping[str, Json]) -> Plan:
    """The right end of a cut-off restart is an engine that runs, unless an operator wants otherwise."""
    unit = str(before["unit"])
    state = systemd.unit_state(host, unit)
    if state.invocation_id and state.invocation_id != before.get("invocation_id"):
        return Plan((Noop(f"{unit} has been started since"),))
    if _noted(host, unit).get("started") == before.get("mark"):
        return Plan((Noop(f"{unit} was started, and has ended again"),))
    if state.active_state == "active" and not state.job:
        return Plan((Noop(f"{unit} was not stopped yet", untouched=True),))
    if state.active_state == "activating":
        return Plan((Noop(f"{unit} is starting"),))
    if _masked(state):
        return _refuse(f"{unit} is masked by an operator, so it stays as it is", "operator-masked")
    if _taken(state, before):
        return _refuse(f"{unit} was disabled by an operator meanwhile, so it stays as it is", "operator-disabled")
    if not state.job and not before.get("disabled"):
        operators, how = stops.operators_hand(host, state)
        if operators:
            return _refuse(f"{unit} was {how}, so it stays as it is", "operator-stopped")
    group = state.control_group or str(before.get("control_group", ""))
    known = tuple(int(pid) for pid in before.get("pids") or ())
    stopping = state.active_state not in STOPPED or bool(_processes(host, group))
    return Plan((*(_kill(unit, group, 0.0) if stopping else ()), *_start(host, target, before, known)))


def _refuse(reason: str, code: str) -> Plan:
    return Plan((Refuse(reason, code),))


def _hands_off(host: Host, state: UnitState) -> Refuse | None:
    """Why this unit must not be touched now, None when it may be."""
    if state.load_state == "not-found":
        return Refuse(f"systemd knows no {state.unit}", "no-unit")
    if _masked(state):
        return Refuse(f"{state.unit} is masked by an operator", "operator-masked")
    if state.job:
        return Refuse(f"{state.unit} has a job queued: systemd is at work", "unit-busy", 5.0)
    if state.active_state in ("activating", "deactivating", "reloading"):
        return Refuse(f"{state.unit} is {state.active_state} ({state.sub_state})", "unit-busy", 5.0)
    operators, how = stops.operators_hand(host, state)
    if operators:
        return Refuse(f"{state.unit} is {how}", f"operator-{how.partition(' ')[0]}")
    return None


def _masked(state: UnitState) -> bool:
    return state.load_state == "masked" or state.unit_file_state.startswith("masked")


def _taken(state: UnitState, before: Mapping[str, Json]) -> bool:
    """Whether an operator has taken the unit out of service since the plan was made."""
    return _masked(state) or (state.unit_file_state == "disabled" and not before.get("disabled"))


def _processes(host: Host, group: str) -> tuple[int, ...]:
    """Every process of the unit. Raises FileTrouble: a control group that cannot be seen is not an empty one."""
    return process.cgroup_pids(host, group) if group else ()


def _note(unit: str, note: Mapping[str, Json]) -> WriteFile:
    return WriteFile(f"{stops.OUR_STOPS}/{unit}.json", json.dumps(dict(note)) + "\n", 0o640)


def _noted(host: Host, unit: str) -> Mapping[str, Json]:
    """What we noted of our last stop of this unit; empty when there is nothing readable."""
    try:
        note = json.loads(host.files.read_text(f"{stops.OUR_STOPS}/{unit}.json", 4096))
    except (FileTrouble, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


def _stop(host: Host, target: Target, state: UnitState, before: Mapping[str, Json]) -> list[PlanStep]:
    """Say that the stop is ours, ask, and after the grace kill the whole control group."""
    return [
        _note(state.unit, {"invocation_id": before["invocation_id"], "at": host.clock.now().wall}),
        Command(("systemctl", "stop", "--no-block", state.unit), SYSTEMCTL_S),
        *_kill(state.unit, state.control_group, target.settings.stop_grace_s),
    ]


def _kill(unit: str, group: str, grace_s: float) -> list[PlanStep]:
    by_hand = ("systemd-cgls", "--unit", unit)
    empty = Condition(f"{unit} has no process left", lambda host: not _processes(host, group), by_hand)
    # systemctl kill fails when the last process has just gone (1); the wait that follows is what counts.
    kill = Command(("systemctl", "kill", "--signal=SIGKILL", unit), SYSTEMCTL_S, accept=(0, 1))
    why = f"processes of {unit} survive SIGKILL: D state, the GPU or a disk hangs; not started on top of them"
    ended = Condition(
        f"systemd has seen {unit} end",
        lambda host: systemd.unit_state(host, unit).active_state in STOPPED,
        ("systemctl", "show", "--property=ActiveState", unit),
    )
    return [
        Wait(empty, grace_s, on_timeout=kill),
        Wait(empty, KILL_S, why=why, code="gpu-hung"),
        Wait(ended, KILL_S, why=f"systemd does not finish stopping {unit}", code="stop-unfinished"),
    ]


def _start(host: Host, target: Target, before: Mapping[str, Json], pids: tuple[int, ...]) -> list[PlanStep]:
    """Make sure that nothing is left of the old one, on the GPU either, and start, once: the note says so."""
    unit, invocation = str(before["unit"]), str(before["invocation_id"])
    note = {"invocation_id": invocation, "at": host.clock.now().wall, "started": before["mark"]}
    steps: list[PlanStep] = []
    if interlock.gpu_matters(host, target.settings.gpu):
        released = Condition(
            f"NVML answers, and the memory of the old {unit} is released",
            lambda host: _released(host, pids),
            ("nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv"),
        )
        why = f"NVML is silent or still sees memory of processes that are gone; {unit} is not started on such a GPU"
        steps.append(Wait(released, VRAM_S, why=why, code="gpu-hung"))
    decided = Condition(
        f"{unit} has started or failed",
        lambda host: _start_seen(systemd.unit_state(host, unit), invocation),
        ("systemctl", "is-active", unit),
    )
    alive = Condition(
        f"{unit} has not failed",
        lambda host: not _start_failed(systemd.unit_state(host, unit)),
        ("systemctl", "is-failed", unit),
    )
    wanted = Condition(
        f"{unit} is neither disabled nor masked meanwhile",
        lambda host: not _taken(systemd.unit_state(host, unit), before),
        ("systemctl", "is-enabled", unit),
    )
    return [
        *steps,
        # 1: systemd has already forgotten a unit that is not loaded, so nothing is left to reset.
        Command(("systemctl", "reset-failed", unit), SYSTEMCTL_S, accept=(0, 1)),
        # The plan is older than the stop: an operator may have made up her mind since.
        Wait(wanted, 0.0, why=f"{unit} was disabled or masked meanwhile, so it stays down", code="operator-disabled"),
        Command(("systemctl", "start", "--no-block", unit), SYSTEMCTL_S),
        _note(unit, note),
        Wait(decided, target.settings.load_timeout_s, why=f"{unit} does not become active", code="start-timeout"),
        Wait(alive, 0.0, why=f"{unit} failed right after its start"),
    ]


def _start_seen(state: UnitState, invocation: str) -> bool:
    """Whether the start that was asked for has come to an end, a good one or not."""
    if state.active_state == "active" or _start_failed(state):
        return True
    return state.active_state == "inactive" and not state.job and state.invocation_id not in ("", invocation)


def _start_failed(state: UnitState) -> bool:
    """Whether the unit has ended again. One that exited 0 at once is judged by the verification."""
    return state.active_state == "failed" or state.sub_state.startswith("auto-restart")


def _released(host: Host, pids: tuple[int, ...]) -> bool:
    answer = nvml.ask(host, interlock.NVML_DEADLINE_S)
    if answer is None or answer.code != 0:
        return False
    return not any(owner in pids for gpu in answer.gpus for owner, _ in gpu.pids)


ACTION = Action(id="engine.restart", params=EngineRestartParameters, risk=Risk.SERVICE, plan=plan, undo=undo)
