"""Runs that are cut off: the daemon killed, the runner killed at each place, the power cut at each place.

Whatever is cut off where, each attempt ends with exactly one outcome, the engine serves (unless an operator took it out
of service), and nothing is done twice. The tests print what was cut off where and what came of it (pytest -s);
docs/explanation/interrupted-runs.md is written from that.

The runbook is the shipped one except for its limits: five seconds between two runs in place of five minutes.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from bed import BootedHost, kill
from cutting import (
    PLACES,
    RUNS,
    Place,
    in_flight,
    kill_runner,
    let_go,
    outcomes,
    prepare,
    standing_at,
    stands,
    starts_of_engine,
    wait_until_over,
)
from spine import Watched, watched

Boot = Callable[..., BootedHost]


def told(where: str, left: str, then: str) -> None:
    """One row of the table."""
    print(f"\n| {where} | {left} | {then} |")


def at(name: str) -> Place:
    """The place of this name."""
    return next(place for place in PLACES if place.name == name)


def then(scene: Watched) -> str:
    """What became of the runs."""
    return "; ".join(f"{record['data']['outcome']}: {record['data']['summary']}" for record in scene.ledger("outcome"))


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.name.replace(" ", "-"))
def test_a_runner_killed_anywhere_leaves_one_outcome_and_an_engine_that_serves(host: Boot, place: Place) -> None:
    scene = watched(host, engine=place.engine)
    prepare(scene)
    with standing_at(scene, place) as run:
        left = stands(scene, run)
        kill_runner(scene.host, run)
        let_go(scene.host, place)
        wait_until_over(scene)
    assert scene.engine.generates()
    assert outcomes(scene) == list(place.killed)
    assert starts_of_engine(scene.host) == 2
    told(f"runner killed: {place.name}", left, then(scene))


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.name.replace(" ", "-"))
def test_a_power_cut_anywhere_leaves_one_outcome_and_an_engine_that_serves(host: Boot, place: Place) -> None:
    scene = watched(host, writable=True, engine=place.engine)
    prepare(scene)
    with standing_at(scene, place) as run:
        left = stands(scene, run)
        scene.host.power_cut()
        scene.host.boot_again()
        scene.inbox.start()
        wait_until_over(scene)
    assert scene.engine.generates()
    assert starts_of_engine(scene.host) == 1
    assert outcomes(scene) == list(place.cut)
    told(f"power cut: {place.name}", left, then(scene))


def test_a_run_goes_on_while_the_daemon_is_killed_and_the_next_one_resolves_its_incident(host: Boot) -> None:
    scene = watched(host)
    prepare(scene)
    place = at("verify")
    with standing_at(scene, place) as run:
        before = scene.host.main_pid("holdfast.service")
        kill(scene.host, before)
        scene.host.wait_for(
            lambda: scene.host.main_pid("holdfast.service") not in (0, before), 60, "the next daemon", every=0.5
        )
        assert in_flight(scene.host) == run, "the run goes on without the daemon"
        let_go(scene.host, place)
        wait_until_over(scene)
    assert outcomes(scene) == ["succeeded"]
    assert starts_of_engine(scene.host) == 2
    over = scene.resolved("engine-dead", 60)
    (incident,) = scene.incidents()
    assert incident["runs"] == [run]
    assert incident["key"] == over.key
    told(f"daemon killed: {place.name}", "the run goes on", then(scene))


def test_a_run_that_is_stopped_by_hand_is_undone_to_an_engine_that_serves(host: Boot) -> None:
    place = at("while it stops")
    scene = watched(host, engine=place.engine)
    prepare(scene)
    with standing_at(scene, place) as run:
        stopped = scene.host.run("holdfast", "stop", run, check=False)
        assert stopped.returncode == 0, stopped.stdout + stopped.stderr
        wait_until_over(scene)
    assert "STOPPED" in stopped.stdout
    assert outcomes(scene) == ["stopped"]
    assert starts_of_engine(scene.host) == 2
    assert scene.engine.generates()
    told("holdfast stop RUN, while the engine stops", "the engine is stopping", then(scene))


def test_control_c_leaves_the_run_going_on(host: Boot) -> None:
    scene = watched(host, mode="observe")
    prepare(scene)
    scene.host.write("/run/bed-loading", "")
    following = scene.host.popen("holdfast", "run", "restart-engine")
    run = scene.host.wait_for(lambda: in_flight(scene.host), 30, "the run")
    scene.host.wait_for(lambda: '"verifying"' in scene.host.read(f"{RUNS}/{run}.jsonl"), 60, "the proof")
    scene.host.sh("pkill -INT -f '^/usr/bin/python3 -IS /usr/bin/holdfast run restart-engin[e]'")
    printed, _ = following.communicate(timeout=30)
    assert following.returncode == 3, printed
    assert f"sudo holdfast run --follow {run}" in printed
    assert in_flight(scene.host) == run
    scene.host.sh("rm /run/bed-loading")
    followed = scene.host.run("holdfast", "run", "--follow", run)
    assert "SUCCEEDED" in followed.stdout
    assert outcomes(scene) == ["succeeded"]
    told("Ctrl-C of holdfast run, while it is verified", "the run goes on", then(scene))


@pytest.mark.parametrize("hand", ["stop", "disable"])
@pytest.mark.parametrize("killed", [False, True], ids=["the-run-lives", "the-runner-is-killed"])
def test_an_operators_hand_during_a_run_wins(host: Boot, hand: str, killed: bool) -> None:
    """`stop` while the engine starts, `disable` between our stop and our start.

    A `stop` of a unit that is down already leaves no trace anywhere in systemd, so between our stop and our start it is
    `disable`, `mask` or `holdfast stop` that tells us to keep away.
    """
    scene = watched(host)
    prepare(scene)
    place = at("while it starts" if hand == "stop" else "between stop and start")
    with standing_at(scene, place) as run:
        scene.host.run("systemctl", hand, scene.engine.unit)
        if killed:
            kill_runner(scene.host, run)
        let_go(scene.host, place)
        scene.host.wait_for(lambda: len(scene.ledger("outcome")) == 1, 120, "the outcome")
        time.sleep(15)
    assert scene.host.unit(scene.engine.unit, "ActiveState") != {"ActiveState": "active"}
    assert scene.starts() == 1
    assert outcomes(scene) == ["stopped"]
    assert "critical" not in {page.severity for page in scene.pages()}, "the person is there: nobody is woken"
    scene.resolved("engine-dead" if hand == "stop" else "engine-wedged", 60)
    told(f"operator's {hand}: {place.name}{', runner killed' if killed else ''}", "down", then(scene))
