"""Saturday night: the real unattended-upgrades, with the real packages of Ubuntu's security pocket.

First what it does to a box without Holdfast, and to one whose owner has held what everybody advises; then with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from bed import Bed, BedError, mirror
from bed.kernels import DRIVER, KERNEL
from saturday import LOG, METAS, QUIET, Saturday, saturday


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


def test_with_holdfast_nothing_of_the_driver_moves_and_the_updates_behind_it_come_in(box: Saturday) -> None:
    watched = box.install_holdfast()
    box.host.run("holdfast", "lock", "write")
    box.host.run("holdfast", "hold", timeout=120)
    before, packages = box.truths(), box.versions()
    log = box.night()
    after = box.truths()
    shown("lock and hold", before, after)
    moved = {name for name, version in box.versions().items() if packages.get(name) != version}
    assert moved == set(mirror.UNRELATED)
    assert box.unrelated_updates_are_in()
    assert {after[name] for name in ("loaded", "library", "its module")} == {DRIVER}
    assert (after["next kernel"], box.module(KERNEL)) == (KERNEL, DRIVER)

    # The night's log says why, and so do we.
    assert "All upgrades installed" in log
    for name in (*METAS, "libnvidia-compute-550-server", "nvidia-kernel-common-550-server", "nvidia-utils-550-server"):
        assert f"Package {name} is marked to be held back." in log
    explained = " ".join(box.host.run("holdfast", "hold", "--explain").stdout.split())
    for name, reason in (
        ("libnvidia-compute-550-server", "a part of the NVIDIA driver"),
        ("linux-image-virtual", f"would bring a new kernel, and the prebuilt modules here are for {KERNEL} only"),
        (f"linux-modules-nvidia-550-server-{KERNEL}", f"the driver's prebuilt modules for {KERNEL}"),
    ):
        assert f"hold {name}:amd64 by holdfast {reason}" in explained
    box.host.wait_for(lambda: "security updates wait for 5 of the" in box.status(), 60, "the reason in the status")
    assert f"{DRIVER} loaded, as locked" in box.status()
    assert "packages are held, as root asked" in box.status()

    # By hand it is no other: apt leaves them aside, and asks before it would not.
    assert "have been kept back" in box.upgrade("dist-upgrade")[1]
    code, said = box.upgrade("install", "linux-image-virtual", check=False)
    assert (code, "Held packages were changed" in said) == (100, True), said
    assert box.truths() == after
    assert watched.pages() == []


def test_with_nvidia_held_by_hand_the_kernel_is_refused_and_one_forced_in_is_told_before_any_reboot(
    box: Saturday,
) -> None:
    watched = box.install_holdfast()
    box.host.run("holdfast", "lock", "write")
    box.hold_by_hand()
    before = box.truths()
    code, said = box.upgrade("install", "linux-image-virtual", check=False)
    assert code == 100
    assert f"holdfast: refused, and nothing was changed: driver {DRIVER} is locked" in said
    assert f"kernel {box.offered.kernel}, which would boot next, would have no NVIDIA module" in said
    assert "sudo holdfast hold, so that apt no longer offers it" in said
    assert box.truths() == before

    # dpkg asks nobody.
    forced = [
        box.offered.deb(name)
        for name in (f"linux-modules-{box.offered.kernel}", f"linux-image-{box.offered.kernel}", "linux-image-virtual")
    ]
    box.host.run("dpkg", "-i", *forced, timeout=300, env=QUIET)
    page = watched.triggered("next-boot-no-driver", 60)
    assert page.severity == "critical"
    assert f"kernel {box.offered.kernel}" in page.message
    assert box.check("driver.next_boot")[0] == 2
    assert (box.boots_next(), box.module(box.boots_next())) == (box.offered.kernel, "")

    # The night's run finds the kernel's flag and arms the reboot itself.
    settings = {"Unattended-Upgrade::Automatic-Reboot": "true", "Unattended-Upgrade::Automatic-Reboot-Time": "04:00"}
    box.host.write("/etc/apt/apt.conf.d/99reboot", "".join(f'{name} "{value}";\n' for name, value in settings.items()))
    log = box.night()
    assert "Found /var/run/reboot-required, rebooting" in log
    armed = watched.triggered("reboot-will-break", 60)
    assert armed.severity == "critical"
    assert re.search(r"reboots by itself in \d+ (h|min) \(04:00 UTC\)", armed.message), armed.message
    shown("nvidia held by hand, locked, kernel forced in with dpkg", before, box.truths())
    assert box.host.boots == 1

    # Cancelled, it would come with the next night's run: that is said too, until the setting is gone.
    box.host.run("shutdown", "-c")
    code, said = box.check("host.reboot")
    assert (code, "unattended-upgrades reboots after its next run" in said) == (1, True), said
    box.host.sh("rm /etc/apt/apt.conf.d/99reboot; touch /run/reboot-required")
    watched.resolved("reboot-will-break", 60)


def test_a_night_that_the_guard_had_to_end_is_told_with_the_way_out(box: Saturday) -> None:
    """Locked, and nothing held by Holdfast: only the guard stands between the night and the trap."""
    watched = box.install_holdfast()
    box.host.run("holdfast", "lock", "write")
    box.hold_by_hand()
    before = box.truths()
    with pytest.raises(BedError):
        box.night()
    assert "Installing the upgrades failed!" in box.host.read(LOG)
    after = box.truths()
    shown("nvidia held by hand, locked, nothing held by Holdfast", before, after)
    driver = ("loaded", "library", "next kernel", "its module")
    assert [after[name] for name in driver] == [before[name] for name in driver]
    blocked = watched.triggered("updates-blocked", 120)
    assert "the apt guard ended the last unattended upgrade" in " ".join(blocked.message.split())

    # What the cause's own words advise: the next night ends well, with everything else in.
    box.host.run("holdfast", "hold", timeout=120)
    box.night()
    assert box.unrelated_updates_are_in()
    assert [box.truths()[name] for name in driver] == [before[name] for name in driver]
    watched.resolved("updates-blocked", 120)


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
