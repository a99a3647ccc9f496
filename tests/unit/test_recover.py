from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest

from agent import claim, ledger, recover, transcript
from agent.ledger import Kind
from tests.support.world import OPERATOR_UID, UNIT, Killed, World, ended

ACTS = 60
"""More than one restart has; a test makes sure that it is enough."""


def cut_off(world: World, act: int) -> str:
    """Run until the process dies at this act; the run's id."""
    world.acts.die_at = act
    request = world.request()
    with contextlib.suppress(Killed):
        world.ask(request)
    return request.id


def outcomes(world: World) -> list[str]:
    contents = ledger.read(world.host())
    assert ledger.verify(contents) == (), contents
    return [str(record.data["outcome"]) for record in contents.records if record.kind is Kind.OUTCOME]


def attempts(world: World) -> int:
    return len(ledger.attempts(ledger.read(world.host()).records))


def act_number(tmp_path: Path, name: str) -> int:
    """The number of the act of this name in an undisturbed run."""
    world = World(tmp_path / "undisturbed", healthy=False)
    world.ask(world.request())
    return world.acts.seen.index(name) + 1


def recovered(world: World) -> World:
    again = world.restarted()
    assert recover.main(again.host()) == 0
    return again


def test_the_acts_tried_below_are_all_there_are(tmp_path: Path) -> None:
    world = World(tmp_path, healthy=False)
    world.systemd.set(ignores_sigterm=True)
    world.ask(world.request())
    assert 40 < world.acts.count <= ACTS


@pytest.mark.parametrize("act", range(1, ACTS + 1))
def test_a_run_that_is_killed_anywhere_ends_once_with_an_engine_that_serves(tmp_path: Path, act: int) -> None:
    world = World(tmp_path, healthy=False)
    world.systemd.set(ignores_sigterm=True)
    run = cut_off(world, act)
    world = recovered(world)
    state = world.systemd.state()
    assert len(outcomes(world)) == attempts(world)
    assert state["ActiveState"] == "active"
    assert state["starts"] <= 1
    if attempts(world) and outcomes(world) == ["succeeded"]:
        assert state["starts"] == 1
        assert state["healthy"]
    if transcript.exists(world.host(), run) and attempts(world):
        found = transcript.events(world.host(), run)
        assert [event.event for event in found].count("ended") == 1


@pytest.mark.parametrize("act", range(1, ACTS + 1, 3))
def test_recovering_twice_changes_nothing(tmp_path: Path, act: int) -> None:
    world = World(tmp_path, healthy=False)
    cut_off(world, act)
    first = recovered(world)
    text = json.dumps(first.systemd.state()), ledger.read(first.host())
    second = recovered(first)
    assert (json.dumps(second.systemd.state()), ledger.read(second.host())) == text


@pytest.mark.parametrize("act", range(1, ACTS + 1, 3))
def test_a_recovery_that_is_killed_too_is_finished_by_the_next(tmp_path: Path, act: int) -> None:
    world = World(tmp_path, healthy=False)
    cut_off(world, act)
    for second in (2, 5, 9):
        again = world.restarted()
        again.acts.die_at = second
        with contextlib.suppress(Killed):
            recover.main(again.host())
    world = recovered(world)
    assert len(outcomes(world)) == attempts(world)
    assert world.systemd.state()["ActiveState"] == "active"
    assert world.systemd.state()["starts"] <= 1


@pytest.mark.parametrize("act", range(1, ACTS + 1, 2))
def test_after_a_power_cut_the_result_is_judged_first(tmp_path: Path, act: int) -> None:
    world = World(tmp_path, healthy=False)
    cut_off(world, act)
    starts = world.systemd.state()["starts"]
    world.rebooted()
    world = recovered(world)
    assert len(outcomes(world)) == attempts(world)
    assert world.systemd.state()["starts"] == starts
    assert world.systemd.state()["ActiveState"] == "active"


def test_a_cut_between_stop_and_start_is_finished_by_starting(tmp_path: Path) -> None:
    act = act_number(tmp_path, f"after systemctl stop --no-block {UNIT}")
    world = World(tmp_path, healthy=False)
    cut_off(world, act)
    assert world.systemd.state()["ActiveState"] == "inactive"
    world = recovered(world)
    assert outcomes(world) == ["succeeded"]
    assert world.systemd.state()["starts"] == 1


@pytest.mark.parametrize("hand", [{"UnitFileState": "masked"}, {"UnitFileState": "disabled"}])
def test_a_unit_that_an_operator_took_out_of_service_meanwhile_stays_down(tmp_path: Path, hand: dict[str, str]) -> None:
    act = act_number(tmp_path, f"after systemctl stop --no-block {UNIT}")
    world = World(tmp_path, healthy=False)
    cut_off(world, act)
    world.systemd.set(**hand)
    world = recovered(world)
    assert world.systemd.state()["starts"] == 0
    assert outcomes(world) == ["stopped"]


