from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import ledger
from agent.errors import FileTrouble, StoreError
from agent.host import Host
from agent.ledger import Kind
from agent.model import Moment, Outcome
from tests.support.world import World

RUN = "01000000000000000000000001"


@pytest.fixture
def world(tmp_path: Path) -> World:
    found = World(tmp_path)
    ledger.prepare(found.host())
    return found


def text(world: World) -> str:
    return (world.root / ledger.FILE.lstrip("/")).read_text()


def put(world: World, content: str) -> None:
    (world.root / ledger.FILE.lstrip("/")).write_text(content)


def write(host: Host, *kinds: Kind) -> None:
    for kind in kinds:
        ledger.append(host, kind, RUN, {"runbook": "restart-engine", "subject": "engine:chat", "outcome": "failed"})


def test_an_absent_ledger_is_empty(world: World) -> None:
    assert ledger.read(world.host()) == ledger.Contents()


def test_records_are_chained_and_readable_by_the_group_only(world: World) -> None:
    write(world.host(), Kind.ATTEMPT, Kind.OUTCOME)
    contents = ledger.read(world.host())
    assert [record.seq for record in contents.records] == [0, 1]
    assert contents.records[1].previous == contents.records[0].hash
    assert ledger.verify(contents) == ()
    assert (world.root / ledger.FILE.lstrip("/")).stat().st_mode & 0o777 == 0o640


def test_a_changed_record_is_found(world: World) -> None:
    write(world.host(), Kind.ATTEMPT, Kind.OUTCOME)
    put(world, text(world).replace('"failed"', '"succeeded"', 1))
    assert len(ledger.verify(ledger.read(world.host()))) == 1


def test_a_removed_record_is_found(world: World) -> None:
    write(world.host(), Kind.ATTEMPT, Kind.OUTCOME, Kind.STOP)
    lines = text(world).splitlines(keepends=True)
    put(world, lines[0] + lines[2])
    assert ledger.verify(ledger.read(world.host()))


def test_a_torn_last_line_is_tolerated_and_told(world: World) -> None:
    write(world.host(), Kind.ATTEMPT)
    put(world, text(world) + '{"seq":1,"kind":"outc')
    torn = ledger.read(world.host())
    assert [record.kind for record in torn.records] == [Kind.ATTEMPT]
    assert "torn" in ledger.verify(torn)[0]
    write(world.host(), Kind.OUTCOME)
    mended = ledger.read(world.host())
    assert [record.kind for record in mended.records] == [Kind.ATTEMPT, Kind.REPAIRED, Kind.OUTCOME]
    assert ledger.verify(mended) == ()
    assert '{"seq":1,"kind":"outc' in text(world)


def test_a_whole_record_without_its_line_break_is_whole(world: World) -> None:
    write(world.host(), Kind.ATTEMPT)
    put(world, text(world).rstrip("\n"))
    write(world.host(), Kind.OUTCOME)
    contents = ledger.read(world.host())
    assert [record.kind for record in contents.records] == [Kind.ATTEMPT, Kind.OUTCOME]
    assert ledger.verify(contents) == ()


def test_garbage_that_no_record_tells_of_is_found(world: World) -> None:
    write(world.host(), Kind.ATTEMPT, Kind.OUTCOME)
    lines = text(world).splitlines(keepends=True)
    put(world, lines[0] + "garbage\n" + lines[1])
    assert "unreadable" in ledger.verify(ledger.read(world.host()))[0]


@given(cut=st.integers(min_value=0, max_value=5000), junk=st.binary(max_size=20))
def test_a_ledger_cut_anywhere_is_read_as_far_as_it_is_whole(cut: int, junk: bytes) -> None:
    lines = sample()
    whole = "".join(lines)
    kept = whole[: min(cut, len(whole))]
    contents = ledger.parse(kept + junk.decode("utf-8", "replace").replace("\n", ""))
    assert len(contents.records) >= kept.count("\n")
    assert contents.problems == ()


def sample() -> list[str]:
    """A ledger of five records, made without a host."""
    lines, previous = [], ledger.FIRST
    for seq in range(5):
        bare = ledger.Record(seq, Moment(1e9 + seq, float(seq), "b"), Kind.STOP, RUN, {"n": seq}, previous, "")
        record = replace(bare, hash=ledger._hash(bare))
        lines.append(json.dumps({**ledger._fields(record), "hash": record.hash}) + "\n")
        previous = record.hash
    return lines


@pytest.mark.parametrize("line", ["null", "[]", "1", '{"seq":[]}', '{"seq":1e999}', "{}", "\x00\x00", "[" * 99999])
def test_a_line_that_is_no_record_is_no_crash(line: str) -> None:
    assert ledger.parse(line + "\n").records == ()


