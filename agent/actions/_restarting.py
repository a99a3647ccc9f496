"""How an engine's unit is stopped for good and started, shared by every action that restarts one.

Stop, a short grace, SIGKILL, empty control group, free VRAM, start. A control group that does not empty is D state, a
hung GPU: the engine is not started on top of it. The stop is announced to systemd first, so that `Restart=` does not
race with us, and noted for the checks, so that it is not taken for an operator's. Never a daemon-reload: it detaches
GPUs from running containers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from agent.errors import FileTrouble
from agent.host import Host, interlock, nvml, process, stops, systemd
from agent.host.systemd import UnitState
from agent.model import Json
from agent.plugin import Command, Condition, Plan, PlanStep, Refuse, Target, Wait, WriteFile

KILL_S = 30.0
"""How long processes may take to vanish after SIGKILL; longer is D state.

Freeing tens of GB of pinned memory takes seconds, not half a minute.
"""
VRAM_S = 30.0
"""How long the driver may take to give back the memory of processes that are gone."""
SYSTEMCTL_S = 20.0
"""How long one systemctl call may take; none of ours waits for a job."""
SETTLE_S = 30.0
"""How long to wait for a unit that is in the middle of ending by itself."""
STOPPED = ("inactive", "failed")


def noted_before(host: Host, state: UnitState) -> dict[str, Json]:
    """What must be known later of the unit as it is now. Raises FileTrouble."""
    now = host.clock.now()
    return {
        "unit": state.unit,
        "invocation_id": state.invocation_id,
        "active": state.active_state,
        "disabled": state.unit_file_state == "disabled",
        "control_group": state.control_group,
        "pids": list(processes(host, state.control_group)),
        "mark": f"{now.boot_id}/{now.boot_s:.3f}",
    }


def refuse(reason: str, code: str) -> Plan:
    """A plan that only refuses."""
    return Plan((Refuse(reason, code),))


def out_of_service(host: Host, state: UnitState) -> Refuse | None:
    """Why this unit is not ours to start: it is missing, or an operator keeps it from running; None when it is."""
    if state.load_state == "not-found":
        return Refuse(f"systemd knows no {state.unit}", "no-unit")
    if masked(state):
        return Refuse(f"{state.unit} is masked by an operator", "operator-masked")
    operators, how = stops.operators_hand(host, state)
    if operators:
        return Refuse(f"{state.unit} is {how}", f"operator-{how.partition(' ')[0]}")
    return None


def masked(state: UnitState) -> bool:
    """Whether the unit is masked."""
    return state.load_state == "masked" or state.unit_file_state.startswith("masked")


def taken(state: UnitState, before: Mapping[str, Json]) -> bool:
    """Whether an operator has taken the unit out of service since the plan was made."""
    return masked(state) or (state.unit_file_state == "disabled" and not before.get("disabled"))


def processes(host: Host, group: str) -> tuple[int, ...]:
    """Every process of the unit. Raises FileTrouble: a control group that cannot be seen is not an empty one."""
    return process.cgroup_pids(host, group) if group else ()


def note(unit: str, content: str | Callable[[Host], str]) -> WriteFile:
    """The note that a stop of this unit is ours."""
    return WriteFile(f"{stops.OUR_STOPS}/{unit}.json", content, 0o640)


def noted(host: Host, unit: str) -> Mapping[str, Json]:
    """What we noted of our last stop of this unit; empty when there is nothing readable."""
    try:
        said = json.loads(host.files.read_text(f"{stops.OUR_STOPS}/{unit}.json", 4096))
    except (FileTrouble, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


def line(entry: Mapping[str, Json]) -> str:
    """One note as the file's text."""
    return json.dumps(dict(entry)) + "\n"


def stop(host: Host, target: Target, state: UnitState, before: Mapping[str, Json]) -> list[PlanStep]:
    """Say that the stop is ours, ask, and after the grace kill the whole control group."""
    return [
        note(state.unit, line({"invocation_id": before["invocation_id"], "at": host.clock.now().wall})),
        Command(("systemctl", "stop", "--no-block", state.unit), SYSTEMCTL_S),
        *kill(state.unit, state.control_group, target.settings.stop_grace_s),
    ]