def test_a_cut_before_anything_was_changed_is_told_as_such(tmp_path: Path) -> None:
    act = act_number(tmp_path, f"after append {ledger.FILE}")
    world = World(tmp_path, healthy=False)
    cut_off(world, act)
    world = recovered(world)
    assert outcomes(world) == ["interrupted"]
    assert world.systemd.state()["starts"] == 0


@pytest.mark.parametrize("acts", [-2, 0, 1])
def test_a_cut_before_the_first_change_is_not_verified_for_minutes(tmp_path: Path, acts: int) -> None:
    act = act_number(tmp_path, "before write /var/lib/holdfast-runner/stops/chat.service.json") + acts
    world = World(tmp_path, healthy=False)
    cut_off(world, act)
    world = world.restarted()
    before = world.clock.ahead_s
    assert recover.main(world.host()) == 0
    assert outcomes(world) == ["interrupted"]
    assert world.clock.ahead_s - before < 60


def test_a_power_cut_while_the_engine_still_loads_is_waited_for(tmp_path: Path) -> None:
    act = act_number(tmp_path, f"after systemctl start --no-block {UNIT}")
    world = World(tmp_path, healthy=False)
    cut_off(world, act)
    world.systemd.set(ActiveState="activating", SubState="start", Job="5")
    again = world.restarted()
    sleep = again.clock.sleep

    def loaded_after_a_while(seconds: float) -> None:
        sleep(seconds)
        if again.clock.ahead_s > 20:
            again.systemd.set(ActiveState="active", SubState="running", Job="")

    again.clock.sleep = loaded_after_a_while  # type: ignore[method-assign]
    assert recover.main(again.host()) == 0
    assert outcomes(again) == ["succeeded"]


def test_a_run_that_is_still_alive_is_left_alone(tmp_path: Path) -> None:
    world = World(tmp_path, healthy=False)
    run = cut_off(world, act_number(tmp_path, f"after systemctl stop --no-block {UNIT}"))
    host = world.restarted().host()
    held = claim.take(host, "engine:chat", run)
    assert not isinstance(held, str)
    with held:
        assert recover.main(host) == 0
    assert outcomes(world) == []


def test_a_new_run_first_finishes_what_was_cut_off(tmp_path: Path) -> None:
    world = World(tmp_path, healthy=False)
    cut_off(world, act_number(tmp_path, f"after systemctl stop --no-block {UNIT}"))
    again = world.restarted()
    again.numbers = 500
    events = again.ask(again.request())
    assert events[-1].data["code"] == "cooldown"
    assert outcomes(again) == ["succeeded"]
    assert again.systemd.state()["starts"] == 1


def test_asking_for_a_run_that_was_cut_off_brings_its_outcome(tmp_path: Path) -> None:
    world = World(tmp_path, healthy=False)
    run = cut_off(world, act_number(tmp_path, f"after systemctl stop --no-block {UNIT}"))
    again = world.restarted()
    assert ended(again.ask(again.request(id=run)))["outcome"] == "succeeded"


def test_the_verb_recovers_too(tmp_path: Path) -> None:
    world = World(tmp_path, healthy=False)
    cut_off(world, act_number(tmp_path, f"after systemctl stop --no-block {UNIT}"))
    again = world.restarted()
    again.numbers = 500
    assert ended(again.ask(again.request("recover"), uid=OPERATOR_UID))["summary"] == "1 cut-off runs finished"
    assert outcomes(again) == ["succeeded"]


def test_a_recovery_that_is_told_to_stop_leaves_the_rest_to_the_next(tmp_path: Path) -> None:
    world = World(tmp_path, healthy=False)
    cut_off(world, act_number(tmp_path, f"after systemctl stop --no-block {UNIT}"))
    again = world.restarted()
    again.numbers = 500
    again.ask(again.request("recover"), uid=OPERATOR_UID, stopping=lambda: True)
    assert outcomes(again) == []
    assert outcomes(recovered(again)) == ["succeeded"]


def test_a_run_that_is_cut_off_while_recovery_works_on_another_is_finished_too(tmp_path: Path) -> None:
    world = World(tmp_path, healthy=False)
    cut_off(world, act_number(tmp_path, f"after systemctl stop --no-block {UNIT}"))
    again = world.restarted()
    again.numbers = 500
    data = {"runbook": "restart-engine", "subject": "host", "risk": "none", "inputs": {}, "steps": 1, "verify": None}

    def another_is_cut_off() -> None:
        ledger.append(again.host(), Kind.ATTEMPT, again.request().id, data)

    again.acts.die_at, again.acts.die = 1, another_is_cut_off
    assert recover.main(again.host()) == 0
    assert sorted(outcomes(again)) == ["interrupted", "succeeded"]


def test_nothing_to_recover_needs_no_configuration(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.write("etc/holdfast/holdfast.toml", "broken")
    assert recover.main(world.host()) == 0
