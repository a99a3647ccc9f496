"""When a runbook is rehearsed by itself: pure questions over the ledger, and the quiet hours."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from agent import ledger, rehearsals, runbook
from agent.config import Config, RehearsalSettings
from agent.ledger import Kind, Record
from agent.model import Moment, Outcome
from agent.plugin import engines
from agent.runbook import Runbook, Runbooks
from tests.support import lab

SUBJECT = "engine:chat"
HOUR = 3600.0
DAY = 24 * HOUR
NOW = Moment(1_800_000_000.0, 100 * DAY, "boot")


@pytest.fixture
def book(monkeypatch: pytest.MonkeyPatch) -> Runbook:
    text = lab.install(monkeypatch)
    found = runbook.parse(text, "rebuild-lab.yaml", runbook.catalogue(), [])
    assert found is not None
    return found


def ago(seconds: float) -> Moment:
    return Moment(NOW.wall - seconds, NOW.boot_s - seconds, NOW.boot_id)


def records(*rehearsed: tuple[float, str], **more: Any) -> tuple[Record, ...]:
    """Rehearsals: how long ago each began, and its outcome, "" for none."""
    found: list[Record] = []
    for number, (since_s, outcome) in enumerate(rehearsed):
        begun = {"runbook": "rebuild-lab", "subject": SUBJECT, "risk": "none"}
        found.append(Record(0, ago(since_s), Kind.REHEARSAL, f"R{number}", begun, "", ""))
        if outcome:
            ended = {"outcome": outcome, "summary": f"it {outcome}", "took_s": 702.0 + number, **more}
            found.append(Record(0, ago(since_s - 60), Kind.REHEARSED, f"R{number}", ended, "", ""))
    return tuple(found)


def test_it_is_due_when_it_was_never_rehearsed(book: Runbook) -> None:
    assert rehearsals.due((), book, SUBJECT, NOW)


@pytest.mark.parametrize(
    ("since_s", "outcome", "due"),
    [
        (7 * DAY, "succeeded", True),
        (6.6 * DAY, "succeeded", True),
        (6.4 * DAY, "succeeded", False),
        (DAY, "succeeded", False),
        (DAY, "failed", True),
        (DAY, "stopped", True),
        (DAY, "refused", True),
        (DAY, "interrupted", True),
        (10 * HOUR, "failed", False),
        (10 * HOUR, "", False),
    ],
)
def test_it_is_due_in_the_night_a_week_later_and_in_the_next_one_when_it_did_not_work(
    book: Runbook, since_s: float, outcome: str, due: bool
) -> None:
    assert rehearsals.due(records((since_s, outcome)), book, SUBJECT, NOW) is due


def test_what_is_due_is_never_refused_as_too_soon(book: Runbook) -> None:
    for outcome in ("succeeded", "failed"):
        for hours in range(24 * 8):
            known = records((hours * HOUR, outcome))
            if rehearsals.due(known, book, SUBJECT, NOW):
                assert rehearsals.too_soon(known, book, SUBJECT, NOW, paused=None, change="") is None


def test_each_engine_has_a_week_of_its_own(book: Runbook) -> None:
    assert rehearsals.due(records((DAY, "succeeded")), book, "engine:embed", NOW)


def test_a_runbook_that_is_rehearsed_only_by_hand_is_never_due(book: Runbook) -> None:
    assert not rehearsals.due((), replace(book, rehearsal_every_s=0.0), SUBJECT, NOW)
    assert not rehearsals.due((), replace(book, rehearsal_every_s=None), SUBJECT, NOW)


def test_the_last_success_is_remembered_beyond_a_later_failure() -> None:
    known = rehearsals.known(records((8 * DAY, "succeeded"), (DAY, "failed")), "rebuild-lab", SUBJECT)
    assert known.proven is not None
    assert known.last is not None
    assert (known.proven.run, known.took_s) == ("R0", 702.0)
    assert (known.last.outcome, known.said) == (Outcome.FAILED, "it failed")


def test_whom_it_gave_way_to_is_known() -> None:
    stop = Record(0, ago(DAY), Kind.STOP, "R0", {"run": "A1", "uid": 0}, "", "")
    known = rehearsals.known((*records((DAY, "stopped")), stop), "rebuild-lab", SUBJECT)
    assert known.gave_way_to == "A1"


def test_rehearsals_are_no_attempts_and_are_in_flight_all_the_same() -> None:
    known = records((DAY, "succeeded"), (HOUR, ""))
    assert ledger.attempts(known) == ()
    assert [each.run for each in ledger.open_attempts(known, NOW)] == ["R1"]


def test_only_what_is_configured_can_be_rehearsed(book: Runbook) -> None:
    settings = engines()["llama.cpp"].settings
    named = [settings(name=name, kind="llama.cpp", url="http://127.0.0.1:1") for name in ("chat", "bare")]
    other = replace(book, id="restart-lab", rehearsal_every_s=None)
    books = Runbooks({book.id: book, other.id: other})
    found = list(rehearsals.possible(Config(engines=tuple(named)), books))
    assert [(each.id, subject) for each, subject in found] == [("rebuild-lab", SUBJECT)]


# --- quiet hours --------------------------------------------------------------------------------------------


@pytest.fixture
def zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    def at(name: str) -> None:
        monkeypatch.setenv("TZ", name)
        time.tzset()

    yield at
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("hours", "clock", "quiet"),
    [
        ("02:00-05:00", 2.0, True),
        ("02:00-05:00", 4.99, True),
        ("02:00-05:00", 5.0, False),
        ("02:00-05:00", 1.9, False),
        ("22:30-06:00", 23.0, True),
        ("22:30-06:00", 5.5, True),
        ("22:30-06:00", 22.4, False),
        ("00:00-24:00", 23.99, True),
    ],
)
def test_quiet_hours_begin_and_end_and_may_go_past_midnight(zone: Any, hours: str, clock: float, quiet: bool) -> None:
    zone("UTC")
    midnight = 1_800_000_000.0 // DAY * DAY
    assert rehearsals.quiet(hours, midnight + clock * HOUR) is quiet


def test_quiet_hours_are_those_of_the_hosts_own_clock(zone: Any) -> None:
    midnight = 1_800_000_000.0 // DAY * DAY
    zone("UTC-9")  # nine hours ahead of UTC
    assert rehearsals.quiet("02:00-05:00", midnight + 18 * HOUR)
    assert not rehearsals.quiet("02:00-05:00", midnight + 3 * HOUR)


@pytest.mark.parametrize("hours", ["2-5", "02:00-05:60", "25:00-26:00", "02:00", ""])
def test_what_is_no_span_of_hours_is_a_mistake(hours: str) -> None:
    with pytest.raises(ValueError, match="quiet"):
        RehearsalSettings(quiet=hours)
