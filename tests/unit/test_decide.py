from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.decide import Attempt, Caller, DecisionFacts, Limits, UnitFacts, decide
from agent.model import Autonomy, Consent, Decision, Moment, Outcome, Risk

NOW = Moment(1_800_000_000.0, 100_000.0, "boot-2")
SUBJECT = "engine:chat"


LIMITS = Limits(cooldown_s=300.0, max_runs=3, within_s=21600.0)


@dataclass(frozen=True)
class Book:
    id: str = "restart-engine"
    risk: Risk = Risk.SERVICE
    limits: Limits = LIMITS
    consent: Consent = Consent.AUTONOMY


FREE = DecisionFacts(autonomy=Autonomy.ACT, caller=Caller.DAEMON)


def attempt(
    ago_s: float, outcome: Outcome | None = Outcome.FAILED, signature: str = "", *, run: str = "r", boot: bool = True
) -> Attempt:
    at = Moment(NOW.wall - ago_s, NOW.boot_s - ago_s, NOW.boot_id if boot else "boot-1")
    return Attempt(run, "restart-engine", SUBJECT, at, Risk.SERVICE, outcome, at if outcome else None, signature)


def ask(facts: DecisionFacts, book: Book = Book(), now: Moment = NOW) -> Decision:
    return decide(book, SUBJECT, facts, now)


def test_nothing_against_it_means_yes() -> None:
    assert ask(FREE) == Decision(True, "nothing speaks against it", "allowed")


FORBIDDEN = [
    ("unknown-subject", {"known": False}),
    ("run-in-flight", {"in_flight": "01X"}),
    ("paused", {"paused_until": NOW.wall + 60}),
    ("change-open", {"change": "upgrade"}),
    ("operator-masked", {"unit": UnitFacts("u", masked=True)}),
    ("operator-disabled", {"unit": UnitFacts("u", disabled=True)}),
    ("operator-stopped", {"unit": UnitFacts("u", operator_stopped=True)}),
    ("unit-busy", {"unit": UnitFacts("u", busy="a job is queued")}),
]
SPENT = [
    ("incurable", {"incurable": "no kernel image"}),
    ("same-failure-twice", {"attempts": (attempt(4000, signature="x"), attempt(2000, signature="x"))}),
    ("budget", {"attempts": (attempt(4000), attempt(3000), attempt(2000))}),
    ("cooldown", {"attempts": (attempt(100),)}),
]


@pytest.mark.parametrize(("code", "changes"), [*FORBIDDEN, *SPENT])
def test_each_reason_has_its_code(code: str, changes: dict[str, object]) -> None:
    decision = ask(replace(FREE, **changes))  # type: ignore[arg-type]
    assert (decision.allow, decision.code) == (False, code)


@pytest.mark.parametrize(("code", "changes"), FORBIDDEN)
def test_force_never_goes_beyond_what_is_forbidden(code: str, changes: dict[str, object]) -> None:
    operator = replace(FREE, caller=Caller.OPERATOR, force=True, **changes)  # type: ignore[arg-type]
    assert ask(operator).code == code


@pytest.mark.parametrize(("code", "changes"), SPENT)
def test_force_by_an_operator_goes_beyond_what_is_spent(code: str, changes: dict[str, object]) -> None:
    operator = replace(FREE, caller=Caller.OPERATOR, **changes)  # type: ignore[arg-type]
    assert ask(operator).code == code
    assert ask(replace(operator, force=True)).allow
    assert ask(replace(operator, caller=Caller.DAEMON, force=True)).code == code


def test_what_only_a_person_starts_is_never_the_daemons_and_no_pause_stops_it() -> None:
    book = Book(consent=Consent.OPERATOR)
    assert ask(replace(FREE, approved=True), book).code == "operators-only"
    person = replace(FREE, caller=Caller.OPERATOR)
    assert ask(replace(person, change="upgrade", paused_until=NOW.wall + 60), book).allow
    assert ask(replace(person, in_flight="01X"), book).code == "run-in-flight"


def test_a_persons_earlier_command_covers_what_stands_on_it_except_during_a_pause_or_change() -> None:
    book = Book(consent=Consent.STANDING)
    looking = replace(FREE, autonomy=Autonomy.OBSERVE)
    assert ask(looking, book).allow
    assert ask(replace(looking, paused_until=NOW.wall + 60), book).code == "paused"
    assert ask(replace(looking, change="upgrade"), book).code == "change-open"


