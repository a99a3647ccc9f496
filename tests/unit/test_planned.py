"""What a planned change must have made true, and what a person types next: pure, from what the machine shows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.host import planned
from agent.host.boot import NextBoot
from agent.host.change_guide import asked_for, install_line, next_step, offered_modules
from agent.host.changes import Change
from agent.host.driver import Lock
from agent.host.driver_truth import Future, Present, Reading
from agent.host.kernel_modules import KernelDriver
from agent.host.packages import Package
from agent.host.planned import Seen, Truth, missing, truths
from agent.model import Moment
from tests.support.fake_host import FakeHost, timed_out
from tests.support.kernels import NEW, OLD, A, B, kernel, libraries, modinfo, module_path, running, tells

CHANGE = Change("1", B, "", "CVE", Moment(0.0, 0.0, "boot-1"), 3600.0, "alice", A)
KERNEL_ONLY = replace(CHANGE, to=A, kernel=NEW)
UBUNTU = (
    f"linux-image-{OLD}", f"linux-modules-nvidia-550-server-{OLD}", f"linux-objects-nvidia-550-server-{OLD}",
    f"linux-signatures-nvidia-{OLD}", "nvidia-utils-550-server", "libnvidia-compute-550-server",
    "nvidia-kernel-common-550-server", f"nvidia-firmware-550-server-{A}", "nvidia-container-toolkit",
)  # fmt: skip
MANUAL = frozenset(
    {f"linux-image-{OLD}", f"linux-modules-nvidia-550-server-{OLD}", "nvidia-utils-550-server",
     "libnvidia-compute-550-server", "nvidia-container-toolkit", "hello"}
)  # fmt: skip


def package(name: str, version: str = f"{A}-0ubuntu1", state: str = "i") -> Package:
    own = name.startswith("linux-")
    source = (
        "linux-restricted-modules" if own and "nvidia" in name else "linux" if own else "nvidia-graphics-drivers-550"
    )
    if "container" in name:
        source = "nvidia-container-toolkit"
    return Package(name, "amd64", source, "6.8.0-31.31" if own else version, "i", state)


def installed(*names: str, version: str = f"{A}-0ubuntu1") -> tuple[Package, ...]:
    return tuple(package(name, version) for name in names or UBUNTU)


def seen(loaded: str = B, library: str = B, coming: str = B, release: str = OLD, **changes: object) -> Seen:
    """A machine with everything as given; every part of the driver is B unless said otherwise."""
    now = Present(Lock(A), Reading(loaded), Reading(library), Reading(library))
    later = Future(
        NextBoot(release, by="GRUB", how="default entry"),
        KernelDriver(release, coming),
        KernelDriver(OLD, coming),
        False,
    )
    return replace(Seen(now, later, installed(version=f"{B}-0ubuntu1")), **changes)  # type: ignore[arg-type]


def wrong(change: Change, what: Seen) -> dict[str, bool | None]:
    return {each.name: each.ok for each in truths(change, what) if not each.ok}


def test_a_change_is_complete_when_every_truth_is_the_planned_one() -> None:
    assert wrong(CHANGE, seen()) == {}
    assert missing(truths(CHANGE, seen())) == ()


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        (seen(loaded=A), {"loaded module": False}),
        (seen(library=A), {"libraries": False}),
        (seen(coming=A), {"module, next boot": False}),
        (seen(packages=installed()), {"packages": False}),
        (seen(packages=(package("nvidia-utils-580-server", f"{B}-0ubuntu1", "U"),)), {"packages": False}),
        (seen(unsettled="apt (pid 7) is changing packages"), {"packages": None}),
        (seen(loaded=A, library=A, coming=A, packages=installed()), dict.fromkeys(
            ("packages", "libraries", "module, next boot", "loaded module"), False)),
    ],
)  # fmt: skip
def test_what_is_missing_is_named_all_of_it(what: Seen, expected: dict[str, bool | None]) -> None:
    assert wrong(CHANGE, what) == expected
    assert len(missing(truths(CHANGE, what))) == len(expected)


def test_what_cannot_be_told_is_never_taken_for_done() -> None:
    good = seen()
    unread = Reading(None, "Permission denied")
    cases = {
        "loaded module": replace(good, now=replace(good.now, loaded=unread)),
        "libraries": replace(good, now=replace(good.now, cuda=unread)),
        "next boot": replace(good, later=replace(good.later, next=NextBoot(None, problem="grub.cfg is locked"))),
        "module, next boot": replace(
            good, later=replace(good.later, coming=KernelDriver(OLD, problem="modinfo hangs"))
        ),
        "packages": replace(good, unsettled="dpkg-query: status 2"),
    }
    for name, what in cases.items():
        assert wrong(CHANGE, what) == {name: None}


def test_no_module_and_a_stale_ramdisk_are_not_done() -> None:
    good = seen()
    for coming in (KernelDriver(OLD, absent="no nvidia module"), KernelDriver(OLD, B, stale="an older copy")):
        what = replace(good, later=replace(good.later, coming=coming, running=coming))
        assert wrong(CHANGE, what) == {"module, next boot": False}


def test_a_planned_kernel_must_boot_next_and_run() -> None:
    before = seen(loaded=A, library=A, coming=A, packages=installed())
    assert wrong(KERNEL_ONLY, before) == {"next boot": False, "running kernel": False}
    after = replace(before, later=replace(before.later, next=NextBoot(NEW), coming=KernelDriver(NEW, A)))
    assert wrong(KERNEL_ONLY, after) == {"running kernel": False}
    booted = replace(after, later=replace(after.later, running=KernelDriver(NEW, A)))
    assert wrong(KERNEL_ONLY, booted) == {}


def test_a_running_kernel_that_would_load_something_else_is_not_done() -> None:
    good = seen(release=NEW)
    what = replace(good, later=replace(good.later, running=KernelDriver(OLD, A)))
    assert wrong(CHANGE, what) == {"module, running": False}


def test_in_a_container_the_next_boot_is_its_hosts_business() -> None:
    good = seen(packages=())
    what = replace(good, later=Future(NextBoot(None, by="container", problem="a container"), None, None, None))
    assert wrong(CHANGE, what) == {}


def test_the_machine_is_read_afresh_and_nothing_raises() -> None:
    files = {**running(OLD, B), **libraries(B), **kernel(OLD, "kernel/nvidia-580srv/nvidia.ko")}
    path = module_path(OLD, "kernel/nvidia-580srv/nvidia.ko")
    host = FakeHost.build(files, commands=tells({path: modinfo(B)}))
    assert wrong(CHANGE, planned.look(host)) == {}, "no dpkg, no packages: files are what counts"
    broken = FakeHost.build({**files, "/var/lib/dpkg/status": ""}, commands={
        **tells({path: modinfo(B)}), ("dpkg-query", ...): timed_out(),
    })  # fmt: skip
    assert wrong(CHANGE, planned.look(broken)) == {"packages": None}


# --- what to type ------------------------------------------------------------------------------------------------


def guide(change: Change, what: Seen) -> tuple[str, str]:
    step = next_step(change, truths(change, what), what.packages, MANUAL)
    return step.why, step.command


def test_the_way_through_a_change_of_the_driver_on_ubuntus_ready_made_modules() -> None:
    start = seen(loaded=A, library=A, coming=A, packages=installed())
    assert guide(CHANGE, start) == (
        f"install driver {B}",
        f"sudo apt install nvidia-utils-580-server libnvidia-compute-580-server linux-modules-nvidia-580-server-{OLD}",
    )  # fmt: skip
    assert guide(CHANGE, seen(loaded=A))[1] == "sudo reboot"
    assert guide(CHANGE, seen())[1] == "sudo holdfast change finish"


def test_the_way_through_a_change_of_the_kernel_alone_leaves_the_driver_as_it_is() -> None:
    start = seen(loaded=A, library=A, coming=A, packages=installed())
    there = replace(start, later=replace(start.later, next=NextBoot(NEW), coming=KernelDriver(NEW, absent="no module")))
    assert guide(KERNEL_ONLY, there)[1] == (f"sudo apt install linux-image-{NEW} linux-modules-nvidia-550-server-{NEW}")
    old_default = guide(KERNEL_ONLY, start)
    assert old_default[1] == f"sudo apt install linux-image-{NEW} linux-modules-nvidia-550-server-{NEW}"
    image = replace(start, packages=(*start.packages, package(f"linux-image-{NEW}")))
    assert guide(KERNEL_ONLY, image) == old_default, "its modules are still missing"
    present = replace(image, packages=(*image.packages, package(f"linux-modules-nvidia-550-server-{NEW}")))
    assert guide(KERNEL_ONLY, present) == (
        f"let the boot loader start kernel {NEW}: kernel {OLD} (default entry) would start now", "",
    )  # fmt: skip


def test_driver_and_kernel_together_are_one_line() -> None:
    both = replace(CHANGE, kernel=NEW)
    assert install_line(both, installed(), MANUAL).endswith(f"linux-image-{NEW} linux-modules-nvidia-580-server-{NEW}")


def test_debians_dkms_driver_needs_the_headers_of_a_new_kernel() -> None:
    names = ("nvidia-driver", "nvidia-kernel-dkms", "libcuda1")
    found = tuple(Package(name, "amd64", "nvidia-graphics-drivers", "535.261.03-1", "i", "i") for name in names)
    change = replace(CHANGE, to="550.163.01", locked="535.261.03", kernel="6.1.0-40-amd64")
    assert install_line(change, found, {"nvidia-driver"}) == (
        "sudo apt install nvidia-driver linux-image-6.1.0-40-amd64 linux-headers-6.1.0-40-amd64"
    )


def test_without_packages_there_is_no_line_and_words_must_do() -> None:
    start = seen(loaded=A, library=A, coming=A, packages=())
    why, command = guide(CHANGE, start)
    assert (why, command) == (f"install driver {B}, with the packages of this distribution", "")
    assert install_line(CHANGE, installed(), frozenset()).startswith("sudo apt install nvidia-utils-580-server ")


def test_half_done_packages_and_a_stale_ramdisk_have_their_own_commands() -> None:
    half = seen(packages=(package("nvidia-utils-580-server", f"{B}-0ubuntu1", "F"),))
    assert guide(CHANGE, half)[1] == "sudo dpkg --configure -a"
    good = seen(loaded=A)
    stale = replace(good, later=replace(good.later, coming=KernelDriver(OLD, B, stale="an older copy")))
    assert guide(CHANGE, stale)[1] == f"sudo update-initramfs -u -k {OLD}"
    unknown = (Truth("packages", None, "apt is changing packages"),)
    assert next_step(CHANGE, unknown, (), ()).command == "holdfast lock show"


def test_where_the_archive_has_no_module_for_the_running_kernel_the_line_leads_to_one_that_has() -> None:
    offered = {
        f"linux-modules-nvidia-580-server-{release}"
        for release in ("6.8.0-60-generic", NEW, "6.8.0-200-lowlatency", "7.0.0-31-generic-64k")
    } | {"linux-modules-nvidia-580-server-generic", f"linux-modules-nvidia-590-server-{OLD}"}
    line = install_line(CHANGE, installed(), MANUAL, offered)
    assert line.endswith(f" linux-image-{NEW} linux-modules-nvidia-580-server-{NEW}")
    there = {*offered, f"linux-modules-nvidia-580-server-{OLD}"}
    assert install_line(CHANGE, installed(), MANUAL, there).endswith(f" linux-modules-nvidia-580-server-{OLD}")
    assert install_line(replace(CHANGE, kernel="6.8.0-99-generic"), installed(), MANUAL, offered) == ""
    assert install_line(CHANGE, installed(), MANUAL, {"linux-modules-nvidia-590-server-generic"}) == ""


def test_what_a_person_asked_for_and_what_the_archive_has_is_apts_word_or_nothing() -> None:
    assert offered_modules(FakeHost.build(commands={("apt-cache", ...): "a\nb\n"})) == {"a", "b"}
    for answer in (100, timed_out()):
        assert offered_modules(FakeHost.build(commands={("apt-cache", ...): answer})) == frozenset()
    assert asked_for(FakeHost.build(commands={"apt-mark showmanual": "a\nb\n"})) == {"a", "b"}
    for answer in (100, timed_out()):
        assert asked_for(FakeHost.build(commands={"apt-mark showmanual": answer})) == frozenset()
