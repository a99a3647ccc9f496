"""Runs that are cut off: the daemon killed, the runner killed at each place, the power cut at each place.

Whatever is cut off where, each attempt ends with exactly one outcome, the engine serves (unless an operator took it out
of service), and nothing is done twice. The tests print what was cut off where and what came of it (pytest -s);
docs/explanation/interrupted-runs.md is written from that.

The runbook is the shipped one except for its limits: five seconds between two runs in place of five minutes.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from bed import BootedHost
from cutting import (
    PLACES,
    Place,
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


def then(scene: Watched) -> str:
    """What became of the runs."""
    return "; ".join(f"{record['data']['outcome']}: {record['data']['summary']}" for record in scene.ledger("outcome"))


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.name.replace(" ", "-"))
def test_a_runner_killed_anywhere_leaves_one_outcome_and_an_engine_that_serves(host: Boot, place: Place) -> None:
    scene = watched(host)
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
    scene = watched(host, writable=True)
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
