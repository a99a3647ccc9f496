"""Who holds a subject, and that a stop never reaches a process that only has the same number."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent import claim, ledger
from agent.host import Host, locks
from agent.host.files import RealFiles
from tests.support.fake_host import FakeHost

RUN = "01J0000000000000000000000A"


@pytest.fixture
def host(tmp_path: Path) -> Host:
    files = RealFiles(tmp_path)
    files.mkdir(claim.LOCKS)
    known = FakeHost.build()
    object.__setattr__(known, "files", files)
    started(tmp_path, 900)
    return known


def started(root: Path, ticks: int) -> None:
    """This process, as having started at so many ticks after boot."""
    place = root / f"proc/{os.getpid()}"
    place.mkdir(parents=True, exist_ok=True)
    (place / "stat").write_text(f"{os.getpid()} (x) S " + "0 " * 18 + f"{ticks} " + "0 " * 30)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    pids: list[int] = []
    monkeypatch.setattr(locks, "terminate", lambda pid: not pids.append(pid))
    return pids


def test_a_run_in_flight_is_told_to_stop(host: Host, told: list[int]) -> None:
    with claim.take(host, "engine:chat", RUN):  # type: ignore[union-attr]
        assert claim.stop(host, RUN)
    assert told == [os.getpid()]


def test_a_process_that_only_has_the_same_number_is_not_told(host: Host, told: list[int], tmp_path: Path) -> None:
    with claim.take(host, "engine:chat", RUN):  # type: ignore[union-attr]
        started(tmp_path, 900_000)
        assert not claim.stop(host, RUN)
    assert told == []


def test_a_run_that_is_over_is_not_in_flight(host: Host, told: list[int]) -> None:
    with claim.take(host, "engine:chat", RUN):  # type: ignore[union-attr]
        assert claim.alive(host, RUN)
    assert not claim.alive(host, RUN)
    assert not claim.stop(host, RUN)
    assert told == []


def test_an_engine_and_the_host_exclude_each_other_and_two_engines_do_not(host: Host) -> None:
    with claim.take(host, "engine:chat", RUN):  # type: ignore[union-attr]
        assert claim.take(host, "host", "01J0000000000000000000000B") == RUN
        assert claim.take(host, "engine:chat", "01J0000000000000000000000B") == RUN
        other = claim.take(host, "engine:embed", "01J0000000000000000000000B")
        assert not isinstance(other, str)
        with other:
            assert set(claim.in_flight(host)) == {RUN, "01J0000000000000000000000B"}


def test_a_run_ends_a_rehearsal_by_its_own_process_only(host: Host, told: list[int], tmp_path: Path) -> None:
    with claim.rehearse(host, "engine:chat", RUN):  # type: ignore[union-attr]
        started(tmp_path, 900_000)
        assert claim.take(host, "engine:chat", "01J0000000000000000000000B") == RUN
    assert told == []


def test_what_is_stuck_after_being_killed_keeps_its_place_and_is_named(
    host: Host, told: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[int] = []
    monkeypatch.setattr(locks, "kill", lambda pid: not killed.append(pid))
    with claim.rehearse(host, "engine:chat", RUN):  # type: ignore[union-attr]
        assert claim.take(host, "host", "01J0000000000000000000000B") == RUN
    assert (told, killed) == ([os.getpid()], [os.getpid()])
    with claim.take(host, "host", "01J0000000000000000000000B") as held:  # type: ignore[union-attr]
        assert held.ended == ()


def test_two_engines_are_not_rehearsed_at_once(host: Host) -> None:
    with claim.rehearse(host, "engine:chat", RUN):  # type: ignore[union-attr]
        assert claim.rehearse(host, "engine:embed", "01J0000000000000000000000B") == RUN
    assert not isinstance(claim.rehearse(host, "engine:embed", "01J0000000000000000000000B"), str)


def test_clearing_up_after_a_rehearsal_gives_way_too(host: Host, told: list[int]) -> None:
    with claim.clear_up(host, "engine:chat", RUN):  # type: ignore[union-attr]
        assert [note["run"] for note in claim.rehearsals(host)] == [RUN]


def test_the_locks_lie_where_only_the_runner_writes() -> None:
    assert claim.LOCKS.startswith(f"{ledger.DIRECTORY}/")
