"""What the engine checks read and carry on, on a fake host: GPU questions, crash counts, wrappers, tokens of others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from agent import frame, plugin
from agent.engines.llama_cpp import ENGINE, LlamaCppSettings
from agent.host import serving, stops
from agent.host.systemd import UnitState
from agent.model import CheckResult, EngineState, Observation, Observed, Sample, Status, Verdict
from agent.plugin import Target
from checks import engine_unit
from checks.engine_unit import Crashes, count
from tests.support.fake_host import FakeHost, in_turn, journal, systemctl_show, timed_out, unreachable

UNIT = "llama-server.service"
URL = "http://127.0.0.1:8080"
GROUP = f"/sys/fs/cgroup/system.slice/{UNIT}"
PROPS = {"build_info": "b10447-abc", "model_alias": "tiny", "is_sleeping": False}
BUSY = [{"id": 0, "is_processing": True, "id_task": 1, "next_token": [{"n_decoded": 5}]}]
STAT = "42 (llama-server) S 1 42 42 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 900000 " + "0 " * 30 + "\n"


def box(program: str = "/usr/bin/llama-server", **more: Any) -> FakeHost:
    """A host whose unit runs one process that never runs on a CPU, and works on one request."""
    files = {
        "/sys/fs/cgroup/cgroup.controllers": "cpu\n",
        f"{GROUP}/cgroup.procs": "42\n",
        f"{GROUP}/cgroup.events": "populated 1\nfrozen 0\n",
        "/proc/42/cmdline": f"{program}\0--port\08080\0",
        "/proc/42/stat": STAT,
        "/proc/42/status": "CoreDumping:\t0\n",
        "/proc/42/task/42/stat": STAT,
        "/proc/42/task/42/schedstat": "1 1 1\n",
        "/proc/42/task/42/status": "voluntary_ctxt_switches:\t7\n",
        **more.pop("files", {}),
    }
    http = {f"{URL}/props": PROPS, f"{URL}/slots": BUSY, **more.pop("http", {})}
    return FakeHost.build(files, http=http, units={UNIT: {}}, **more)


def look(
    host: FakeHost, before: CheckResult | None = None, *, check: str = "engine.progress", **settings: Any
) -> CheckResult:
    """One look, five seconds after the last."""
    found = replace(plugin.checks()[check], needs_before=False)
    own = LlamaCppSettings.model_validate({"name": "chat", "kind": "llama.cpp", "url": URL, "unit": UNIT, **settings})
    target = Target("engine:chat", found.params(), found.every_s, ENGINE, own)
    result = frame.run_check(host, found, target, frame.before_of(before))
    host.clock.advance(5)
    return result


GPU = {"uuid": "GPU-1", "name": "x", "memory_used_bytes": 1, "memory_total_bytes": 2, "pids": [[42, 1]]}


def nvml(*percents: int) -> dict[str, Any]:
    gpus = [{**GPU, "utilisation_percent": percent, "pids": [[42 + n, 1]]} for n, percent in enumerate(percents)]
    return {"code": 0, "meaning": "Success", "driver_version": "550.54.15", "gpus": gpus}


DRIVER = {"/sys/module/nvidia/version": "550.54.15\n"}


def test_the_gpu_is_asked_only_once_a_thread_stands_still_while_something_waits() -> None:
    host = box(files=DRIVER, child={"nvml": nvml(0)})
    first = look(host)
    assert host.child.asked == []
    second = look(host, first)
    assert host.child.asked == ["nvml"]
    assert second.verdict is Verdict.WEDGED


def test_a_thread_that_waits_for_its_gpu_is_busy_whatever_other_gpus_do() -> None:
    host = box(files=DRIVER, child={"nvml": nvml(90, 0)})
    assert look(host, look(host)).verdict is Verdict.BUSY
    host = box(files=DRIVER, child={"nvml": nvml(0, 90)})
    assert look(host, look(host)).verdict is Verdict.WEDGED


def test_what_the_gpu_said_before_the_thread_stood_still_is_not_used() -> None:
    host = box(files=DRIVER, child={"nvml": in_turn(nvml(0), nvml(90))})
    second = look(host, look(host))
    assert second.verdict is Verdict.WEDGED
    host.files.entries["/proc/42/task/42/schedstat"] = "2 1 1\n"
    third = look(host, second)
    assert third.verdict is Verdict.BUSY
    fourth = look(host, third)
    assert (fourth.value("gpu.busy_percent"), fourth.verdict) == (90, Verdict.BUSY)


@pytest.mark.parametrize(("gpu", "asked"), [(False, []), (None, ["nvml"]), (True, ["nvml"])])
def test_an_engine_without_gpu_never_asks_for_it(gpu: bool | None, asked: list[str]) -> None:
    host = box(files=DRIVER, child={"nvml": nvml(0)})
    look(host, look(host, gpu=gpu), gpu=gpu)
    assert host.child.asked == asked


def test_a_silent_nvml_or_another_makers_gpu_takes_two_minutes() -> None:
    for host in (box(files=DRIVER, child={"nvml": None}), box(files={"/dev/kfd": ""})):
        last = look(host, look(host))
        assert (last.verdict, last.value("gpu.asked")) == (Verdict.BUSY, True)
        for _ in range(24):
            last = look(host, last)
        assert last.verdict is Verdict.WEDGED


def test_an_unanswered_question_is_asked_ever_more_rarely_and_at_once_when_the_thread_runs_again() -> None:
    host = box(http={f"{URL}/slots": unreachable("timeout")})
    last = look(host)
    for _ in range(40):
        last = look(host, last)
    asked = [call for call in host.http.calls if call.url.endswith("/slots")]
    assert 5 <= len(asked) <= 8
    host.files.entries["/proc/42/task/42/schedstat"] = "2 1 1\n"
    host.http.answer(f"GET {URL}/slots", [])
    assert look(host, last).verdict is Verdict.READY


def test_a_late_look_starts_the_stillness_afresh() -> None:
    host = box()
    first = look(host)
    host.clock.advance(600)
    late = look(host, first)
    assert (late.verdict, late.value("excuse.kind"), late.value("still_s")) == (Verdict.BUSY, "late", 0)
    assert look(host, late).verdict is Verdict.WEDGED


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        ({f"{GROUP}/cgroup.events": "populated 1\nfrozen 1\n"}, "frozen"),
        ({"/proc/42/status": "CoreDumping:\t1\n"}, "core"),
        ({f"{GROUP}/memory.pressure": "some avg10=90.00\nfull avg10=45.00 avg60=0\n"}, "memory"),
        ({f"{GROUP}/io.pressure": "full avg10=60.00 avg60=0\n"}, "io"),
        ({f"{GROUP}/cpu.pressure": "some avg10=80.00 avg60=0\n"}, "cpu"),
    ],
)
def test_a_thread_that_is_not_let_run_is_excused(files: dict[str, str], kind: str) -> None:
    host = box(files=files)
    last = look(host, look(host))
    assert last.value("excuse.kind") == kind
    assert last.verdict is not Verdict.WEDGED


def test_little_pressure_is_no_excuse() -> None:
    host = box(files={f"{GROUP}/io.pressure": "full avg10=3.00 avg60=0\n"})
    assert look(host, look(host)).verdict is Verdict.WEDGED


def test_a_unit_that_only_wraps_a_container_is_judged_from_outside() -> None:
    host = box("/usr/bin/docker")
    last = look(host, look(host))
    assert (last.value("process.alive"), last.verdict) == (None, Verdict.BUSY)


@pytest.mark.parametrize("client", ["docker-compose", "nerdctl", "podman", "systemd-nspawn"])
def test_a_container_client_is_never_the_server(client: str) -> None:
    host = box(f"/usr/bin/{client}")
    assert look(host, look(host)).value("process.alive") is None


def test_processes_that_hidepid_hides_are_not_missing() -> None:
    host = box(http={f"{URL}/props": unreachable("refused")})
    for path in [path for path in host.files.entries if path.startswith("/proc/42")]:
        del host.files.entries[path]
    seen = look(host)
    assert seen.value("process.alive") is None
    assert seen.verdict is Verdict.LOADING, "a closed port of a unit that is active is no death"


def test_an_engine_that_the_configuration_has_moved_starts_without_a_past() -> None:
    host = box()
    wedged = look(host, look(host))
    assert wedged.verdict is Verdict.WEDGED
    other = Observation("engine", ["http://127.0.0.1:9", UNIT])
    evidence = tuple(other if each.name == "engine" else each for each in wedged.evidence)
    elsewhere = replace(wedged, evidence=evidence)
    assert look(host, elsewhere).verdict is not Verdict.WEDGED


def test_another_unit_under_the_same_name_has_not_crashed() -> None:
    host = FakeHost.build(
        commands={"journalctl ...": ""}, units={"new.service": {"InvocationID": "b" * 32, "MainPID": 7}}
    )
    kind = plugin.engines()["llama.cpp"]
    settings = kind.settings(name="chat", kind="llama.cpp", url=URL, unit="new.service")
    target = Target("engine:chat", None, 10.0, kind, settings)
    past = {"unit.name": "old.service", "unit.invocation": "a" * 32, "crash.times": []}
    before = Observed(host.clock.now(), tuple(Observation(name, value) for name, value in past.items()))
    seen = {each.name: each.value for each in engine_unit.observe(host, target, before)}
    assert seen["crash.times"] == []


def test_an_empty_group_of_an_active_unit_is_dead() -> None:
    host = box(files={f"{GROUP}/cgroup.procs": ""}, http={f"{URL}/props": unreachable("refused")})
    host.run.answer("journalctl ...", "")
    host.run.answer(("systemctl", "show", "*", "--", UNIT), systemctl_show(UNIT, MainPID=0))
    assert look(host).verdict is Verdict.DEAD


def test_the_server_is_found_beside_the_shell_that_started_it() -> None:
    host = box()
    host.files.entries[f"{GROUP}/cgroup.procs"] = "41\n42\n"
    host.files.entries["/proc/41/cmdline"] = "/bin/sh\0-c\0llama-server --port 8080\0"
    host.files.entries["/proc/41/stat"] = STAT
    group = serving.look_into(host, f"/system.slice/{UNIT}", 0, port="8080", only_main=True)
    assert [each.pid for each in group.processes] == [42]


def test_systemds_main_process_stands_in_where_control_groups_cannot_be_read() -> None:
    host = box()
    del host.files.entries["/sys/fs/cgroup/cgroup.controllers"]
    assert look(host).value("process.pid") == 42


# --- tokens -----------------------------------------------------------------------------------------------------------


def counters(**values: float) -> Sample:
    return Sample(EngineState.READY, progress=tuple((name, value) for name, value in values.items()), pending=1)


def test_tokens_flow_when_a_counter_of_generated_tokens_moves_and_only_then() -> None:
    generated = Sample.generated_until
    assert generated(counters(a_generated=5), counters(a_generated=6))
    assert generated(counters(a_generated=500), counters(a_generated=3))
    assert not generated(counters(a_generated=5), counters(a_generated=5))
    assert not generated(counters(a_generated=5), counters(a_generated=0))
    assert not generated(counters(a_prompt=5), counters(a_prompt=6))
    assert not generated(counters(), counters(a_generated=6))


def test_a_busy_server_proves_itself_by_the_tokens_of_others() -> None:
    later = [{"id": 0, "is_processing": True, "id_task": 1, "next_token": [{"n_decoded": 9}]}]
    host = box(http={f"{URL}/slots": in_turn(BUSY, unreachable("timeout"), BUSY, unreachable("timeout"), later)})
    result = look(host, check="engine.generates")
    assert (result.status, result.verdict, result.value("proven")) == (Status.OK, Verdict.BUSY, True)


def test_a_busy_server_that_stands_proves_nothing() -> None:
    result = look(box(), check="engine.generates")
    assert (result.status, result.value("proven")) == (Status.UNKNOWN, False)


# --- crashes ----------------------------------------------------------------------------------------------------------


def state(invocation: str, restarts: int = 0, active: str = "active") -> UnitState:
    return UnitState(UNIT, "loaded", active, "", "", "enabled", 42, 0, 0, restarts, invocation, "", "always", False)


def counted(*steps: tuple[UnitState, bool, bool]) -> int:
    """How many crashes these looks make: state, whether it is dead, whether the last run was ended by hand."""
    crashes: Crashes | None = None
    for number, (each, dead, by_hand) in enumerate(steps):
        crashes = count(crashes, each, dead=dead, replaced_by_hand=by_hand, at=1000.0 + 10 * number)
    assert crashes is not None
    return len(crashes.times)


def test_a_crash_is_counted_once_however_often_it_is_seen() -> None:
    dead = (state("a", active="failed"), True, False)
    assert counted((state("a"), False, False), dead, dead, dead) == 1


def test_a_crash_that_was_seen_and_then_restarted_is_counted_once() -> None:
    assert counted((state("a", active="failed"), True, False), (state("b"), False, False)) == 1


def test_a_crash_that_was_seen_before_systemd_repaired_it_is_counted_once() -> None:
    assert counted((state("a", active="failed"), True, False), (state("b", 1), False, False)) == 1


def test_a_crash_that_systemd_repaired_between_two_looks_is_counted() -> None:
    assert counted((state("a"), False, False), (state("b", 1), False, False), (state("c", 2), False, False)) == 2


def test_five_restarts_and_a_failure_between_two_looks_are_six_crashes() -> None:
    assert counted((state("a"), False, False), (state("f", 5, "failed"), True, False)) == 6


def test_a_restart_by_hand_is_no_crash_and_one_by_somebody_after_a_death_is() -> None:
    assert counted((state("a"), False, False), (state("b"), False, True)) == 0
    assert counted((state("a"), False, False), (state("b"), False, False)) == 1


def test_crashes_are_forgotten_after_six_hours() -> None:
    crashes = Crashes("a", 0, "a", (1000.0,))
    later = 1000.0 + engine_unit.REMEMBERED_S + 1
    assert count(crashes, state("a"), dead=False, replaced_by_hand=False, at=later).times == ()


STOPPED = {"MESSAGE_ID": "9d1aaa27d60140bd96365438aad20286", "JOB_TYPE": "stop", "INVOCATION_ID": "new"}


def test_a_reason_that_the_journal_names_a_moment_after_the_death_is_still_found() -> None:
    host = FakeHost.build(
        commands={"journalctl ...": ""},
        units={UNIT: {"ActiveState": "failed", "Result": "exit-code", "ExecMainCode": 1, "ExecMainStatus": 1}},
    )
    settings = LlamaCppSettings(name="chat", kind="llama.cpp", url=URL, unit=UNIT)
    target = Target("engine:chat", None, 10.0, ENGINE, settings)

    def seen(before: Observed | None) -> Observed:
        return Observed(host.clock.now(), tuple(engine_unit.observe(host, target, before)))

    first = seen(None)
    assert first.value("failure.cause") is None
    line = "CUDA error: no kernel image is available for execution on the device"
    host.run.answer("journalctl ...", lambda argv: journal({"MESSAGE": line}) if "--lines=2000" in argv else "")
    second = seen(first)
    assert (second.value("failure.cause"), second.value("failure.cure")) == ("cuda-no-kernel-image", "rebuild")
    host.run.answer("journalctl ...", "")
    assert seen(second).value("failure.cause") == "cuda-no-kernel-image", "what is known is not asked again"


@pytest.mark.parametrize(("noted", "operator"), [("new", False), ("old", True)])
def test_only_the_very_stop_that_we_noted_is_ours(noted: str, operator: bool) -> None:
    files = {f"{stops.OUR_STOPS}/{UNIT}.json": f'{{"invocation_id": "{noted}"}}'}
    host = FakeHost.build(files, commands={"journalctl ...": journal(STOPPED)})
    assert stops.operators_hand(host, state("new", active="inactive"))[0] is operator


def test_without_a_journal_nobody_knows_whose_hand_it_was() -> None:
    host = FakeHost.build(commands={"journalctl ...": timed_out()})
    assert stops.operators_hand(host, state("new", active="inactive"))[0] is None
