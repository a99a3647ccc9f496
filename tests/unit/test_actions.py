from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent import plugin, steps
from agent.errors import FileTrouble
from agent.host import Space, interlock
from agent.model import Json, Risk
from agent.plugin import Action, Command, Plan, Refuse, Target
from tests.support.fake_host import FakeHost, in_turn, journal, systemctl_show

DATA = Path(__file__).resolve().parents[1] / "data"
CASES = sorted(path for identifier in plugin.actions() for path in (DATA / identifier).glob("*") if path.is_dir())


def target(action: Action, **engine: Json) -> Target:
    kind = plugin.engines()["llama.cpp"]
    told = {"name": "chat", "kind": "llama.cpp", "url": "http://127.0.0.1:8080", "unit": "chat.service", **engine}
    settings = kind.settings.model_validate(told)
    return Target("engine:chat", action.params.model_validate({"engine": "chat"}), 0.0, kind, settings)


def planned(action: Action, host: FakeHost, **engine: Json) -> Plan:
    aim = target(action, **engine)
    return action.plan(host, aim, aim.params)


def refusal(plan: Plan) -> str:
    return next((step.code for step in plan.steps if isinstance(step, Refuse)), "")


@pytest.mark.parametrize("case", CASES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_an_action_plans_what_the_fixture_expects(case: Path) -> None:
    expected = json.loads((case / "expected.json").read_text())
    plan = planned(plugin.actions()[case.parent.name], FakeHost.load(case), **expected["engine"])
    lines = steps.by_hand(plan)
    assert refusal(plan) == expected["refused"], lines
    assert expected.get("said", "") in "\n".join(lines)
    if "commands" in expected:
        assert [line.partition("    #")[0] for line in lines if "systemctl" in line and "systemctl show" not in line][
            : len(expected["commands"])
        ] == expected["commands"]


@pytest.mark.parametrize("identifier", ["driver.require_consistent", "engine.restart"])
def test_an_action_has_a_fixture_that_acts_and_one_that_refuses(identifier: str) -> None:
    refused = {json.loads((case / "expected.json").read_text())["refused"] for case in (DATA / identifier).iterdir()}
    assert "" in refused
    assert len(refused) > 1


def test_only_the_restart_is_risky() -> None:
    risks = {identifier: action.risk for identifier, action in plugin.actions().items()}
    assert risks["engine.restart"] is Risk.SERVICE
    assert {risks["evidence.collect"], risks["driver.require_consistent"]} == {Risk.NONE}


# --- driver.require_consistent -------------------------------------------------------------------------------------


def test_a_driver_that_is_unreadable_is_refused_and_no_crash() -> None:
    host = FakeHost.build(files={"/sys/module/nvidia/version": FileTrouble("denied", kind="denied")})
    assert interlock.look(host, None).code == "driver-unknown"


def test_a_refusal_shows_what_was_compared() -> None:
    host = FakeHost.load(DATA / "driver.require_consistent/library-newer-than-module")
    plan = planned(plugin.actions()["driver.require_consistent"], host)
    told: list[str] = []
    performer = steps.Performer(host, progress=lambda seen: told.append(seen.words))
    with pytest.raises(steps.StepRefused) as caught:
        performer.perform(plan)
    assert caught.value.code == "driver-inconsistent"
    assert caught.value.not_before_s == 300


def test_nvml_is_asked_once() -> None:
    host = FakeHost.load(DATA / "driver.require_consistent/all-agree")
    planned(plugin.actions()["driver.require_consistent"], host)
    assert host.child.asked == ["nvml"]


# --- engine.restart ------------------------------------------------------------------------------------------------

RESTART = plugin.actions()["engine.restart"]
CGROUP = {"/sys/fs/cgroup/cgroup.controllers": "cpu"}
PROCS = "/sys/fs/cgroup/system.slice/chat.service/cgroup.procs"
DRIVER: dict[str, str] = {
    "/sys/module/nvidia/version": "580.178.04\n",
    "/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.580.178.04": "",
}


def nvml(*pids: int) -> dict[str, Json]:
    gpu = {"uuid": "GPU-1", "name": "T", "memory_used_bytes": 1, "memory_total_bytes": 2, "utilisation_percent": 0}
    return {
        "code": 0,
        "meaning": "Success",
        "driver_version": "580.178.04",
        "gpus": [{**gpu, "pids": [[p, 9] for p in pids]}],
    }


def restart_on_a_gpu(*answers: Json) -> tuple[FakeHost, Plan]:
    """A dead engine whose process 42 may still hold memory on the GPU, and the plan that starts it."""
    host = FakeHost.build(
        files={**CGROUP, PROCS: "42\n", **DRIVER},
        units={"chat.service": {}},
        commands={
            ("systemctl", "stop", ...): "",
            ("systemctl", "kill", ...): "",
            ("systemctl", "reset-failed", ...): "",
            ("systemctl", "start", ...): "",
        },
        child={"nvml": in_turn(*answers)},
    )
    plan = planned(RESTART, host)
    host.files.entries[PROCS] = ""
    shown = [
        systemctl_show("chat.service", ActiveState="inactive"),
        systemctl_show("chat.service", InvocationID="b" * 32),
    ]
    host.run.answer(("systemctl", "show", "*", "--", "chat.service"), in_turn(*shown))
    return host, plan


def started(host: FakeHost) -> bool:
    return any(call[:2] == ("systemctl", "start") for call in host.run.calls)


def test_the_engine_is_started_once_its_memory_on_the_gpu_is_free() -> None:
    host, plan = restart_on_a_gpu(nvml(42), nvml(42, 7), nvml(7))
    steps.Performer(host).perform(plan)
    assert started(host)
    assert len(host.child.asked) == 3


@pytest.mark.parametrize(
    "answer", [None, nvml(42), {"code": 15, "meaning": "lost", "driver_version": None, "gpus": []}]
)
def test_a_gpu_that_is_silent_lost_or_still_full_is_not_started_upon(answer: Json) -> None:
    host, plan = restart_on_a_gpu(answer)
    with pytest.raises(steps.StepFailed) as caught:
        steps.Performer(host).perform(plan)
    assert caught.value.code == "gpu-hung"
    assert not started(host)


def test_a_control_group_that_cannot_be_seen_is_not_an_empty_one() -> None:
    host = FakeHost.build(units={"chat.service": {}})
    with pytest.raises(FileTrouble):
        planned(RESTART, host, gpu=False)


def undo(host: FakeHost, **before: Json) -> Plan:
    assert RESTART.undo is not None
    aim = target(RESTART, gpu=False)
    known = {
        "unit": "chat.service", "invocation_id": "a" * 32, "active": "active", "disabled": False,
        "control_group": "/system.slice/chat.service", "pids": [42], "mark": "boot-1/1.0",
    }  # fmt: skip
    return RESTART.undo(host, aim, aim.params, {**known, **before})


def commands(plan: Plan) -> list[str]:
    return [step.argv[1] for step in plan.steps if isinstance(step, Command)]


NOTE = "/var/lib/holdfast-runner/stops/chat.service.json"


def stopped(note: str = "", **unit: object) -> FakeHost:
    """A unit that is down, and what the journal and our note say of its end."""
    entry = {"MESSAGE_ID": "9d1aaa27d60140bd96365438aad20286", "JOB_TYPE": "stop", "INVOCATION_ID": "a" * 32}
    return FakeHost.build(
        files={**CGROUP, **({NOTE: note} if note else {})},
        units={"chat.service": {"ActiveState": "inactive", "InvocationID": "a" * 32, **unit}},
        commands={("journalctl", ...): journal(entry)},
    )


def test_undo_starts_what_we_stopped() -> None:
    plan = undo(stopped(json.dumps({"invocation_id": "a" * 32, "at": 1.0})))
    assert commands(plan) == ["reset-failed", "start"]


def test_undo_leaves_alone_what_an_operator_stopped_meanwhile() -> None:
    assert refusal(undo(stopped())) == "operator-stopped"


def test_undo_does_not_start_what_was_started_and_has_ended_again() -> None:
    note = json.dumps({"invocation_id": "a" * 32, "at": 1.0, "started": "boot-1/1.0"})
    assert commands(undo(stopped(note, InvocationID=""))) == []


@pytest.mark.parametrize("unit", [{"ActiveState": "active"}, {"InvocationID": "b" * 32}, {"ActiveState": "activating"}])
def test_undo_has_nothing_to_do_for_an_engine_that_runs_or_starts(unit: dict[str, object]) -> None:
    assert commands(undo(stopped(**unit))) == []


def test_undo_of_a_stop_that_hangs_kills_before_it_starts() -> None:
    host = stopped(ActiveState="deactivating", SubState="stop-sigterm", MainPID=42)
    host.files.entries[PROCS] = "42\n"
    plan = undo(host)
    assert "kill" in "\n".join(steps.by_hand(plan))
    assert commands(plan)[-1] == "start"


def test_undo_starts_a_unit_that_was_disabled_before_and_not_one_disabled_since() -> None:
    note = json.dumps({"invocation_id": "a" * 32, "at": 1.0})
    assert commands(undo(stopped(note, UnitFileState="disabled"), disabled=True)) == ["reset-failed", "start"]
    assert refusal(undo(stopped(note, UnitFileState="disabled"))) == "operator-disabled"
    assert refusal(undo(stopped(note, UnitFileState="masked"))) == "operator-masked"


# --- evidence.collect ----------------------------------------------------------------------------------------------

EVIDENCE = plugin.actions()["evidence.collect"]
SPACE = Space(100, 50, 10, 5, False)


def evidence(log: str, **files: str) -> str:
    stat = "42 (llama-server) S " + " ".join(["0"] * 49)
    host = FakeHost.build(
        files={
            "/proc/meminfo": "MemTotal: 1000 kB\nMemAvailable: 500 kB\n",
            "/proc/42/cmdline": "llama-server\0--api-key\0hunter2\0-m\0/models/x.gguf\0",
            "/proc/42/task/42/stat": stat,
            "/proc/42/task/42/status": "Name:\tllama-server\nvoluntary_ctxt_switches:\t7\n",
            "/proc/42/task/42/schedstat": "1000000000 0 1\n",
            "/proc/42/task/42/wchan": "uvm_spin_loop",
            **files,
        },
        units={"chat.service": {}},
        commands={("journalctl", ...): journal({"MESSAGE": log})},
        spaces={"/": SPACE, "/var": SPACE},
    )
    return steps.Performer(host).perform(planned(EVIDENCE, host, gpu=False)).output


def test_evidence_shows_where_the_thread_waits_and_how_the_unit_is() -> None:
    kept = evidence("nothing known")
    assert "uvm_spin_loop" in kept
    assert '"active": "active/running"' in kept
    assert "MemAvailable_bytes" in kept


def test_evidence_keeps_known_words_and_neither_prompts_nor_secrets() -> None:
    kept = evidence("CUDA error: no kernel image is available for execution on the device while serving CANARY")
    assert "no kernel image" in kept
    assert "CANARY" not in kept
    assert "hunter2" not in kept


def test_evidence_that_cannot_be_read_leaves_the_rest() -> None:
    host = FakeHost.build(
        units={"chat.service": {"MainPID": 0}}, commands={("journalctl", ...): 1}, spaces={"/": SPACE, "/var": SPACE}
    )
    kept = steps.Performer(host).perform(planned(EVIDENCE, host, gpu=False)).output
    assert "could not be read" in kept
    assert "room on the disk" in kept


def test_evidence_changes_nothing() -> None:
    host = FakeHost.build(units={"chat.service": {}})
    plan = planned(EVIDENCE, host, gpu=False)
    assert commands(plan) == []
    assert plan.before is None


def test_a_masked_unit_that_still_runs_is_not_stopped_because_it_could_not_be_started_again() -> None:
    host = FakeHost.build(files=CGROUP, units={"chat.service": {"UnitFileState": "masked"}})
    assert refusal(planned(RESTART, host, gpu=False)) == "operator-masked"
