"""Saturday night: the real unattended-upgrades, with the real packages of Ubuntu's security pocket.

First what it does to a box without Holdfast, and to one whose owner has held what everybody advises.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from bed import Bed
from bed.kernels import DRIVER, KERNEL
from saturday import QUIET, Saturday, saturday


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


def test_a_kernel_that_dpkg_forced_in_is_told_before_any_reboot_and_the_armed_reboot_with_the_hours_left(
    box: Saturday,
) -> None:
    watched = box.install_holdfast()
    box.host.run("holdfast", "lock", "write")
    box.hold_by_hand()
    before = box.truths()
    forced = [
        box.offered.deb(name)
        for name in (f"linux-modules-{box.offered.kernel}", f"linux-image-{box.offered.kernel}", "linux-image-virtual")
    ]
    box.host.run("dpkg", "-i", *forced, timeout=300, env=QUIET)
    page = watched.triggered("next-boot-no-driver", 60)
    assert page.severity == "critical"
    assert f"kernel {box.offered.kernel}" in page.message
    assert box.check("driver.next_boot")[0] == 2
    assert box.boots_next() == box.offered.kernel
    assert box.module(box.boots_next()) == ""

    # The night's run finds the kernel's flag and arms the reboot itself.
    settings = {"Unattended-Upgrade::Automatic-Reboot": "true", "Unattended-Upgrade::Automatic-Reboot-Time": "04:00"}
    box.host.write("/etc/apt/apt.conf.d/99reboot", "".join(f'{name} "{value}";\n' for name, value in settings.items()))
    log = box.night()
    assert "Found /var/run/reboot-required, rebooting" in log
    armed = watched.triggered("reboot-will-break", 60)
    assert armed.severity == "critical"
    assert re.search(r"reboots by itself in \d+ (h|min) \(04:00 UTC\)", armed.message), armed.message
    shown("kernel forced in with dpkg", before, box.truths())
    assert box.host.boots == 1
    # Cancelled, it would come with the next night's run: that is said too, until the setting is gone.
    box.host.run("shutdown", "-c")
    code, said = box.check("host.reboot")
    assert (code, "unattended-upgrades reboots after its next run" in said) == (1, True), said
    box.host.sh("rm /etc/apt/apt.conf.d/99reboot; touch /run/reboot-required")
    watched.resolved("reboot-will-break", 60)


def test_a_box_on_which_nobody_asked_for_anything_is_left_alone(box: Saturday) -> None:
    watched = box.install_holdfast()
    box.host.wait_for(lambda: "driver.next_boot" in box.host.journal("holdfast"), 60, "the first look")
    assert box.upgrade("install", "--only-upgrade", "linux-image-virtual")[0] == 0
    assert box.boots_next() == box.offered.kernel
    before = box.truths()
    log = box.night()
    after = box.truths()
    shown("Holdfast installed, nothing asked of it", before, after)
    assert "All upgrades installed" in log
    assert after["library"] == after["its module"] == box.offered.driver
    assert box.unrelated_updates_are_in()
    assert box.held() == set()
    # The one thing told needs no lock: what runs and what lies on the disk have parted.
    watched.triggered("driver-mismatch", 60)
    assert {page.finding for page in watched.pages()} == {"driver-mismatch"}
