"""The incident state machine: when it opens, what holds it back, how loud it is, how it ends."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import incident as machine
from agent.model import Finding, Incident, Moment, Observation, Outcome, Phase, Run, Status, Urgency
from agent.plugin import EVENT, STILLNESS, Confirm

WEDGED = Finding(
    "engine-wedged",
    "engine:chat",
    Status.CRITICAL,
    "chat accepts requests but produces no tokens",
    evidence=(Observation("evidence", "inference thread still for 12 s"),),
    results=(("engine.progress", "engine:chat"),),
)
STOPPED = Finding("engine-stopped", "engine:chat", Status.OK, "stopped by an operator", quiet=True)
CRASHED = Finding(
    "engine-crashed", "engine:chat", Status.WARNING, "systemd restarted it", quiet=True, over=True, signature="a"
)


def at(seconds: float, boot: str = "b1") -> Moment:
    return Moment(1_000_000.0 + seconds, 100.0 + seconds, boot)


def world(**changes: object) -> machine.Circumstances:
    numbers = itertools.count()
    base = machine.Circumstances(
        confirm={
            "engine-wedged": EVENT,
            "engine-stopped": EVENT,
            "engine-crashed": EVENT,
            "still": STILLNESS,
            "slow": Confirm(for_s=60, clear_s=30),
        },
        held=frozenset(),
        explained=frozenset({WEDGED.key, STOPPED.key, ("still", "host"), ("slow", "host")}),
        curable=frozenset({WEDGED.key}),
        paused=frozenset(),
        prefix="holdfast/0123abcd",
        new_id=lambda: f"id{next(numbers)}",
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def play(
    steps: list[tuple[float, list[Finding]]], circumstances: machine.Circumstances | None = None
) -> tuple[dict[tuple[str, str], Incident], list[tuple[float, str]]]:
    incidents: dict[tuple[str, str], Incident] = {}
    told: list[tuple[float, str]] = []
    for second, findings in steps:
        step = machine.advance(incidents, findings, at(second), circumstances or world())
        incidents.update({(each.finding, each.subject): each for each in step.incidents})
        told += [(second, transition.kind) for transition in step.transitions]
    return incidents, told


def test_an_event_opens_at_once_and_resolves_when_it_is_gone() -> None:
    incidents, told = play([(0, [WEDGED]), (5, [WEDGED]), (10, [])])
    assert told == [(0, "opened"), (10, "resolved")]
    assert incidents[WEDGED.key].phase is Phase.RESOLVED
    assert incidents[WEDGED.key].key == "holdfast/0123abcd/engine-wedged/engine:chat"


def test_stillness_needs_two_samples_five_seconds_apart() -> None:
    finding = Finding("still", "host", Status.CRITICAL, "still")
    assert play([(0, [finding]), (1, [finding]), (4.9, [finding])])[1] == []
    assert play([(0, [finding]), (1, [finding]), (5, [finding])])[1] == [(5, "opened")]


def test_a_suspicion_that_passes_is_never_told() -> None:
    finding = Finding("slow", "host", Status.WARNING, "slow")
    assert play([(0, [finding]), (59, [finding]), (60, []), (61, [finding]), (90, [finding])])[1] == []


def test_it_must_be_gone_for_its_clear_time_before_it_resolves() -> None:
    finding = Finding("slow", "host", Status.WARNING, "slow")
    told = play([(0, [finding]), (60, [finding]), (70, []), (80, [finding]), (90, []), (119, []), (120, [])])[1]
    assert told == [(60, "opened"), (120, "resolved")]


def test_nothing_opens_before_the_explaining_checks_have_answered() -> None:
    step = machine.advance({}, [WEDGED], at(0), world(explained=frozenset()))
    assert step.transitions == ()
    assert step.awaiting == (WEDGED,)


def test_nothing_opens_or_resolves_on_a_subject_under_repair() -> None:
    held = world(held=frozenset({"engine:chat"}))
    assert play([(0, [WEDGED]), (50, [WEDGED])], held)[1] == []
    incidents, _ = play([(0, [WEDGED])])
    step = machine.advance(incidents, [], at(5), held)
    assert step.transitions == ()
    assert step.incidents == ()


def test_a_fault_that_a_run_may_cure_starts_as_a_warning_and_others_do_not() -> None:
    assert play([(0, [WEDGED])])[0][WEDGED.key].urgency is Urgency.WARNING
    assert play([(0, [WEDGED])], world(curable=frozenset()))[0][WEDGED.key].urgency is Urgency.CRITICAL


def test_it_gets_loud_as_soon_as_no_run_may_cure_it() -> None:
    incidents, _ = play([(0, [WEDGED])])
    step = machine.advance(incidents, [WEDGED], at(5), world(curable=frozenset()))
    assert [transition.kind for transition in step.transitions] == ["raised"]
    assert step.incidents[0].urgency is Urgency.CRITICAL


def test_it_never_gets_quieter_while_it_lasts() -> None:
    incidents, _ = play([(0, [WEDGED])], world(curable=frozenset()))
    step = machine.advance(incidents, [WEDGED], at(5), world())
    assert step.incidents[0].urgency is Urgency.CRITICAL


def test_while_paused_it_is_told_quietly_and_gets_loud_when_the_pause_ends() -> None:
    incidents, told = play([(0, [WEDGED])], world(paused=frozenset({WEDGED.key})))
    assert told == [(0, "opened")]
    assert incidents[WEDGED.key].urgency is Urgency.INFO
    step = machine.advance(incidents, [WEDGED], at(5), world())
    assert [transition.kind for transition in step.transitions] == ["raised"]
    assert step.incidents[0].paused is False


def test_what_an_operator_did_stays_quiet_for_ever() -> None:
    incidents, told = play([(0, [STOPPED]), (5000, [STOPPED])])
    assert told == [(0, "opened")]
    assert incidents[STOPPED.key].urgency is Urgency.INFO


def test_an_event_that_is_over_is_told_once_per_event() -> None:
    again = replace(CRASHED, signature="b")
    told = play([(0, [CRASHED]), (5, [CRASHED]), (10, []), (20, [CRASHED]), (30, [again])])[1]
    assert told == [(0, "over"), (30, "over")]


def test_tokens_not_proven_in_time_make_it_loud() -> None:
    incidents, _ = play([(0, [WEDGED])])
    opened = incidents[WEDGED.key]
    assert not machine.overdue(opened, at(59), 60)
    assert machine.overdue(opened, at(60), 60)
    assert not machine.overdue(opened.changed(paused=True), at(600), 60)


def run(outcome: Outcome, summary: str = "") -> Run:
    return Run("01J", "restart-engine", "engine:chat", "engine-wedged", 0.0, 9.0, outcome, summary, "sig")


def test_a_run_that_succeeded_waits_for_fresh_results_and_then_resolves() -> None:
    incidents, _ = play([(0, [WEDGED])])
    acting, told = machine.began(incidents[WEDGED.key], "01J", "restart-engine", at(1), world().new_id)
    assert (acting.phase, told.kind, acting.runs) == (Phase.ACTING, "acting", ("01J",))
    verified, told = machine.ended(acting, run(Outcome.SUCCEEDED, "1 token in 4 ms"), at(9), world().new_id)
    assert told is not None
    assert (verified.phase, told.kind) == (Phase.VERIFYING, "verified")
    step = machine.advance({WEDGED.key: verified}, [], at(10), world())
    assert [transition.kind for transition in step.transitions] == ["resolved"]


def test_a_spent_budget_does_not_raise_it_while_the_run_is_in_flight() -> None:
    incidents, _ = play([(0, [WEDGED])])
    acting, _ = machine.began(incidents[WEDGED.key], "01J", "restart-engine", at(1), world().new_id)
    step = machine.advance(
        {WEDGED.key: acting}, [WEDGED], at(2), world(curable=frozenset(), held=frozenset({"engine:chat"}))
    )
    assert step.transitions == ()
    assert step.incidents[0].urgency is Urgency.WARNING


def test_a_fault_that_survives_a_successful_run_is_open_again() -> None:
    incidents, _ = play([(0, [WEDGED])])
    verified, _ = machine.ended(incidents[WEDGED.key], run(Outcome.SUCCEEDED), at(9), world().new_id)
    step = machine.advance({WEDGED.key: verified}, [WEDGED], at(20), world())
    assert step.incidents[0].phase is Phase.OPEN


def test_a_run_that_a_person_stopped_is_not_told_loudly_until_it_is_overdue() -> None:
    incidents, _ = play([(0, [WEDGED]), (5, [WEDGED])])
    acting, _ = machine.began(incidents[WEDGED.key], "R1", "restart-engine", at(6), world().new_id)
    after, told = machine.ended(acting, run(Outcome.STOPPED, "an operator stopped it"), at(9), world().new_id)
    assert told is None
    assert (after.phase, after.urgency) == (Phase.OPEN, acting.urgency)
    assert after.tried
    stale = world(held=frozenset({WEDGED.subject}), curable=frozenset())
    assert machine.advance({WEDGED.key: after}, [WEDGED], at(10), stale).transitions == ()
    fresh = machine.advance({WEDGED.key: after}, [WEDGED], at(12), world(curable=frozenset()))
    assert [each.kind for each in fresh.transitions] == ["raised"]


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.UNDONE, Outcome.INTERRUPTED])
def test_a_run_that_did_not_succeed_makes_it_critical(outcome: Outcome) -> None:
    incidents, _ = play([(0, [WEDGED])])
    after, told = machine.ended(incidents[WEDGED.key], run(outcome, "start failed"), at(9), world().new_id)
    assert told is not None
    assert (after.phase, after.urgency, told.kind) == (Phase.OPEN, Urgency.CRITICAL, "raised")
    assert after.tried == (f"restart-engine: {outcome}, start failed",)


def test_a_refusal_for_the_same_reason_is_told_once() -> None:
    incidents, _ = play([(0, [WEDGED])])
    refused = run(Outcome.REFUSED, "driver and libraries disagree")
    first, told = machine.ended(incidents[WEDGED.key], refused, at(9), world().new_id)
    assert told is not None
    assert first.urgency is Urgency.CRITICAL
    assert machine.ended(first, refused, at(70), world().new_id)[1] is None


def test_needing_an_approval_is_told_once() -> None:
    incidents, _ = play([(0, [WEDGED])])
    first, told = machine.waiting(incidents[WEDGED.key], "needs a yes", "sudo …", True, at(1), world().new_id)
    assert told is not None
    assert told.kind == "needs-approval"
    assert machine.waiting(first, "needs a yes", "sudo …", True, at(2), world().new_id)[1] is None


@given(
    st.lists(
        st.tuples(st.floats(0, 30), st.booleans(), st.booleans(), st.booleans()),
        max_size=40,
    )
)
def test_every_opening_is_followed_by_exactly_one_resolution(steps: list[tuple[float, bool, bool, bool]]) -> None:
    incidents: dict[tuple[str, str], Incident] = {}
    kinds: list[str] = []
    clock = 0.0
    for seconds, present, paused, held in [*steps, (60, False, False, False), (60, False, False, False)]:
        clock += seconds
        circumstances = world(
            paused=frozenset({WEDGED.key} if paused else ()), held=frozenset({"engine:chat"} if held else ())
        )
        step = machine.advance(incidents, [WEDGED] if present else [], at(clock), circumstances)
        incidents.update({(each.finding, each.subject): each for each in step.incidents})
        kinds += [transition.kind for transition in step.transitions if transition.kind != "raised"]
    assert kinds[::2] == ["opened"] * (len(kinds) // 2)
    assert kinds[1::2] == ["resolved"] * (len(kinds) // 2)
