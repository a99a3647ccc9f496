"""The daemon's memory survives what happens to files, and says so."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.errors import StoreError
from agent.model import (
    Alert,
    CheckResult,
    Delivery,
    Incident,
    Moment,
    Observation,
    Outcome,
    Phase,
    Run,
    Status,
    StepResult,
    Transition,
    Urgency,
    Verdict,
)
from agent.store import Store, open_read_only, open_store
from agent.store.database import RETRY_S
from tests.support.fake_host import FakeClock

NOW = Moment(1_800_000_000.0, 10_000.0, "boot-1")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "holdfast.db"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store(path: Path, clock: FakeClock) -> Iterator[Store]:
    opened = open_store(path, clock)
    yield opened
    opened.close()


def result(status: Status = Status.OK, check: str = "host.disk", subject: str = "host") -> CheckResult:
    evidence = (Observation("cursor", {"at": [1, 2.5, None]}, "s", (("disk", "/"),)), Observation("free", 5, "bytes"))
    return CheckResult(check, subject, status, f"it is {status}", evidence, NOW, 0.25, Verdict.BUSY)


def incident(number: int = 1, phase: Phase = Phase.OPEN) -> Incident:
    return Incident(
        f"I{number}", f"holdfast/1a2b3c4d/engine-dead/engine:e{number}", "engine-dead", f"engine:e{number}", phase,
        Urgency.WARNING, "dead", "exit 1", NOW.wall, NOW, NOW, tried=("restart-engine: failed",),
    )  # fmt: skip


def transition(number: int, of: int = 1) -> Transition:
    return Transition(f"T{number}", f"I{of}", NOW.wall + number, "opened", f"text {number}")


def alert(number: int) -> Alert:
    return Alert(f"A{number}", "k", "trigger", Urgency.WARNING, "t", "b", "gpu1", "host", "f", 1.0, 1.0)


def test_results_come_back_as_they_were_with_their_observations(store: Store) -> None:
    store.save_results([result(), result(check="engine.alive", subject="engine:chat")])
    store.save_results([result(Status.CRITICAL)])
    found = store.load_results()
    assert found[("host.disk", "host")] == result(Status.CRITICAL)
    assert found[("engine.alive", "engine:chat")] == result(check="engine.alive", subject="engine:chat")


def test_history_holds_changes_of_status_only(store: Store) -> None:
    for status in (Status.OK, Status.OK, Status.CRITICAL, Status.CRITICAL, Status.OK):
        store.save_results([result(status)])
    assert [change.status for change in store.status_changes("host.disk", "host")] == ["OK", "CRITICAL", "OK"]
    assert store.status_changes("other") == []


def test_results_of_what_is_no_longer_configured_are_forgotten(store: Store) -> None:
    store.save_results([result(), result(subject="engine:gone")])
    store.keep_results({("host.disk", "host")})
    assert list(store.load_results()) == [("host.disk", "host")]


def test_a_commit_is_all_or_nothing(store: Store) -> None:
    class Broken(Transition):
        @property
        def id(self) -> str:  # type: ignore[override]
            raise RuntimeError("the process dies here")

    with pytest.raises(RuntimeError):
        store.commit([incident()], [object.__new__(Broken)], [("pd", alert(1))])
    assert store.load_incidents() == []
    assert store.depth() == {}
    store.commit([incident()], [transition(1)], [("pd", alert(1))])
    assert store.load_incidents() == [incident()]


def test_a_commit_may_be_repeated_without_telling_twice(store: Store) -> None:
    for _ in range(2):
        store.commit([incident()], [transition(1)], [("pd", alert(1)), ("hook", alert(1))])
    assert store.transitions("I1") == [transition(1)]
    assert store.depth() == {"pd": 1, "hook": 1}


def test_resolved_incidents_are_kept_but_not_loaded_as_open(store: Store) -> None:
    store.commit([incident(1), incident(2)])
    store.commit([incident(1, Phase.RESOLVED)])
    assert store.load_incidents() == [incident(2)]
    assert store.load_incidents(open_only=False) == [incident(1, Phase.RESOLVED), incident(2)]
    assert store.incident("I1") == incident(1, Phase.RESOLVED)
    assert store.incident("nobody") is None


def test_transitions_come_back_in_order(store: Store) -> None:
    store.commit([incident(1), incident(2)], [transition(2), transition(1), transition(3, of=2)])
    assert [each.id for each in store.transitions("I1")] == ["T2", "T1"]
    assert [each.id for each in store.recent_transitions(2)] == ["T3", "T1"]


def test_the_latest_summary_of_a_run_wins(store: Store) -> None:
    running = Run("R1", "restart-engine", "engine:chat", "engine-dead", 1.0, None, None)
    step = StepResult("Restart", "engine.restart", ok=True, summary="done", duration_s=2.0)
    ended = Run("R1", "restart-engine", "engine:chat", "engine-dead", 1.0, 9.0, Outcome.SUCCEEDED, "ok", "", (step,))
    store.save_run(running)
    store.commit(runs=[ended])
    assert store.runs() == [ended]
    assert store.run("R1") == ended


def test_small_values_are_kept(store: Store) -> None:
    assert store.get("proven/chat", 0) == 0
    store.set("proven/chat", {"at": 5.5})
    assert store.get("proven/chat") == {"at": 5.5}


def test_everything_is_there_after_a_restart(path: Path, clock: FakeClock) -> None:
    first = open_store(path, clock)
    first.save_results([result()])
    first.commit([incident()], [transition(1)], [("pd", alert(1))])
    first.set("x", 1)
    first.close()
    second = open_store(path, clock)
    assert second.load_results() == {("host.disk", "host"): result()}
    assert second.load_incidents() == [incident()]
    assert (second.depth(), second.get("x"), second.degraded) == ({"pd": 1}, 1, "")
    second.close()


def test_the_oldest_waiting_alert_is_measured_with_the_boot_clock(store: Store, clock: FakeClock) -> None:
    assert store.oldest_s(clock.now()) is None
    store.commit(enqueue=[("pd", alert(1))])
    clock.advance(60, wall_step=-1e6)
    assert store.oldest_s(clock.now()) == 60


def test_pruning_forgets_only_what_is_over_and_never_by_date(
    store: Store, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("KEEP_CHANGES_PER_KEY", "KEEP_RESOLVED_INCIDENTS", "KEEP_RUNS", "KEEP_DELIVERED"):
        monkeypatch.setattr(f"agent.store.{name}", 2)
    for number in range(5):
        store.save_results([result(Status.OK if number % 2 else Status.CRITICAL)])
        phase = Phase.OPEN if number == 0 else Phase.RESOLVED
        store.commit([incident(number, phase)], [transition(number, number)], [("pd", alert(number))])
        store.save_run(Run(f"R{number}", "r", "host", "", 1.0, None, None))
    for number in range(4):
        store.record(number + 1, Delivery.sent(), clock.now())
    clock.advance(0, wall_step=1e9)
    store.prune()
    assert len(store.status_changes()) == 2
    assert [each.id for each in store.load_incidents(open_only=False)] == ["I0", "I3", "I4"]
    assert {each.incident for each in store.recent_transitions()} == {"I0", "I3", "I4"}
    assert [each.id for each in store.runs()] == ["R4", "R3"]
    assert store.depth() == {"pd": 1}


# --- what happens to files -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda raw: b"this is not a database at all" * 100, id="other-content"),
        pytest.param(lambda raw: raw[:4096] + b"\xff" * 8192 + raw[12288:], id="overwritten-pages"),
        pytest.param(lambda raw: raw[: len(raw) // 2], id="cut-short"),
        pytest.param(lambda raw: raw[:16] + b"\0" * 200 + raw[216:], id="header-gone"),
    ],
)
def test_a_corrupt_file_is_kept_aside_a_new_one_started_and_told(path: Path, clock: FakeClock, damage: object) -> None:
    first = open_store(path, clock)
    first.save_results([result(subject=f"engine:e{number}") for number in range(200)])
    first.close()
    damaged = damage(path.read_bytes())  # type: ignore[operator]
    path.write_bytes(damaged)
    second = open_store(path, clock)
    kept = list(path.parent.glob("holdfast.db.corrupt-*"))
    assert [each.read_bytes() for each in kept] == [damaged]
    assert kept[0].name in second.degraded
    assert second.load_results() == {}
    second.commit([incident()])
    second.close()
    third = open_store(path, clock)
    assert third.load_incidents() == [incident()]
    assert third.degraded == "", "told once; the file aside stays"
    third.close()


def test_a_file_of_a_newer_version_is_kept_aside(path: Path, clock: FakeClock) -> None:
    open_store(path, clock).close()
    raw = sqlite3.connect(path)
    raw.execute("PRAGMA user_version=999")
    raw.close()
    store = open_store(path, clock)
    assert "newer" in store.degraded
    assert len(list(path.parent.glob("holdfast.db.newer-*"))) == 1
    store.close()
    with pytest.raises(StoreError, match="version"):
        open_read_only(next(iter(path.parent.glob("holdfast.db.newer-*"))))


def _fill_disk(store: Store) -> None:
    """SQLite answers "database or disk is full" from here on."""
    connection = store._database._connection
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count={pages}")


def test_with_a_full_disk_it_goes_on_in_memory_says_so_and_writes_everything_back(
    store: Store, path: Path, clock: FakeClock
) -> None:
    store.commit([incident(1)], [transition(1)], [("pd", alert(1))])
    _fill_disk(store)
    for number in range(2, 100):
        store.commit([incident(number)], [transition(number, number)], [("pd", alert(number))])
    assert "full" in store.degraded
    assert "a kill would lose" in store.degraded
    assert len(store.load_incidents()) == 99
    assert store.depth() == {"pd": 99}
    clock.advance(RETRY_S + 1)
    store.set("x", 1)
    assert store.degraded == ""
    reader = open_read_only(path)
    assert len(reader.load_incidents()) == 99
    assert reader.depth() == {"pd": 99}
    reader.close()


def test_a_memory_copy_is_written_back_at_a_clean_stop(path: Path, clock: FakeClock) -> None:
    store = open_store(path, clock)
    _fill_disk(store)
    for number in range(100):
        store.commit([incident(number)])
    assert store.degraded
    store.close()
    reader = open_read_only(path)
    assert len(reader.load_incidents()) == 100
    reader.close()


def test_without_a_folder_it_works_in_memory_until_there_is_one(tmp_path: Path, clock: FakeClock) -> None:
    path = tmp_path / "later" / "holdfast.db"
    store = open_store(path, clock)
    store.commit([incident()])
    assert store.degraded
    path.parent.mkdir()
    clock.advance(RETRY_S + 1)
    store.set("x", 1)
    assert store.degraded == ""
    assert store.load_incidents() == [incident()]
    store.close()


def test_a_file_that_is_damaged_while_it_is_open_is_replaced_and_the_write_done(store: Store, path: Path) -> None:
    store.save_results([result(subject=f"engine:e{number}") for number in range(200)])
    store._database._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    store._database._connection.execute("PRAGMA cache_size=1")
    raw = path.read_bytes()
    path.write_bytes(raw[:4096] + b"\xff" * (len(raw) - 4096))
    before = store.generation
    store.commit([incident()])
    assert store.load_incidents() == [incident()]
    assert store.generation > before
    assert "corrupt" in store.degraded


def test_a_row_that_cannot_be_read_is_left_out_and_said(store: Store) -> None:
    store.commit([incident(1), incident(2)], enqueue=[("pd", alert(1)), ("pd", alert(2))])
    store._database._connection.execute("UPDATE incidents SET body = '{}' WHERE id = 'I1'")
    store._database._connection.execute("UPDATE outbox SET body = 'x' WHERE alert_id = 'A1'")
    assert store.load_incidents() == [incident(2)]
    assert [row.alert_id for row in store.outbox().rows] == ["A2"]
    assert "2 stored rows cannot be read" in store.degraded


# --- reading beside the daemon -------------------------------------------------------------------------------


def test_a_reader_sees_what_the_daemon_committed_while_it_runs(store: Store, path: Path) -> None:
    store.commit([incident()])
    reader = open_read_only(path)
    assert reader.load_incidents() == [incident()]
    store.commit([incident(2)])
    assert len(reader.load_incidents()) == 2
    reader.close()


def test_a_reader_after_a_clean_stop_leaves_no_file_behind(path: Path, clock: FakeClock) -> None:
    store = open_store(path, clock)
    store.commit([incident()])
    store.close()
    before = sorted(each.name for each in path.parent.iterdir())
    reader = open_read_only(path)
    assert reader.load_incidents() == [incident()]
    reader.close()
    assert sorted(each.name for each in path.parent.iterdir()) == before == ["holdfast.db"]


def test_a_reader_cannot_write(path: Path, clock: FakeClock) -> None:
    open_store(path, clock).close()
    reader = open_read_only(path)
    with pytest.raises(StoreError, match="readonly"):
        reader._reads.read("DELETE FROM meta")
    reader.close()


def test_a_reader_says_when_there_is_nothing_to_read_yet(path: Path) -> None:
    with pytest.raises(StoreError) as caught:
        open_read_only(path)
    assert caught.value.code == "store-missing"
    assert not path.exists()