def test_a_full_disk_is_no_ledger(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    host = world.host()

    def full(*_: object, **__: object) -> None:
        raise FileTrouble("No space left on device", kind="other")

    monkeypatch.setattr(host.files, "append_durable", full)
    with pytest.raises(StoreError) as caught:
        write(host, Kind.ATTEMPT)
    assert caught.value.code == "no-ledger"


# --- questions ---------------------------------------------------------------------------------------------------

NOW = Moment(2_000_000.0, 5000.0, "boot-2")


def record(kind: Kind, at: Moment, run: str = RUN, **data: object) -> ledger.Record:
    return ledger.Record(0, at, kind, run, data, "", "")


def test_an_attempt_without_an_outcome_is_open() -> None:
    tried = record(Kind.ATTEMPT, NOW, runbook="r", subject="s", risk="service")
    assert [each.run for each in ledger.open_attempts([tried], NOW)] == [RUN]
    ended = record(Kind.OUTCOME, NOW, outcome="failed", signature="x")
    assert ledger.open_attempts([tried, ended], NOW) == ()
    assert ledger.attempts([tried, ended])[0].signature == "x"


def test_only_the_first_outcome_counts() -> None:
    tried = record(Kind.ATTEMPT, NOW, runbook="r", subject="s")
    both = [record(Kind.OUTCOME, NOW, outcome="failed"), record(Kind.OUTCOME, NOW, outcome="succeeded")]
    assert ledger.attempts([tried, *both])[0].outcome is Outcome.FAILED
    outcome = ledger.outcome_of([tried, *both], RUN)
    assert outcome is not None
    assert outcome["outcome"] == "failed"


def test_proven_health_clears_signatures_and_not_the_window() -> None:
    tried = record(Kind.ATTEMPT, NOW, runbook="r", subject="s")
    ended = record(Kind.OUTCOME, NOW, outcome="failed", signature="x")
    found = ledger.attempts([tried, ended, record(Kind.RESET, NOW, subject="s")])
    assert [each.signature for each in found] == [""]
    assert ledger.attempts([tried, ended, record(Kind.RESET, NOW, subject="other")])[0].signature == "x"


def test_a_pause_ends_by_time_or_by_hand() -> None:
    pause = record(Kind.PAUSE, replace(NOW, boot_s=4000.0, wall=NOW.wall - 1000), for_s=1500, uid=0, reason="r")
    found = ledger.paused([pause], NOW)
    assert found is not None
    assert found.until == NOW.wall + 500
    assert ledger.paused([pause, record(Kind.RESUME, NOW)], NOW) is None
    assert ledger.paused([pause], replace(NOW, boot_s=5501.0)) is None


@given(step=st.floats(min_value=-1e8, max_value=1e8))
def test_a_step_of_the_wall_clock_neither_ends_nor_stretches_a_pause(step: float) -> None:
    pause = record(Kind.PAUSE, replace(NOW, boot_s=4000.0, wall=NOW.wall + step), for_s=1500, uid=0, reason="r")
    found = ledger.paused([pause], NOW)
    assert found is not None
    assert found.until - NOW.wall == pytest.approx(500)


def test_a_pause_from_before_a_boot_whose_clock_was_wrong_counts_as_made_now() -> None:
    pause = record(Kind.PAUSE, Moment(NOW.wall + 1e6, 1.0, "boot-1"), for_s=1500, uid=0, reason="r")
    found = ledger.paused([pause], NOW)
    assert found is not None
    assert found.until == NOW.wall + 1500


def approval(at: Moment) -> ledger.Record:
    data = {"incident": "i", "runbook": "r", "subject": "s", "runbook_hash": "h", "plan": "p"}
    return record(Kind.APPROVAL, at, "01000000000000000000000009", **data)


def test_an_approval_holds_for_a_quarter_of_an_hour_and_for_one_attempt() -> None:
    given_now = approval(NOW)
    assert [each.incident for each in ledger.approvals([given_now], NOW)] == ["i"]
    assert ledger.approvals([given_now], replace(NOW, boot_s=NOW.boot_s + 901)) == ()
    used = record(Kind.ATTEMPT, NOW, runbook="r", subject="s", approval=given_now.run)
    assert ledger.approvals([given_now, used], NOW) == ()


def test_refusals_of_the_last_hour_are_found() -> None:
    old, new = record(Kind.REFUSED, replace(NOW, boot_s=0.0), uid=1), record(Kind.REFUSED, NOW, uid=2)
    assert [each.data["uid"] for each in ledger.refusals([old, new], NOW, 3600.0)] == [2]
