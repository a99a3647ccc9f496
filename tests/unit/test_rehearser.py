"""When the daemon rehearses by itself, why it does not, and what is said of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from agent import runbook
from agent.config import Config, RehearsalSettings
from agent.host import changes
from agent.host.changes import Change
from agent.ledger import Kind, Record
from agent.model import CheckResult, Incident, Moment, Observation, Phase, Status, Urgency, Verdict
from agent.plugin import engines
from agent.protocol import Request
from agent.rehearsals import known
from agent.rehearser import Rehearser, at_work
from agent.runbook import Runbook, Runbooks
from agent.views import rehearsed
from tests.support import lab
from tests.support.cli import RUN
from tests.support.fake_host import FakeHost

SUBJECT = "engine:chat"
BUSY_DAY = 86400.0
ROOM = "MemTotal: 16000000 kB\nMemAvailable: 8000000 kB\n"


@pytest.fixture
def book(monkeypatch: pytest.MonkeyPatch) -> Runbook:
    found = runbook.parse(lab.install(monkeypatch), "rebuild-lab.yaml", runbook.catalogue(), [])
    assert found is not None
    return found


class Night:
    """A host at rest in its quiet hours, with one rehearsal that is due."""

    def __init__(self, book: Runbook) -> None:
        self.host = FakeHost.build({"/proc/meminfo": ROOM})
        settings = engines()["llama.cpp"].settings(name="chat", kind="llama.cpp", url="http://127.0.0.1:1")
        self.config = Config(engines=(settings,), rehearsal=RehearsalSettings(quiet="00:00-24:00"))
        self.books = Runbooks({book.id: book})
        self.records: Sequence[Record] = ()
        self.results: Sequence[CheckResult] = ()
        self.incidents: Sequence[Incident] = ()
        self.rehearser = Rehearser(self.host, lambda: RUN, self.host.clock.now())

    def look(self, after_s: float = 61.0) -> Request | None:
        self.host.clock.advance(after_s)
        return self.rehearser.tick(
            self.host.clock.now(), self.config, self.books, self.records, self.results, self.incidents
        )

    def ago(self, seconds: float) -> Moment:
        now = self.host.clock.now()
        return Moment(now.wall - seconds, now.boot_s - seconds, now.boot_id)


@pytest.fixture
def night(book: Runbook) -> Night:
    return Night(book)


def record(at: Moment, kind: Kind, run: str, **data: Any) -> Record:
    return Record(0, at, kind, run, {"runbook": "rebuild-lab", "subject": SUBJECT, **data}, "", "")


def incident(urgency: Urgency, subject: str = SUBJECT, phase: Phase = Phase.OPEN) -> Incident:
    at = Moment(0.0, 0.0, "boot")
    return Incident("i", "k", "engine-wedged", subject, phase, urgency, "s", "", 0.0, at, at)


def progress(verdict: Verdict = Verdict.READY, **evidence: Any) -> CheckResult:
    seen = tuple(Observation(name, value) for name, value in evidence.items())
    return CheckResult("engine.progress", SUBJECT, Status.OK, "", seen, Moment(0.0, 0.0, "boot"), 0.0, verdict)


def test_what_is_due_is_asked_for_in_the_quiet_hours(night: Night) -> None:
    request = night.look()
    assert request is not None
    assert (request.do, request.runbook, request.subject, request.force) == ("rehearse", "rebuild-lab", SUBJECT, False)


def test_nothing_is_begun_in_the_first_minute(night: Night) -> None:
    assert night.look(30.0) is None
    assert night.rehearser.lines is None
    assert night.look(31.0) is not None


def test_outside_the_quiet_hours_nothing_is_begun(night: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.rehearsals.quiet", lambda hours, wall: False)
    assert night.look() is None


def test_who_does_not_want_it_is_left_alone(night: Night) -> None:
    night.config = replace(night.config, rehearsal=RehearsalSettings(quiet="00:00-24:00", by_itself=False))
    assert night.look() is None
    assert night.rehearser.lines == ("a rebuild of chat has never been proven by a rehearsal",)


def test_what_was_done_this_week_is_not_due(night: Night) -> None:
    at = night.ago(BUSY_DAY)
    night.records = (
        record(at, Kind.REHEARSAL, "R"), record(at, Kind.REHEARSED, "R", outcome="succeeded", took_s=702.0),
    )  # fmt: skip
    assert night.look() is None
    (line,) = night.rehearser.lines or ()
    assert line.startswith("a rebuild of chat takes 11 min 42 s, last proven ")
    assert night.rehearser.proven == {("rebuild-lab", SUBJECT): (at.wall, 702.0)}


@pytest.mark.parametrize(
    ("outcome", "trouble"),
    [
        ("failed", "a rebuild of chat did not work when it was rehearsed: no compiler"),
        ("refused", "a rebuild of chat did not work when it was rehearsed: no compiler"),
        ("stopped", ""),
        ("interrupted", ""),
        ("succeeded", ""),
    ],
)
def test_what_did_not_work_is_trouble_until_it_does(night: Night, outcome: str, trouble: str) -> None:
    at = night.ago(3600.0)
    night.records = (
        record(at, Kind.REHEARSAL, "R"), record(at, Kind.REHEARSED, "R", outcome=outcome, summary="no compiler"),
    )  # fmt: skip
    night.look()
    assert night.rehearser.trouble == trouble


def busy_with(night: Night, what: str) -> None:
    now = night.host.clock.now()
    if what == "pause":
        night.records = (Record(0, now, Kind.PAUSE, "", {"for_s": 3600.0, "uid": 0, "reason": ""}, "", ""),)
    elif what == "run":
        night.records = (record(now, Kind.ATTEMPT, "A", risk="service"),)
    elif what == "change":
        change = Change("1", "580.178.04", "", "CVE", Moment(0.0, 0.0, "boot-1"), 3600.0, "alice", "550.54.15")
        night.host.files.entries[changes.FILE] = changes.text(change)
    elif what == "memory":
        night.host.files.entries["/proc/meminfo"] = "MemTotal: 16000000 kB\nMemAvailable: 1000000 kB\n"
    elif what == "incident":
        night.incidents = (incident(Urgency.WARNING),)
    elif what == "queue":
        night.results = (progress(Verdict.BUSY, free_slots=0, pending=4),)
    elif what == "loading":
        night.results = (progress(Verdict.LOADING),)


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("pause", "a person paused all acting"),
        ("run", "a run is in flight"),
        ("change", "a planned change is open: driver 580.178.04 (CVE)"),
        ("memory", "only 976 MiB of memory are free"),
        ("incident", "an incident is open: engine-wedged on engine:chat"),
        ("queue", "chat has no free slot"),
        ("loading", "chat is loading"),
    ],
)
def test_beside_work_it_is_left_out_with_the_reason_and_tried_again(night: Night, what: str, why: str) -> None:
    busy_with(night, what)
    assert night.look() is None
    (line,) = night.rehearser.lines or ()
    assert line.endswith(f": {why}")
    assert "; not rehearsed 0" in line
    night.records, night.results, night.incidents = (), (), ()
    night.host.files.entries.pop(changes.FILE, None)
    night.host.files.entries["/proc/meminfo"] = ROOM
    assert night.look() is not None
    assert "not rehearsed" not in (night.rehearser.lines or ("",))[0]


def test_an_engine_at_work_that_has_room_is_no_reason() -> None:
    assert at_work((progress(Verdict.BUSY, free_slots=2, pending=2),), ()) == ""
    assert at_work((progress(),), ()) == ""


def test_what_is_told_quietly_or_is_only_a_warning_about_the_host_is_no_reason() -> None:
    for each in (
        incident(Urgency.INFO),
        incident(Urgency.WARNING, "host"),
        incident(Urgency.CRITICAL, phase=Phase.RESOLVED),
    ):
        assert at_work((), (each,)) == ""
    assert at_work((), (incident(Urgency.CRITICAL, "host"),))


# --- the words -----------------------------------------------------------------------------------------------

NOW = Moment(1_800_000_000.0, 40 * BUSY_DAY, "boot")  # 2027-01-15 08:00 UTC, a Friday


def told(book: Runbook, *ended: tuple[float, str], stop: bool = False) -> tuple[str, bool]:
    records: list[Record] = []
    for number, (since_s, outcome) in enumerate(ended):
        at = Moment(NOW.wall - since_s, NOW.boot_s - since_s, "boot")
        said = {"outcome": outcome, "summary": "the compiler is missing", "took_s": 702.0}
        records += [record(at, Kind.REHEARSAL, f"R{number}"), record(at, Kind.REHEARSED, f"R{number}", **said)]
        if stop:
            records.append(Record(0, at, Kind.STOP, f"R{number}", {"run": "A"}, "", ""))
    seen = known(records, book.id, SUBJECT)
    return rehearsed.words(book, SUBJECT, seen, NOW), rehearsed.doubtful(book, seen, NOW)


PROVEN = "a rebuild of chat takes 11 min 42 s, last proven Tuesday 08:00 UTC"


def test_a_rehearsal_of_this_week_is_told_by_its_day(book: Runbook) -> None:
    assert told(book, (3 * BUSY_DAY, "succeeded")) == (PROVEN, False)


def test_one_of_last_week_is_told_by_its_date(book: Runbook) -> None:
    assert told(book, (8 * BUSY_DAY, "succeeded"))[0].endswith("last proven 2027-01-07 08:00 UTC")


def test_what_was_not_proven_for_weeks_is_doubtful(book: Runbook) -> None:
    assert not told(book, (20 * BUSY_DAY, "succeeded"))[1]
    assert told(book, (22 * BUSY_DAY, "succeeded"))[1]


def test_what_did_not_work_the_last_time_is_told_with_the_reason(book: Runbook) -> None:
    words, doubtful = told(book, (3 * BUSY_DAY, "succeeded"), (BUSY_DAY, "refused"))
    assert words == f"{PROVEN}; the last rehearsal, Thursday 08:00 UTC, could not begin: the compiler is missing"
    assert doubtful
    assert told(book, (BUSY_DAY, "failed"))[0].startswith("a rebuild of chat has never been proven by a rehearsal; ")


def test_one_that_made_room_for_a_run_is_no_reason_to_doubt(book: Runbook) -> None:
    words, doubtful = told(book, (3 * BUSY_DAY, "succeeded"), (BUSY_DAY, "stopped"), stop=True)
    assert words == f"{PROVEN}; the last rehearsal, Thursday 08:00 UTC, made room for a run that was needed"
    assert not doubtful


def test_what_was_never_rehearsed_is_doubtful(book: Runbook) -> None:
    assert told(book) == ("a rebuild of chat has never been proven by a rehearsal", True)
