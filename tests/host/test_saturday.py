"""Saturday night: the real unattended-upgrades, with the real packages of Ubuntu's security pocket.

First what it does to a box without Holdfast, and to one whose owner has held what everybody advises.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from bed import Bed
from bed.kernels import DRIVER, KERNEL
from saturday import Saturday, saturday


@pytest.fixture
def box(bed: Bed) -> Iterator[Saturday]:
    assert bed
    with saturday() as scene:
        yield scene


def shown(what: str, before: dict[str, str], after: dict[str, str]) -> None:
    """Print what a scene did, for the report of a run."""
    moved = {name: f"{before[name]} -> {after[name]}" for name in before if before[name] != after[name]}
    stayed = {name: after[name] for name in before if before[name] == after[name]}
    print(f"{what}: moved {moved}; stayed {stayed}")


def test_without_holdfast_the_driver_and_the_kernel_move_in_one_night(box: Saturday) -> None:
    before = box.truths()
    assert (before["library"], before["next kernel"], before["its module"]) == (DRIVER, KERNEL, DRIVER)
    log = box.night()
    after = box.truths()
    shown("without anything", before, after)
    assert "All upgrades installed" in log
    # Another driver than the one that runs: at once for whatever starts, and for good with the next boot.
    assert after["library"] == after["its module"] == box.offered.driver != after["loaded"]
    assert after["next kernel"] == box.offered.kernel
    assert box.module(KERNEL) == DRIVER
    assert box.unrelated_updates_are_in()


def test_with_nvidia_held_by_hand_the_next_kernel_has_no_driver(box: Saturday) -> None:
    box.hold_by_hand()
    before = box.truths()
    log = box.night()
    after = box.truths()
    shown("nvidia held by hand", before, after)
    assert "Package linux-modules-nvidia-550-server-generic is marked to be held back." in log
    assert "All upgrades installed" in log
    assert (after["next kernel"], after["its module"]) == (box.offered.kernel, "none")
    assert after["library"] == DRIVER
    assert box.unrelated_updates_are_in()