def test_what_is_always_approved_is_never_run_by_itself() -> None:
    book = Book(consent=Consent.APPROVAL)
    assert (ask(FREE, book).code, ask(FREE, book).needs_approval) == ("needs-approval", True)
    assert ask(replace(FREE, approved=True), book).allow
    assert ask(replace(FREE, caller=Caller.OPERATOR), book).allow


def test_whose_hand_it_was_must_be_known_unless_an_operator_asks() -> None:
    unknown = replace(FREE, unit=UnitFacts("u", unknown="the journal cannot be read"))
    assert ask(unknown).code == "cannot-tell"
    assert ask(replace(unknown, caller=Caller.OPERATOR)).allow


def test_autonomy_binds_the_daemon_and_not_the_operator() -> None:
    observe, asking = replace(FREE, autonomy=Autonomy.OBSERVE), replace(FREE, autonomy=Autonomy.ASK)
    assert ask(observe).code == "autonomy-observe"
    assert (ask(asking).code, ask(asking).needs_approval) == ("needs-approval", True)
    assert ask(replace(asking, approved=True)).allow
    assert ask(replace(observe, approved=True)).allow
    assert ask(replace(observe, caller=Caller.OPERATOR)).allow


def test_approval_is_only_asked_for_a_run_that_would_start() -> None:
    asking = replace(FREE, autonomy=Autonomy.ASK, attempts=(attempt(100),))
    assert (ask(asking).code, ask(asking).needs_approval) == ("cooldown", False)


def test_a_refusal_spends_nothing() -> None:
    refused = tuple(attempt(10 * n, Outcome.REFUSED) for n in range(9, 0, -1))
    assert ask(replace(FREE, attempts=refused)).allow


def test_an_attempt_that_never_ended_spends_budget() -> None:
    assert ask(replace(FREE, attempts=tuple(attempt(1000.0 * n, None) for n in (3, 2, 1)))).code == "budget"


def test_other_runbooks_and_subjects_have_their_own_budget() -> None:
    others = tuple(replace(attempt(1000), subject="engine:other") for _ in range(5))
    more = tuple(replace(attempt(1000), runbook="rebuild") for _ in range(5))
    assert ask(replace(FREE, attempts=others + more)).allow


def test_a_success_in_between_starts_the_failures_afresh() -> None:
    tried = (attempt(6000, signature="x"), attempt(4000, Outcome.SUCCEEDED), attempt(2000, signature="x"))
    assert ask(replace(FREE, attempts=tried), Book(limits=Limits(300, 9, 21600))).allow


def test_two_unknown_failures_are_not_the_same_failure() -> None:
    assert ask(replace(FREE, attempts=(attempt(4000), attempt(2000)))).allow


def test_what_may_take_the_host_down_runs_once_a_day() -> None:
    book = Book("reload-driver", Risk.HOST)
    other = replace(attempt(80_000), runbook="reboot", subject="host", risk=Risk.HOST)
    decision = ask(replace(FREE, attempts=(other,)), book)
    assert decision.code == "host-once-a-day"
    assert decision.not_before == pytest.approx(NOW.wall + 6400)
    assert ask(replace(FREE, attempts=(replace(other, at=Moment(0.0, 0.0, "boot-0")),)), book).allow


def test_not_before_is_when_room_is_free_again() -> None:
    tried = (attempt(20_000), attempt(9000), attempt(5000))
    decision = ask(replace(FREE, attempts=tried))
    assert decision.not_before == pytest.approx(NOW.wall + 21600 - 20_000)


# --- properties ---------------------------------------------------------------------------------------------------

