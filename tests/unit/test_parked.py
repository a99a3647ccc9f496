from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from agent import ledger, recover, transcript
from agent.ledger import Kind
from tests.support.world import OPERATOR_UID, Killed, World, ended

RUNBOOK = """\
id: wait-for-it
title: Wait for a reboot
explain: For a test.
consent: operator
steps:
  - {name: Wait, use: driver.await_reboot, spans_reboot: true}
verify: {check: driver.lock, also: [engine.generates], within: "30s"}
"""
LOCKED, OTHER = "550.54.15", "580.178.04"


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A host on which another driver is loaded than the locked one, which is on disk."""
    found = World(tmp_path)
    found.write("usr/share/holdfast/runbooks/wait-for-it.yaml", RUNBOOK)
    found.write("etc/holdfast/driver.lock", f"{LOCKED}\n")
    found.write("sys/module/nvidia/version", f"{OTHER}\n")
    for library in ("libnvidia-ml.so", "libcuda.so"):
        found.write(f"usr/lib/x86_64-linux-gnu/{library}.{LOCKED}", "")
        (tmp_path / f"usr/lib/x86_64-linux-gnu/{library}.1").symlink_to(f"{library}.{LOCKED}")
    return found


def begun(world: World) -> str:
    request = world.request(runbook="wait-for-it", subject="host")
    events = world.ask(request, uid=OPERATOR_UID)
    assert [event.event for event in events] == ["accepted", "step_started", "planned", "step_ended", "parked"]
    assert LOCKED in events[-1].data["summary"]
    return request.id


def kinds(world: World) -> list[Kind]:
    contents = ledger.read(world.host())
    assert ledger.verify(contents) == ()
    return [record.kind for record in contents.records]


def test_a_run_that_only_a_reboot_can_finish_lets_go_and_is_not_taken_for_cut_off(world: World) -> None:
    run = begun(world)
    again = world.restarted()
    assert recover.main(again.host()) == 0
    assert kinds(again) == [Kind.ATTEMPT, Kind.PARKED]
    # The host is free: an engine's repair goes ahead, and so does another run on the host.
    ended(world.ask(world.request(), uid=OPERATOR_UID))
    repeated = world.ask(world.request("follow", id=run), uid=OPERATOR_UID)
    assert repeated[-1].event == "parked"
    assert ledger.outcome_of(ledger.read(world.host()).records, run) is None


def test_it_is_proven_after_the_reboot_by_the_driver_and_by_tokens(world: World) -> None:
    run = begun(world)
    world.rebooted()
    world.write("sys/module/nvidia/version", f"{LOCKED}\n")
    assert recover.main(world.host()) == 0
    outcome = ledger.outcome_of(ledger.read(world.host()).records, run)
    assert outcome is not None
    assert outcome["outcome"] == "succeeded"
    assert [event.event for event in transcript.events(world.host(), run)][-3:] == ["progress", "verified", "ended"]


def test_an_engine_without_tokens_after_the_reboot_is_no_proof(world: World) -> None:
    run = begun(world)
    world.rebooted()
    world.write("sys/module/nvidia/version", f"{LOCKED}\n")
    world.systemd.set(healthy=False)
    assert recover.main(world.host()) == 0
    outcome = ledger.outcome_of(ledger.read(world.host()).records, run)
    assert outcome is not None
    assert outcome["outcome"] == "failed"
    assert "engine.generates of engine:chat" in str(outcome["summary"])


def test_the_wrong_driver_after_the_reboot_is_told(world: World) -> None:
    run = begun(world)
    world.rebooted()
    assert recover.main(world.host()) == 0
    outcome = ledger.outcome_of(ledger.read(world.host()).records, run)
    assert outcome is not None
    assert (outcome["outcome"], OTHER in str(outcome["summary"])) == ("failed", True)


def test_nothing_waits_where_the_locked_driver_is_loaded(world: World) -> None:
    world.write("sys/module/nvidia/version", f"{LOCKED}\n")
    end = ended(world.ask(world.request(runbook="wait-for-it", subject="host"), uid=OPERATOR_UID))
    assert end["outcome"] == "succeeded"
    assert kinds(world)[:2] == [Kind.ATTEMPT, Kind.OUTCOME]


# --- what is best effort after all that must be done ---------------------------------------------------------------

LOCK = "etc/holdfast/driver.lock"


def lockable(root: Path) -> World:
    """A host that runs the driver which is to be locked; saving it does not work there."""
    found = World(root)
    shipped = Path(__file__).resolve().parents[2] / "runbooks/write-lock.yaml"
    found.write("usr/share/holdfast/runbooks/write-lock.yaml", shipped.read_text(encoding="utf-8"))
    found.write("sys/module/nvidia/version", f"{LOCKED}\n")
    return found


def locking(world: World, **how: object) -> list[str]:
    with contextlib.suppress(Killed):
        world.ask(world.request(runbook="write-lock", subject="host"), uid=OPERATOR_UID, **how)  # type: ignore[arg-type]
    return world.acts.seen


def outcomes(world: World) -> list[str]:
    records = ledger.read(world.host()).records
    return [str(record.data["outcome"]) for record in records if record.kind is Kind.OUTCOME]


def test_a_driver_that_cannot_be_saved_never_blocks_the_lock(tmp_path: Path) -> None:
    world = lockable(tmp_path)
    locking(world)
    assert outcomes(world) == ["succeeded"]
    assert (tmp_path / LOCK).read_text().endswith(f"\n{LOCKED}\n")


def test_a_lock_that_is_written_stays_wherever_the_rest_is_cut_off_or_stopped(tmp_path: Path) -> None:
    acts = locking(lockable(tmp_path / "whole"))
    written = next(i for i, name in enumerate(acts) if name == f"after write /{LOCK}")
    done = next(i for i, name in enumerate(acts) if i > written and name.startswith("after append"))
    assert len(acts) - done > 8
    for act in range(done + 2, len(acts) + 1):
        world = lockable(tmp_path / str(act))
        world.acts.die_at = act
        locking(world)
        again = world.restarted()
        assert recover.main(again.host()) == 0
        assert (tmp_path / str(act) / LOCK).exists(), acts[act - 1]
        assert outcomes(again) in ([], ["succeeded"]), acts[act - 1]


def test_who_stops_what_is_best_effort_undoes_nothing(tmp_path: Path) -> None:
    world = lockable(tmp_path)
    runs = tmp_path / "var/lib/holdfast-runner/runs"
    locking(world, stopping=lambda: any('"step_ended"' in each.read_text() for each in runs.glob("*.jsonl")))
    assert outcomes(world) == ["succeeded"]
    assert (tmp_path / LOCK).exists()
