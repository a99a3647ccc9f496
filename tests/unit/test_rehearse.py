"""A rehearsal: what disturbs nobody is done and undone, nothing is spent, and a repair comes first."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent import claim, ledger, recover, rehearsals, transcript
from agent.host import changes, locks
from agent.host.changes import Change
from agent.ledger import Kind
from agent.model import Moment, Outcome
from agent.protocol import Event
from agent.views import texts
from agent.views.in_flight import in_flight
from tests.support import lab
from tests.support.world import DAEMON_UID, OPERATOR_UID, READER_UID, SUBJECT, Killed, World, ended, refused

BOOK = "rebuild-lab"
DAY = 86400.0


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(tmp_path)
    made.write("etc/holdfast/runbooks.d/rebuild-lab.yaml", lab.install(monkeypatch))
    (tmp_path / lab.PRODUCT[1:]).parent.mkdir(parents=True)
    return made


def there(world: World, path: str) -> bool:
    return (world.root / path[1:]).exists()


def put(world: World, path: str) -> None:
    (world.root / path[1:]).write_text("")


def rehearsal(world: World, **changes: Any) -> list[Event]:
    uid = changes.pop("uid", DAEMON_UID)
    stopping = changes.pop("stopping", lambda: False)
    return world.ask(world.request("rehearse", **{"runbook": BOOK, **changes}), uid=uid, stopping=stopping)


def kinds(world: World) -> list[str]:
    contents = ledger.read(world.host())
    assert ledger.verify(contents) == ()
    return [record.kind.value for record in contents.records]


def known(world: World) -> rehearsals.Known:
    return rehearsals.known(ledger.read(world.host()).records, BOOK, SUBJECT)


# --- what it does -------------------------------------------------------------------------------------------


def test_only_what_disturbs_nobody_is_done_and_nothing_is_left(world: World) -> None:
    events = rehearsal(world)
    names = [event.data["name"] for event in events if event.event == "step_started"]
    assert names == ["Build", "Try it"]
    assert ended(events)["outcome"] == "succeeded"
    assert ended(events)["summary"] == "2 of 3 steps work; left out: Switch"
    assert not there(world, lab.PRODUCT)
    assert not there(world, lab.IN_USE)
    assert not [call for call in world.systemd.calls if call[0] == "systemctl" and call[1] != "show"]
    assert world.systemd.state()["starts"] == 0


def test_it_is_on_record_as_what_it_was_and_spends_no_budget(world: World) -> None:
    for _ in range(3):
        rehearsal(world)
        world.later(DAY)
    assert kinds(world) == ["rehearsal", "rehearsed"] * 3
    assert ledger.attempts(ledger.read(world.host()).records) == ()
    assert ended(world.ask(world.request(runbook=BOOK)))["outcome"] == "succeeded", "two runs a day are allowed"
    assert there(world, lab.IN_USE)


def test_how_long_it_took_is_kept_without_the_clearing_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    put(world, lab.SLOW)
    clock = world.clock
    sleep = clock.sleep

    def finishes_after_ten_minutes(seconds: float) -> None:
        sleep(590.0 if seconds < 1 and there(world, lab.SLOW) else seconds)
        (world.root / lab.SLOW[1:]).unlink(missing_ok=True)

    monkeypatch.setattr(clock, "sleep", finishes_after_ten_minutes)
    rehearsal(world)
    assert 590 <= (known(world).took_s or 0.0) < 592


@pytest.mark.parametrize("autonomy", ["observe", "ask", "act"])
def test_it_needs_no_permission_in_any_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autonomy: str) -> None:
    world = World(tmp_path, autonomy=autonomy)
    world.write("etc/holdfast/runbooks.d/rebuild-lab.yaml", lab.install(monkeypatch))
    (tmp_path / lab.PRODUCT[1:]).parent.mkdir(parents=True)
    assert ended(rehearsal(world))["outcome"] == "succeeded"


def test_what_does_not_work_is_said_and_cleared_up(world: World) -> None:
    put(world, lab.SPOILT)
    data = ended(rehearsal(world))
    assert (data["outcome"], data["summary"], data["signature"]) == ("failed", "it is no good", "")
    assert not there(world, lab.PRODUCT)
    assert known(world).said == "it is no good"
    assert known(world).proven is None


def test_what_cannot_be_cleared_up_has_failed(world: World) -> None:
    put(world, lab.STUCK)
    data = ended(rehearsal(world))
    assert (data["outcome"], data["code"]) == ("failed", "not-cleared-up")
    assert "the disk does not let go of it" in data["summary"]


def test_a_precondition_that_is_missing_refuses_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = {**lab.ACTIONS, "lab.build": lab.refusing("no compiler, no room on the disk")}
    monkeypatch.setattr(lab, "ACTIONS", missing)
    lab.install(monkeypatch)
    events = rehearsal(world)
    assert [event.data["code"] for event in events if event.event == "refused"] == ["not-ready"]
    assert ended(events)["outcome"] == "refused"
    assert known(world).said == "no compiler, no room on the disk"


def test_it_is_undone_to_its_end_when_it_is_stopped(world: World) -> None:
    put(world, lab.SLOW)
    asked: list[int] = []
    data = ended(rehearsal(world, stopping=lambda: bool(asked) or there(world, lab.PRODUCT)))
    assert data["outcome"] == "stopped"
    assert not there(world, lab.PRODUCT)


def test_the_same_id_asked_again_is_answered_with_what_became_of_it(world: World) -> None:
    request = world.request("rehearse", runbook=BOOK)
    first = world.ask(request)
    assert world.ask(request) == first
    assert kinds(world) == ["rehearsal", "rehearsed"]


# --- who may, and when --------------------------------------------------------------------------------------


def test_a_runbook_without_a_rehearsal_has_none(world: World) -> None:
    assert refused(rehearsal(world, runbook="restart-engine")) == "no-rehearsal"


def test_where_nothing_is_configured_there_is_nothing_to_rehearse(world: World) -> None:
    bare = '\n[[engine]]\nname = "bare"\nkind = "llama.cpp"\nurl = "http://127.0.0.1:8081"\n'
    path = world.root / "etc/holdfast/holdfast.toml"
    path.write_text(path.read_text() + bare)
    assert refused(rehearsal(world, subject="engine:bare")) == "nothing-to-rehearse"


def test_the_daemon_asks_for_the_same_once_a_day_and_a_person_whenever_she_likes(world: World) -> None:
    rehearsal(world)
    assert refused(rehearsal(world)) == "rehearsed-lately"
    assert ended(rehearsal(world, uid=OPERATOR_UID))["outcome"] == "succeeded"
    world.later(DAY)
    assert ended(rehearsal(world))["outcome"] == "succeeded"


def test_members_of_the_group_only_read(world: World) -> None:
    assert refused(rehearsal(world, uid=READER_UID)) == "permission"


def test_while_a_person_has_paused_acting_only_she_rehearses(world: World) -> None:
    world.ask(world.request("pause", args={"for_s": 3600}), uid=OPERATOR_UID)
    assert refused(rehearsal(world)) == "paused"
    assert ended(rehearsal(world, uid=OPERATOR_UID))["outcome"] == "succeeded"


def test_while_a_planned_change_is_open_only_a_person_rehearses(world: World) -> None:
    change = Change("1", "580.178.04", "", "CVE", Moment(0.0, 0.0, "boot-1"), 3600.0, "alice", "550.54.15")
    world.write(changes.FILE[1:], changes.text(change))
    assert refused(rehearsal(world)) == "change-open"


def test_the_pause_and_the_day_bind_no_repair(world: World) -> None:
    rehearsal(world)
    world.systemd.set(healthy=False)
    assert ended(world.ask(world.request()))["outcome"] == "succeeded"


# --- what is meant seriously comes first --------------------------------------------------------------------


class Going:
    """A rehearsal in another thread, which builds until it is stopped."""

    def __init__(self, world: World, subject: str = SUBJECT) -> None:
        put(world, lab.SLOW)
        self.stop = threading.Event()
        self.events: list[Event] = []
        self.request = world.request("rehearse", runbook=BOOK, subject=subject)
        apart = world.restarted()  # its own clock: pretended sleep would be over at once
        apart.clock.sleep = lambda seconds: None  # type: ignore[method-assign]
        self.thread = threading.Thread(target=self._run, args=(apart,), daemon=True)
        self.thread.start()
        while not there(world, lab.PRODUCT):
            assert self.thread.is_alive()

    def _run(self, world: World) -> None:
        self.events = world.ask(self.request, stopping=self.stop.is_set)


@pytest.fixture
def going(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Going]]:
    begun: list[Going] = []

    def begin() -> Going:
        begun.append(Going(world))
        return begun[-1]

    def terminate(_: int) -> bool:
        for each in begun:
            each.stop.set()
        return True

    monkeypatch.setattr(locks, "terminate", terminate)
    monkeypatch.setattr(claim, "_process", lambda host: {"pid": 1, "started_boot_s": 0.0})
    monkeypatch.setattr(claim, "_reach", lambda host, note, act: act(1))
    yield begin
    for each in begun:
        each.stop.set()
        each.thread.join()


def test_a_repair_ends_a_rehearsal_and_gets_its_place(world: World, going: Callable[[], Going]) -> None:
    other = going()
    world.systemd.set(healthy=False)
    assert ended(world.ask(world.request()))["outcome"] == "succeeded"
    other.thread.join()
    assert ended(other.events)["outcome"] == "stopped"
    assert not there(world, lab.PRODUCT)
    assert world.systemd.state()["starts"] == 1
    assert known(world).gave_way_to == next(each.run for each in ledger.attempts(ledger.read(world.host()).records))


def test_a_repair_of_another_engine_ends_it_too(world: World, going: Callable[[], Going]) -> None:
    second = '\n[[engine]]\nname = "embed"\nkind = "llama.cpp"\nurl = "http://127.0.0.1:8081"\n'
    path = world.root / "etc/holdfast/holdfast.toml"
    path.write_text(path.read_text() + second)
    other = going()
    world.ask(world.request(subject="engine:embed"))
    other.thread.join()
    assert ended(other.events)["outcome"] == "stopped"


def test_a_rehearsal_in_flight_is_told_as_one(world: World, going: Callable[[], Going]) -> None:
    going()
    host = world.host()
    (line,) = in_flight(host, ledger.read(host).records, host.clock.now())
    assert texts.in_flight_words(line).startswith("rehearsal of rebuild-lab on engine:chat, step 1/3: Build")


def test_a_repair_that_would_be_refused_ends_nothing(world: World, going: Callable[[], Going]) -> None:
    other = going()
    world.ask(world.request("pause", args={"for_s": 3600}), uid=OPERATOR_UID)
    assert refused(world.ask(world.request())) == "paused"
    assert other.thread.is_alive()
    assert not other.stop.is_set()


def test_a_rehearsal_that_does_not_give_way_is_killed(
    world: World, going: Callable[[], Going], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = going()
    monkeypatch.setattr(locks, "terminate", lambda pid: True)
    killed: list[int] = []

    def kill(pid: int) -> bool:
        killed.append(pid)
        other.stop.set()
        other.thread.join()
        return True

    monkeypatch.setattr(locks, "kill", kill)
    before = world.clock.ahead_s
    world.systemd.set(healthy=False)
    assert ended(world.ask(world.request()))["outcome"] == "succeeded"
    assert killed == [1]
    assert claim.GIVE_WAY_S - 5 < world.clock.ahead_s - before < claim.GIVE_WAY_S + 60


def test_a_rehearsal_waits_for_no_run_and_ends_none(world: World) -> None:
    ledger.prepare(world.host())
    with claim.take(world.host(), SUBJECT, "01J0000000000000000000000A"):  # type: ignore[union-attr]
        assert refused(rehearsal(world, uid=OPERATOR_UID)) == "run-in-flight"
    with claim.take(world.host(), "host", "01J0000000000000000000000A"):  # type: ignore[union-attr]
        assert refused(rehearsal(world, uid=OPERATOR_UID)) == "run-in-flight"
    assert set(kinds(world)) == {"refused"}


def test_one_rehearsal_at_a_time(world: World, going: Callable[[], Going]) -> None:
    other = going()
    events = rehearsal(world, uid=OPERATOR_UID)
    assert refused(events) == "run-in-flight"
    assert other.request.id in events[0].data["reason"]


# --- cut off ------------------------------------------------------------------------------------------------

ACTS = 40
"""More than one rehearsal has; a test makes sure that it is enough."""


def test_the_acts_tried_below_are_all_there_are(world: World) -> None:
    rehearsal(world)
    assert 20 < world.acts.count <= ACTS


@pytest.mark.parametrize("act", range(1, ACTS + 1))
def test_a_rehearsal_that_is_killed_anywhere_is_cleared_up_and_judged_as_nothing(world: World, act: int) -> None:
    world.acts.die_at = act
    with contextlib.suppress(Killed):
        rehearsal(world)
    again = world.restarted()
    assert recover.main(again.host()) == 0
    assert not there(again, lab.PRODUCT)
    assert not there(again, lab.IN_USE)
    assert again.systemd.state()["starts"] == 0
    found = kinds(again)
    assert found in ([], ["rehearsal", "rehearsed"])
    if found:
        tried = ledger.rehearsals(ledger.read(again.host()).records)[-1]
        assert tried.outcome in (Outcome.INTERRUPTED, Outcome.SUCCEEDED)
        events = transcript.events(again.host(), tried.run)
        assert [event.event for event in events].count("ended") == 1
    before = kinds(again)
    assert recover.main(again.restarted().host()) == 0
    assert kinds(again) == before


def test_the_next_repair_clears_up_what_a_killed_rehearsal_left(world: World) -> None:
    world.acts.die_at = 12
    with contextlib.suppress(Killed):
        rehearsal(world)
    assert there(world, lab.PRODUCT)
    again = world.restarted()
    again.systemd.set(healthy=False)
    assert ended(again.ask(again.request()))["outcome"] == "succeeded"
    assert not there(again, lab.PRODUCT)
    assert kinds(again) == ["rehearsal", "rehearsed", "attempt", "outcome", "reset"]


def test_a_cut_off_run_is_finished_before_anything_is_rehearsed(world: World) -> None:
    world.systemd.set(healthy=False)
    world.acts.die_at = 3  # its first act is the attempt's record
    with contextlib.suppress(Killed):
        world.ask(world.request())
    again = world.restarted()
    rehearsal(again)
    assert [each for each in kinds(again) if each != "reset"] == ["attempt", "outcome", "rehearsal", "rehearsed"]


def test_the_ledger_says_whose_a_record_is(world: World) -> None:
    rehearsal(world, because="the weekly one")
    (begun,) = [each for each in ledger.read(world.host()).records if each.kind is Kind.REHEARSAL]
    assert begun.data["uid"] == DAEMON_UID
    assert begun.data["because"] == "the weekly one"