moments = st.builds(
    Moment,
    wall=st.floats(min_value=0, max_value=4e9),
    boot_s=st.floats(min_value=0, max_value=1e7),
    boot_id=st.sampled_from(["boot-1", "boot-2"]),
)
attempts = st.lists(
    st.builds(
        Attempt,
        run=st.just("r"),
        runbook=st.just("restart-engine"),
        subject=st.just(SUBJECT),
        at=moments,
        risk=st.sampled_from(list(Risk)),
        outcome=st.sampled_from([None, *Outcome]),
        ended_at=st.none() | moments,
        signature=st.sampled_from(["", "x", "y"]),
    ),
    max_size=6,
).map(tuple)
units = st.none() | st.builds(
    UnitFacts,
    name=st.just("u"),
    masked=st.booleans(),
    disabled=st.booleans(),
    operator_stopped=st.booleans(),
    unknown=st.sampled_from(["", "journal"]),
    busy=st.sampled_from(["", "job"]),
)
anything = st.builds(
    DecisionFacts,
    autonomy=st.sampled_from(list(Autonomy)),
    caller=st.sampled_from(list(Caller)),
    known=st.booleans(),
    force=st.booleans(),
    approved=st.booleans(),
    attempts=attempts,
    paused_until=st.none() | st.floats(min_value=0, max_value=4e9),
    change=st.sampled_from(["", "upgrade"]),
    in_flight=st.sampled_from(["", "01X"]),
    unit=units,
    incurable=st.sampled_from(["", "no kernel image"]),
)


@given(facts=anything, now=moments)
def test_a_yes_means_that_nobody_objects(facts: DecisionFacts, now: Moment) -> None:
    decision = ask(facts, now=now)
    if not decision.allow:
        assert decision.code
        assert decision.reason
        assert decision.not_before is None or decision.not_before >= now.wall
        return
    assert facts.known
    assert not facts.in_flight
    assert facts.paused_until is None
    assert not facts.change
    if facts.unit is not None:
        unit = facts.unit
        assert (unit.masked, unit.disabled, unit.operator_stopped, unit.busy) == (False, False, False, "")
    if facts.caller is Caller.DAEMON:
        assert facts.autonomy is Autonomy.ACT or facts.approved
    if not facts.force or facts.caller is Caller.DAEMON:
        recent = [each for each in facts.attempts if each.counts and now.since(each.at) < 21600]
        assert len(recent) < 3
        assert not facts.incurable


@given(times=st.lists(st.floats(min_value=0, max_value=200_000), max_size=40))
def test_no_window_ever_holds_more_runs_than_allowed(times: list[float]) -> None:
    """Asked at any times and obeyed at once, however the wall clock jumps meanwhile."""
    ran: list[Attempt] = []
    for index, boot_s in enumerate(sorted(times)):
        now = Moment(1e9 + (-1) ** index * 1e7, boot_s, "boot-1")
        if ask(replace(FREE, attempts=tuple(ran)), now=now).allow:
            ran.append(Attempt(str(index), "restart-engine", SUBJECT, now, Risk.SERVICE, Outcome.FAILED, now, ""))
    for first in ran:
        inside = [each for each in ran if 0 <= each.at.boot_s - first.at.boot_s < 21600]
        assert len(inside) <= 3
    gaps = [later.at.boot_s - earlier.at.boot_s for earlier, later in pairwise(ran)]
    assert all(gap >= 300 for gap in gaps)


@given(facts=anything)
def test_after_not_before_a_budget_has_room(facts: DecisionFacts) -> None:
    past = [Moment(min(a.at.wall, NOW.wall), min(a.at.boot_s, NOW.boot_s), a.at.boot_id) for a in facts.attempts]
    tried = tuple(replace(a, at=at, ended_at=None) for a, at in zip(facts.attempts, past, strict=True))
    facts = replace(facts, force=False, attempts=tried)
    decision = ask(facts)
    if decision.code in ("budget", "cooldown", "same-failure-twice", "host-once-a-day") and decision.not_before:
        wait = decision.not_before - NOW.wall + 1
        later = Moment(NOW.wall + wait, NOW.boot_s + wait, NOW.boot_id)
        after = ask(facts, now=later)
        assert after.code != decision.code


@given(wall=st.floats(min_value=0, max_value=4e9))
def test_an_attempt_from_the_future_counts_as_made_now(wall: float) -> None:
    at = Moment(wall, 5.0, "boot-1")
    tried = tuple(Attempt("r", "restart-engine", SUBJECT, at, Risk.SERVICE, Outcome.FAILED) for _ in range(3))
    allowed = ask(replace(FREE, attempts=tried)).allow
    assert allowed is (NOW.wall - wall >= 21600)


@pytest.mark.parametrize(("code", "changes"), SPENT)
def test_what_only_a_person_starts_has_no_budget(code: str, changes: dict[str, object]) -> None:
    person = replace(FREE, caller=Caller.OPERATOR, **changes)  # type: ignore[arg-type]
    assert ask(person, Book(consent=Consent.OPERATOR)).allow
    assert ask(person, Book(consent=Consent.APPROVAL)).code == code