def kill(unit: str, group: str, grace_s: float) -> list[PlanStep]:
    """Wait for the grace, kill what is left, and make sure that nothing is. group: "" for the unit's of that moment."""
    empty = Condition(
        f"{unit} has no process left",
        lambda host: not processes(host, group or systemd.unit_state(host, unit).control_group),
        ("systemd-cgls", "--unit", unit),
    )
    # systemctl kill fails when the last process has just gone (1); the wait that follows is what counts.
    killed = Command(("systemctl", "kill", "--signal=SIGKILL", unit), SYSTEMCTL_S, accept=(0, 1))
    why = f"processes of {unit} survive SIGKILL: D state, the GPU or a disk hangs; not started on top of them"
    return [
        Wait(empty, grace_s, on_timeout=killed),
        Wait(empty, KILL_S, why=why, code="gpu-hung"),
        Wait(ended(unit), KILL_S, why=f"systemd does not finish stopping {unit}", code="stop-unfinished"),
    ]


def ended(unit: str) -> Condition:
    """Systemd has seen the unit end."""
    return Condition(
        f"systemd has seen {unit} end",
        lambda host: systemd.unit_state(host, unit).active_state in STOPPED,
        ("systemctl", "show", "--property=ActiveState", unit),
    )


def start(host: Host, target: Target, before: Mapping[str, Json], pids: tuple[int, ...]) -> list[PlanStep]:
    """Make sure that nothing is left of the old one, on the GPU either, and start, once: the note says so."""
    unit, invocation = str(before["unit"]), str(before["invocation_id"])
    entry = {"invocation_id": invocation, "at": host.clock.now().wall, "started": before["mark"]}
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
        lambda host: not taken(systemd.unit_state(host, unit), before),
        ("systemctl", "is-enabled", unit),
    )
    return [
        *steps,
        # 1: systemd has already forgotten a unit that is not loaded, so nothing is left to reset.
        Command(("systemctl", "reset-failed", unit), SYSTEMCTL_S, accept=(0, 1)),
        # The plan is older than the stop: an operator may have made up her mind since.
        Wait(wanted, 0.0, why=f"{unit} was disabled or masked meanwhile, so it stays down", code="operator-disabled"),
        Command(("systemctl", "start", "--no-block", unit), SYSTEMCTL_S),
        note(unit, line(entry)),
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


# --- a unit that may be in the middle of something ------------------------------------------------------------


def renew(host: Host, target: Target, state: UnitState, before: Mapping[str, Json]) -> list[PlanStep]:
    """Stop whatever the unit does and start it, also where systemd keeps starting it in vain.

    Such a unit is another one at every look, so who has just been stopped is noted when its turn comes. An operator who
    stops it in between wins.
    """
    unit, group = state.unit, state.control_group

    def entry(host: Host) -> str:
        now = systemd.unit_state(host, unit)
        return line({"invocation_id": now.invocation_id, "at": host.clock.now().wall})

    settled = Condition(
        f"{unit} is not in the middle of ending",
        lambda host: systemd.unit_state(host, unit).active_state not in ("deactivating", "reloading"),
        ("systemctl", "show", "--property=ActiveState", unit),
    )
    free = Condition(f"no operator has stopped {unit}", lambda host: nobody_stopped(host, unit, before))
    pids = tuple(int(pid) for pid in before.get("pids") or ())
    return [
        Wait(settled, SETTLE_S, why=f"{unit} does not finish ending", code="stop-unfinished"),
        Wait(free, 0.0, why=f"{unit} was stopped by an operator, so it stays as it is", code="operator-stopped"),
        note(unit, entry),
        Command(("systemctl", "stop", "--no-block", unit), SYSTEMCTL_S),
        *kill(unit, group, target.settings.stop_grace_s),
        note(unit, entry),
        *start(host, target, before, pids),
    ]


def nobody_stopped(host: Host, unit: str, before: Mapping[str, Json]) -> bool:
    """Whether no operator keeps the unit from running. One that was disabled before, and ran, does not count."""
    state = systemd.unit_state(host, unit)
    if before.get("disabled") and not masked(state):
        return True
    operators, _ = stops.operators_hand(host, state)
    return operators is not True
