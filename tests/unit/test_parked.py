from __future__ import annotations

from pathlib import Path

import pytest

from agent import ledger, recover, transcript
from agent.ledger import Kind
from tests.support.world import OPERATOR_UID, World, ended

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
