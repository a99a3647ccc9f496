"""Busy, wedged, dead, loading: the pure decision, and the memory that feeds it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import verdict
from agent.engines.llama_cpp import LlamaCppSettings
from agent.host import serving
from agent.model import EngineState, Moment, Observation, Observed, Sample, Verdict
from checks import engine_progress as progress

LOCAL = LlamaCppSettings(name="chat", kind="llama.cpp", url="http://127.0.0.1:8080", unit="llama-server.service")
REMOTE = LlamaCppSettings(name="chat", kind="llama.cpp", url="http://gpu.example:8080")
START = Moment(1_000_000.0, 1_000.0, "boot")


def at(seconds: float, boot: str = "boot") -> Moment:
    return Moment(START.wall + seconds, START.boot_s + seconds, boot)


def observed(**values: Any) -> Observed:
    """Observations by name, with the dots of their names written as double underscores."""
    return Observed(START, tuple(Observation(name.replace("__", "."), value) for name, value in values.items()))


def decide(settings: LlamaCppSettings = LOCAL, **values: Any) -> Verdict:
    return verdict.decide(observed(**values), None, settings)[0]


def unit(pid: int = 42, started: float = 10.0, **changes: Any) -> progress.Unit:
    process = serving.Process(pid, started, frozenset(), ((pid, 1, 0, 0, 0),))
    return replace(progress.Unit("/x.service", True, (process,), process), **changes)


def look(seconds: float, sample: Sample, **changes: Any) -> progress.Look:
    return replace(progress.Look(at(seconds), sample, True, unit(), True), **changes)


IDLE = Sample(EngineState.READY, progress=(), pending=0, free_slots=2)
HANGS = Sample(EngineState.READY, "/slots: timeout", unanswered=("/slots",))
SILENT = Sample(EngineState.SILENT, "/props: timeout", unanswered=("/props",))
UNREADABLE = Sample(EngineState.UNREADABLE, "/props cannot be asked: its certificate was not accepted")


def working(counter: int) -> Sample:
    return Sample(EngineState.READY, progress=(("slot0.generated", float(counter)),), pending=1, free_slots=1)


def after(*looks: progress.Look) -> progress.Memory:
    memory: progress.Memory | None = None
    for each in looks:
        memory = progress.remember(memory, each)
    assert memory is not None
    return memory


def judged(memory: progress.Memory, last: progress.Look, settings: LlamaCppSettings = LOCAL, **more: Any) -> Verdict:
    """The verdict on a remembered look."""
    values: dict[str, Any] = {
        "answer.state": str(last.sample.state),
        "answer.unanswered": list(last.sample.unanswered),
        "pending": last.sample.pending,
        "process.alive": last.unit.alive,
        "excuse.kind": last.excuse[0],
        "excuse": last.excuse[1],
        "gpu.asked": False,
        **{name: getattr(memory, name) for name in progress.Memory.__dataclass_fields__},
        **more,
    }
    now = Observed(last.at, tuple(Observation(name, value) for name, value in values.items()))
    return verdict.decide(now, None, settings)[0]


def verdict_after(*looks: progress.Look, settings: LlamaCppSettings = LOCAL, **more: Any) -> Verdict:
    return judged(after(*looks), looks[-1], settings, **more)


# --- the table of a real llama-server (facts/testbed.md) --------------------------------------------------------------


def test_idle_and_answering_is_ready() -> None:
    assert verdict_after(look(0, IDLE), look(5, IDLE)) is Verdict.READY


def test_idle_and_still_is_ready_because_nothing_waits() -> None:
    assert verdict_after(*(look(5 * n, IDLE, ran=False) for n in range(20))) is Verdict.READY


def test_loading_is_loading() -> None:
    loading = Sample(EngineState.LOADING)
    assert verdict_after(look(0, loading), look(5, loading)) is Verdict.LOADING


def test_loading_is_timed_from_the_start_of_the_process() -> None:
    assert after(look(90, Sample(EngineState.LOADING), unit=unit(started=START.boot_s))).loading_s == 90


def test_two_running_with_moving_counters_is_busy() -> None:
    assert verdict_after(look(0, working(1)), look(5, working(2))) is Verdict.BUSY


def test_a_loop_frozen_while_idle_is_wedged_at_the_second_unanswered_look() -> None:
    looks = [look(0, IDLE), look(5, HANGS), look(10, HANGS, ran=False)]
    assert verdict_after(*looks[:2]) is Verdict.BUSY
    assert verdict_after(*looks) is Verdict.WEDGED


def test_a_loop_frozen_mid_decode_with_slots_answering_is_wedged() -> None:
    assert verdict_after(look(0, working(7)), look(5, working(7), ran=False)) is Verdict.WEDGED


def test_a_loop_frozen_mid_decode_whose_slots_hang_now_and_then_is_wedged() -> None:
    looks = [look(0, working(7)), look(5, HANGS, ran=False), look(10, working(7), ran=False)]
    assert verdict_after(*looks) is Verdict.WEDGED


def test_what_cannot_be_asked_is_unknown_however_still_it_is() -> None:
    looks = [look(0, IDLE), *(look(5 * n, UNREADABLE, ran=False) for n in range(1, 200))]
    assert verdict_after(*looks) is Verdict.UNKNOWN, "an expired certificate is no reason to restart"


def test_a_unit_that_is_down_is_dead_although_it_cannot_be_asked() -> None:
    down: dict[str, Any] = {"answer__state": "unreadable", "process__alive": False, "unit__operator": False}
    assert decide(**{**down, "unit__active": "failed"}) is Verdict.DEAD
    assert decide(**{**down, "unit__active": "active"}) is Verdict.UNKNOWN


def test_a_stopped_process_that_answered_before_is_wedged() -> None:
    assert verdict_after(look(0, IDLE), look(5, SILENT), look(10, SILENT, ran=False)) is Verdict.WEDGED


def test_an_address_that_never_answered_is_unknown_for_ever() -> None:
    assert verdict_after(*(look(5 * n, SILENT, ran=False) for n in range(200))) is Verdict.UNKNOWN


def test_health_silent_while_the_thread_runs_is_busy() -> None:
    assert verdict_after(look(0, IDLE), *(look(5 * n, SILENT) for n in range(1, 20))) is Verdict.BUSY


def test_a_stop_that_waits_for_its_clients_is_not_a_fault() -> None:
    refused = look(5, Sample(EngineState.REFUSED))
    assert verdict_after(look(0, working(1)), refused, **{"unit.active": "deactivating"}) is Verdict.BUSY


def test_a_start_failure_is_dead() -> None:
    words = {"answer__state": "refused", "process__alive": False, "unit__active": "failed", "unit__operator": False}
    assert decide(**words, unit__failure="exit 1") is Verdict.DEAD


def test_sleeping_is_sleeping_however_still() -> None:
    asleep = Sample(EngineState.SLEEPING)
    assert verdict_after(*(look(5 * n, asleep, ran=False) for n in range(50))) is Verdict.SLEEPING


def test_an_answer_ends_the_stillness_that_was_counted() -> None:
    looks = [look(0, IDLE), look(5, HANGS), look(8, HANGS, ran=False), look(11, IDLE, ran=False)]
    assert after(*looks[:3]).still_s == 3
    assert after(*looks).still_s == 0


# --- spinning, slow steps, excuses ------------------------------------------------------------------------------------


def test_moving_without_progress_is_busy_until_240_s_and_wedged_after() -> None:
    looks = [look(5.0 * n, working(7)) for n in range(49)]
    assert verdict_after(*looks[:48]) is Verdict.BUSY
    assert verdict_after(*looks) is Verdict.WEDGED


def test_one_step_of_150_s_is_busy_and_raises_the_limit() -> None:
    looks = [look(5.0 * n, working(7)) for n in range(31)] + [look(155, working(8))]
    memory = after(*looks)
    assert judged(memory, looks[-1]) is Verdict.BUSY
    assert memory.longest_step_s == 155
    assert verdict.stall_limit_s(memory.longest_step_s) == 620


def test_the_longest_step_outlives_a_restart_of_the_engine() -> None:
    looks = [look(5.0 * n, working(7)) for n in range(31)] + [look(155, working(8)), look(160, IDLE, unit=unit(43))]
    assert after(*looks).longest_step_s == 155


def test_a_step_is_forgotten_after_a_week() -> None:
    looks = [look(5.0 * n, working(7)) for n in range(31)] + [look(155, working(8)), look(8 * 86400, IDLE)]
    assert after(*looks).longest_step_s == 0


@pytest.mark.parametrize(
    ("kind", "looked"), [("late", 60), ("frozen", 60), ("core", 60), ("memory", 60), ("io", 60), ("cpu", 49)]
)
def test_an_excused_interval_never_counts_as_still(kind: str, looked: int) -> None:
    looks = [look(0, IDLE), look(5, HANGS)]
    looks += [look(5.0 * n, HANGS, ran=False, excuse=(kind, "words")) for n in range(2, looked)]
    assert after(*looks).still_s == 0
    assert verdict_after(*looks) is not Verdict.WEDGED


def test_cpu_pressure_excuses_stillness_but_not_hours_without_progress() -> None:
    looks = [look(5.0 * n, working(7), ran=False, excuse=("cpu", "words")) for n in range(60)]
    assert after(*looks).stalled_s == 295
    assert verdict_after(*looks[:48]) is Verdict.BUSY
    assert verdict_after(*looks) is Verdict.WEDGED


def test_gpu_at_work_excuses_a_sleeping_thread() -> None:
    looks = [look(0, working(7)), look(5, working(7), ran=False)]
    assert verdict_after(*looks, **{"gpu.asked": True, "gpu.busy_percent": 80.0}) is Verdict.BUSY
    assert verdict_after(*looks, **{"gpu.asked": True, "gpu.busy_percent": 0.0}) is Verdict.WEDGED


def test_a_silent_nvml_asks_for_two_minutes_of_stillness() -> None:
    looks = [look(5.0 * n, working(7), ran=False) for n in range(25)]
    unseen = {"gpu.asked": True, "gpu.busy_percent": None}
    assert verdict_after(*looks[:24], **unseen) is Verdict.BUSY
    assert verdict_after(*looks, **unseen) is Verdict.WEDGED


# --- processes and units ----------------------------------------------------------------------------------------------


def test_a_closed_port_of_a_process_that_never_listened_is_loading() -> None:
    refused = Sample(EngineState.REFUSED)
    assert verdict_after(*(look(5 * n, refused) for n in range(60))) is Verdict.LOADING


def test_a_closed_port_of_a_process_that_served_is_wedged_after_two_looks() -> None:
    refused = Sample(EngineState.REFUSED)
    assert verdict_after(look(0, IDLE), look(5, refused)) is Verdict.BUSY
    assert verdict_after(look(0, IDLE), look(5, refused), look(10, refused)) is Verdict.WEDGED


def test_a_process_that_is_gone_while_systemd_starts_it_is_loading() -> None:
    gone = {"answer__state": "refused", "process__alive": False, "unit__active": "activating", "unit__pending": True}
    assert decide(**gone) is Verdict.LOADING


@pytest.mark.parametrize("how", ["stopped by an operator", "disabled by an operator", "masked by an operator"])
def test_an_operators_hand_is_stopped(how: str) -> None:
    words = {"answer__state": "refused", "process__alive": False, "unit__active": "inactive"}
    now = observed(**words, unit__operator=True, unit__operator_how=how)
    assert verdict.decide(now, None, LOCAL) == (Verdict.STOPPED, how)


def test_a_unit_that_stopped_for_an_unknown_reason_is_unknown() -> None:
    words = {"answer__state": "refused", "process__alive": False, "unit__active": "inactive"}
    assert decide(**words, unit__operator=None) is Verdict.UNKNOWN


def test_an_exit_with_status_0_that_nobody_asked_for_is_dead() -> None:
    assert decide(unit__active="inactive", unit__operator=False, unit__failure="exit 0") is Verdict.DEAD


def test_another_server_at_the_address_of_a_dead_unit_is_unknown() -> None:
    assert decide(answer__state="ready", process__alive=False, unit__active="inactive") is Verdict.UNKNOWN


def test_a_remote_engine_that_refuses_is_dead() -> None:
    assert decide(REMOTE, answer__state="refused", process__alive=None) is Verdict.DEAD


def test_a_container_below_its_unit_is_loading_until_it_has_served_and_dead_when_its_port_stays_closed() -> None:
    refused, unseen = Sample(EngineState.REFUSED), progress.Unit("/x.service", None)
    active = {"unit.active": "active"}
    looks = [look(5.0 * n, refused, unit=unseen) for n in range(20)]
    assert verdict_after(*looks, **active) is Verdict.LOADING
    looks = [look(0, IDLE, unit=unseen), look(5, refused, unit=unseen), look(10, refused, unit=unseen)]
    assert verdict_after(*looks[:2], **active) is Verdict.BUSY
    assert verdict_after(*looks, **active) is Verdict.DEAD


def test_a_remote_engine_is_never_judged_by_stillness() -> None:
    away = progress.Unit()
    looks = [look(5.0 * n, working(7), unit=away, ran=None) for n in range(48)]
    assert verdict_after(*looks, settings=REMOTE) is Verdict.BUSY
    looks.append(look(240, working(7), unit=away, ran=None))
    assert verdict_after(*looks, settings=REMOTE) is Verdict.WEDGED


# --- the canary -------------------------------------------------------------------------------------------------------


def test_a_token_is_ready() -> None:
    assert decide(canary__tokens=1, canary__duration_s=0.1) is Verdict.READY


def test_no_free_slot_while_tokens_flow_is_busy() -> None:
    assert decide(canary__tokens=0, canary__refused="no free slot", tokens_flow=True) is Verdict.BUSY


def test_no_free_slot_and_no_tokens_says_nothing() -> None:
    assert decide(canary__tokens=0, canary__refused="no free slot", tokens_flow=False) is Verdict.UNKNOWN


def test_three_canaries_without_a_token_although_a_slot_was_free_are_a_wedge() -> None:
    assert decide(REMOTE, canary__tokens=0, canary__refused="", canary__misses=2) is Verdict.UNKNOWN
    assert decide(REMOTE, canary__tokens=0, canary__refused="", canary__misses=3) is Verdict.WEDGED


# --- what must hold for every history ---------------------------------------------------------------------------------

SAMPLES = st.sampled_from(
    [IDLE, HANGS, SILENT, working(1), working(2)]
    + [Sample(state) for state in (EngineState.LOADING, EngineState.SLEEPING, EngineState.REFUSED, EngineState.FAILING)]
)
EXCUSES = st.sampled_from([("", ""), ("", ""), ("cpu", "x"), ("frozen", "x"), ("late", "x")])
RAN, PIDS = st.sampled_from([True, False, None]), st.sampled_from([42, 43])
STEPS = st.tuples(st.floats(0.5, 300), SAMPLES, RAN, EXCUSES, PIDS)


def history(steps: list[tuple[float, Sample, bool | None, tuple[str, str], int]]) -> list[progress.Look]:
    looks, now = [], 0.0
    for seconds, sample, ran, excuse, pid in steps:
        now += seconds
        looks.append(look(now, sample, ran=ran, excuse=excuse, unit=unit(pid)))
    return looks


@given(st.lists(STEPS, min_size=1, max_size=30))
def test_never_wedged_on_a_look_at_which_counters_moved(steps: list[Any]) -> None:
    looks = history(steps)
    memory = after(*looks)
    if memory.moved:
        assert judged(memory, looks[-1]) is not Verdict.WEDGED


@given(STEPS)
def test_never_wedged_on_a_single_look(step: Any) -> None:
    (only,) = history([step])
    assert verdict_after(only) is not Verdict.WEDGED


@given(st.lists(STEPS, max_size=20), STEPS)
def test_another_process_is_never_wedged_at_first_sight(steps: list[Any], last: Any) -> None:
    looks = history([*steps, last])
    looks[-1] = replace(looks[-1], unit=unit(99))
    memory = after(*looks)
    assert (memory.still_s, memory.stalled_s, memory.served) == (0, 0, looks[-1].sample.state in ("ready", "sleeping"))
    assert judged(memory, looks[-1]) is not Verdict.WEDGED


@given(st.lists(st.tuples(st.floats(23, 10_000), SAMPLES), min_size=1, max_size=30))
def test_late_looks_never_add_up(steps: list[tuple[float, Sample]]) -> None:
    looks = history([(seconds, sample, False, ("late", "x"), 42) for seconds, sample in steps])
    memory = after(*looks)
    assert (memory.still_s, memory.stalled_s, memory.refused_s, memory.failing_s) == (0, 0, 0, 0)


@given(st.lists(STEPS, min_size=1, max_size=20))
def test_another_boot_starts_afresh(steps: list[Any]) -> None:
    looks = history(steps)
    rebooted = replace(looks[-1], at=Moment(looks[-1].at.wall + 60, 30.0, "another boot"))
    memory = after(*looks, rebooted)
    assert (memory.still_s, memory.stalled_s) == (0, 0)


@given(st.lists(STEPS, min_size=1, max_size=30))
def test_stillness_never_exceeds_the_time_that_passed(steps: list[Any]) -> None:
    looks = history(steps)
    memory = after(*looks)
    assert 0 <= memory.still_s <= looks[-1].at.boot_s - looks[0].at.boot_s + 1e-6
    assert memory.still_s <= memory.stalled_s + 1e-6


@given(st.lists(STEPS, min_size=1, max_size=30))
def test_what_is_remembered_survives_being_stored(steps: list[Any]) -> None:
    import json  # noqa: PLC0415

    memory = after(*history(steps))
    values = {name: getattr(memory, name) for name in progress.Memory.__dataclass_fields__}
    stored = json.loads(json.dumps(values))
    back = progress._recall(Observed(START, tuple(Observation(name, value) for name, value in stored.items())))
    assert back == memory
