"""A switch of the release that is cut off anywhere ends with the engine running what is in its place, old or new."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from agent.host import releases
from tests.support.release_box import CRASHES, SILENT, A, B, Box
from tests.support.world import OPERATOR_UID, Killed

ACTS = 110
"""More than a run has; a test makes sure that it is enough."""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(releases, "OWNER", OPERATOR_UID)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # nothing here outlives the process


def test_a_rebuild_ends_with_the_new_release_serving_and_both_proven(tmp_path: Path) -> None:
    box = Box(tmp_path)
    assert box.rebuild()["outcome"] == "succeeded"
    assert (box.in_place(), box.runs()) == ("b good", "b good")
    assert set(box.remembered()["proven"]) == {A, B}
    assert box.remembered()["switch"]["settled"]
    assert 40 < box.acts.count <= ACTS


def cut_off(box: Box, act: int) -> Box:
    """The world after the rebuild died at this act, before recovery."""
    box.acts.count, box.acts.die_at = 0, act
    with contextlib.suppress(Killed):
        box.rebuild()
    again = box.restarted()
    assert isinstance(again, Box)
    return again


def settled(box: Box) -> None:
    """Never in between: what is in its place runs and generates, and the record says which way it went."""
    outcomes = box.outcomes()
    new = outcomes == ["succeeded"]
    wanted = "b good" if new else "a good"
    assert (box.in_place(), box.runs()) == (wanted, wanted), outcomes
    assert box.at(B).exists() == new, outcomes
    assert not box.at(B.replace(B.rpartition("/")[2], "." + B.rpartition("/")[2] + ".gone")).exists()


@pytest.mark.parametrize(
    ("install", "act"),
    [*(("link", act) for act in range(1, ACTS + 1, 2)), *(("copy", act) for act in range(13, ACTS + 1, 4))],
)
def test_a_rebuild_that_is_killed_anywhere_ends_on_one_release_or_the_other(
    tmp_path: Path, install: str, act: int
) -> None:
    settled(cut_off(Box(tmp_path, install=install), act).recovered())


@pytest.mark.parametrize(
    ("install", "act"),
    [*(("link", act) for act in range(3, ACTS + 1, 4)), *(("copy", act) for act in range(15, ACTS + 1, 8))],
)
def test_after_a_power_cut_anywhere_it_does_too(tmp_path: Path, install: str, act: int) -> None:
    box = cut_off(Box(tmp_path, install=install), act)
    box.rebooted()
    settled(box.recovered())


@pytest.mark.parametrize("new", [CRASHES, SILENT])
@pytest.mark.parametrize("act", range(1, ACTS + 1, 8))
def test_a_release_that_fails_is_given_up_wherever_the_run_is_cut(tmp_path: Path, act: int, new: str) -> None:
    box = cut_off(Box(tmp_path, new=new), act)
    box = box.recovered()
    assert (box.in_place(), box.runs()) == ("a good", "a good")
    assert "succeeded" not in box.outcomes()


@pytest.mark.parametrize("new", [CRASHES, SILENT])
@pytest.mark.parametrize("act", range(5, ACTS + 1, 8))
def test_and_when_the_power_is_cut(tmp_path: Path, act: int, new: str) -> None:
    box = cut_off(Box(tmp_path, new=new), act)
    box.rebooted()
    box = box.recovered()
    assert (box.in_place(), box.runs()) == ("a good", "a good")
    assert "succeeded" not in box.outcomes()
