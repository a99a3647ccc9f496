"""The apt guard: what it refuses, what it lets through, and that nothing whatever makes it stop apt by accident."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import apt_guard
from agent.apt_guard import box, transaction
from agent.errors import CommandFailed, FileTrouble, HostError
from agent.host import changes, vetoes
from agent.host.changes import Change
from agent.host.driver import LOCK_FILE
from tests.support.fake_host import START, FakeHost, timed_out

LOCKED, NEWER, OTHER = "550.54.15", "580.178.04", "595.84"
RUNNING, NEXT, DEBIAN = "6.8.0-31-generic", "6.8.0-149-generic", "6.1.0-40-amd64"
GRUB = Path(__file__).resolve().parents[1] / "data" / "grub" / "ubuntu-24.04"
BUILT = "nvidia-kernel-common-550-server (>= {0})"
PREBUILT = "linux-modules-nvidia-550-server"
STACK = (
    ("libnvidia-compute-550-server", "nvidia-graphics-drivers-550-server", f"{LOCKED}-0ubuntu2", ""),
    ("nvidia-utils-550-server", "nvidia-graphics-drivers-550-server", f"{LOCKED}-0ubuntu2", ""),
    ("nvidia-kernel-common-550-server", "nvidia-graphics-drivers-550-server", f"{LOCKED}-0ubuntu2", ""),
    (f"nvidia-firmware-550-server-{LOCKED}", "nvidia-graphics-drivers-550-server", f"{LOCKED}-0ubuntu2", ""),
    (f"{PREBUILT}-{RUNNING}", "linux-restricted-modules", "6.8.0-31.31", BUILT.format(LOCKED)),
    (f"{PREBUILT}-generic", "linux-restricted-modules", "6.8.0-31.31", BUILT.format(LOCKED)),
    (f"linux-image-{RUNNING}", "linux-signed", "6.8.0-31.31", ""),
)
DKMS_STACK = (
    ("nvidia-kernel-dkms", "nvidia-graphics-drivers", "535.261.03-1~deb12u1", ""),
    ("libcuda1", "nvidia-graphics-drivers", "535.261.03-1~deb12u1", ""),
    ("linux-image-6.1.0-35-amd64", "linux-signed-amd64", "6.1.137-1", ""),
)
EMPTY = "non-free/oldlibs"


def deb(name: str, version: str, depends: str = "", source: str = "", section: str = "libs") -> dict[str, str]:
    return {"Package": name, "Version": version, "Architecture": "amd64", "Source": source or "nvidia-graphics-drivers",
            "Depends": depends, "Section": section, "Description": "a package\n it goes on: here"}  # fmt: skip


def installs(name: str, version: str, old: str = "", **about: str) -> tuple[str, dict[str, str]]:
    path = f"/var/cache/apt/archives/{name}_{version}_amd64.deb"
    order = "<" if old != version else "="
    known = f"{old} amd64 none" if old else "- - none"
    return f"{name} {known} {order} {version} amd64 none {path}", deb(name, version, **about)


def removes(name: str, old: str) -> tuple[str, dict[str, str]]:
    return f"{name} {old} amd64 none > - - none **REMOVE**", {}


def kernel(release: str) -> tuple[str, dict[str, str]]:
    return installs(f"linux-image-{release}", "6.8.0-149.149", source="linux-signed")


def module(release: str, driver: str = LOCKED, branch: str = "550-server") -> tuple[str, dict[str, str]]:
    depends = f"linux-image-{release}, nvidia-kernel-common-{branch} (>= {driver})"
    return installs(f"linux-modules-nvidia-{branch}-{release}", "6.8.0-149.149", depends=depends,
                    source="linux-restricted-modules")  # fmt: skip


def said(*actions: tuple[str, dict[str, str]], command: str = "apt-get%20dist-upgrade") -> bytes:
    lines = ["VERSION 3", "Dir::Cache=var/cache/apt", f"CommandLine::AsString={command}", ""]
    return "\n".join([*lines, *(line for line, _ in actions), ""]).encode()


def modinfo(version: str) -> str:
    return f"filename: x\nversion: {version}\nlicense: NVIDIA\nvermagic: 6.8 SMP modversions\n"


def machine(
    *actions: tuple[str, dict[str, str]], lock: str | None = LOCKED, stack: Sequence[Sequence[str]] = STACK,
    kernels: Mapping[str, str] | None = None, running: str = RUNNING, change: Change | None = None,
    files: Mapping[str, Any] | None = None, commands: Mapping[Any, Any] | None = None,
) -> FakeHost:  # fmt: skip
    """A host with the real stack's names, kernels with (or without, "") a module, and the debs of these actions."""
    tree: dict[str, Any] = {"/proc/sys/kernel/osrelease": f"{running}\n", vetoes.FOLDER + "/ledger.jsonl": ""}
    asked: dict[Any, Any] = {}
    for release, place in (kernels or {RUNNING: "kernel/nvidia-550srv/nvidia.ko"}).items():
        tree[f"/boot/vmlinuz-{release}"] = ""
        tree[f"/lib/modules/{release}/modules.dep"] = f"{place}:\n" if place else ""
        if place:
            tree[f"/lib/modules/{release}/{place}"] = ""
            asked["modinfo", f"/lib/modules/{release}/{place}"] = modinfo(lock or LOCKED)
    if lock is not None:
        tree[LOCK_FILE] = f"{lock}\n"
    if change is not None:
        tree[changes.FILE] = changes.text(change)
    rows = (
        f"ii \t{name}\tamd64\t{source}\t{version}\t{depends}\t{name}\tlibs\n"
        for name, source, version, depends in stack
    )
    asked["dpkg-query", ...] = "".join(rows)
    for line, fields in actions:
        if fields:
            text = "".join(f"{name}: {value}\n" for name, value in fields.items())
            asked["dpkg-deb", "--field", line.split(" ")[-1], ...] = text
    return FakeHost.build({**tree, **(files or {})}, commands={**asked, **(commands or {})})


def asked(host: FakeHost, words: bytes) -> apt_guard.Answer:
    """The guard's answer. It lets through what it fails at, so a question that the fake does not know must be seen."""
    found = apt_guard.ask(host, words)
    assert not any("fake host" in line for line in found.lines), found.lines
    return found


def answer(*actions: tuple[str, dict[str, str]], **about: Any) -> apt_guard.Answer:
    return asked(machine(*actions, **about), said(*actions))


def planned(to: str = NEWER, kernel: str = "", window_s: float = 3600.0) -> Change:
    return Change("c1", to, kernel, "security", START, window_s, "root", LOCKED)


UPGRADE = (
    installs("nvidia-utils-550-server", "550.163.01-0ubuntu1", f"{LOCKED}-0ubuntu2",
             depends="nvidia-utils-570-server", section=EMPTY),
    installs("nvidia-utils-570-server", "570.211.01-0ubuntu1", depends="nvidia-utils-580-server", section=EMPTY),
    installs("nvidia-utils-580-server", f"{NEWER}-0ubuntu1"),
)  # fmt: skip
REPLACE = (*UPGRADE, removes("libnvidia-compute-550-server", f"{LOCKED}-0ubuntu2"),
           installs("libnvidia-compute-580-server", f"{NEWER}-0ubuntu1"))  # fmt: skip


# --- the driver's packages -----------------------------------------------------------------------------------


def test_a_newer_driver_is_refused_with_the_lock_the_package_and_the_way_out() -> None:
    lines = answer(installs("libnvidia-compute-550-server", f"{NEWER}-0ubuntu1", f"{LOCKED}-0ubuntu2")).lines
    assert lines == (
        f"refused, and nothing was changed: driver {LOCKED} is locked ({LOCK_FILE})",
        f"libnvidia-compute-550-server: {LOCKED} to {NEWER}",
        f'to do it: sudo holdfast change begin --to {NEWER} --reason "…", then repeat',
        "to leave it as it is: sudo holdfast hold, so that apt no longer offers it",
    )


def test_an_empty_package_that_leads_to_another_branch_is_refused_with_the_driver_at_the_end_of_its_chain() -> None:
    found = answer(*UPGRADE)
    assert not found.passes
    assert found.lines[1].startswith(
        f"nvidia-utils-550-server: {LOCKED} to an empty package that leads to nvidia-utils-570-server {NEWER}"
    )
    assert f"--to {NEWER}" in found.lines[2]


def test_empty_packages_and_leftovers_of_another_branch_are_nobodys_driver() -> None:
    stack = (*STACK, ("nvidia-driver-535", "nvidia-graphics-drivers-535", "535.261.03-0ubuntu1", ""))
    actions = (
        installs("nvidia-driver-470", "550.163.01-0ubuntu1", depends="nvidia-driver-550", section=EMPTY),
        removes("nvidia-driver-535", "535.261.03-0ubuntu1"),
    )
    assert answer(*actions, stack=stack).passes


def test_the_removal_of_the_locked_driver_is_refused() -> None:
    found = answer(removes("nvidia-utils-550-server", f"{LOCKED}-0ubuntu2"))
    assert not found.passes
    assert found.lines[1] == f"nvidia-utils-550-server: {LOCKED} would be removed"
    assert f"sudo rm {LOCK_FILE}" in found.lines[2]


def test_a_part_that_is_replaced_by_the_same_driver_in_another_flavour_may_go() -> None:
    swap = (
        removes("nvidia-utils-550-server", f"{LOCKED}-0ubuntu2"),
        installs("nvidia-utils-550", f"{LOCKED}-0ubuntu2"),
    )
    assert answer(*swap).passes
    assert not answer(swap[0], installs("nvidia-modprobe", f"{LOCKED}-1")).passes


@pytest.mark.parametrize(
    "action",
    [
        installs("nvidia-utils-550-server", f"{LOCKED}-0ubuntu2", f"{LOCKED}-0ubuntu2"),
        installs("nvidia-utils-550-server", f"{LOCKED}-0ubuntu3", f"{LOCKED}-0ubuntu2"),
        installs("libnvidia-encode-550-server", f"{LOCKED}-0ubuntu2"),
        installs("nvidia-container-toolkit", "1.18.0-1", "1.17.0-1"),
        installs("libnvidia-container1", "1.18.0-1", "1.17.0-1"),
        installs("cuda-toolkit-13-1", "13.1.0-1"),
        installs("nvidia-cuda-toolkit", "12.4.131~12.4.1-2"),
        installs("nvidia-modprobe", f"{NEWER}-1"),
        installs("nvidia-persistenced", "535.171.04-1"),
        installs(f"nvidia-firmware-580-server-{NEWER}", f"{NEWER}-0ubuntu1"),
        installs("hello", "2.10-3"),
        installs("linux-modules-nvidia-fs-6.8.0-31-generic", "6.8.0-31.31+1"),
        removes("linux-image-nvidia", "6.8.0-1010.10"),
        removes(f"nvidia-firmware-550-server-{LOCKED}", f"{LOCKED}-0ubuntu2"),
    ],
)
def test_what_leaves_the_driver_as_it_is_passes_without_a_word(action: tuple[str, dict[str, str]]) -> None:
    assert answer(action) == apt_guard.Answer(passes=True)


def test_one_bad_package_among_good_ones_is_refused() -> None:
    good = [installs(f"lib{letter}", "2.0", "1.0") for letter in "abcdefgh"]
    assert answer(*good).passes
    found = answer(*good, installs("nvidia-utils-550-server", f"{OTHER}-1", f"{LOCKED}-0ubuntu2"))
    assert not found.passes
    assert "nvidia-utils-550-server" in found.lines[1]


def test_a_driver_that_is_drifting_may_come_back_to_the_lock() -> None:
    stack = (("nvidia-utils-550-server", "nvidia-graphics-drivers-550-server", f"{NEWER}-0ubuntu1", ""),)
    back = installs("nvidia-utils-550-server", f"{LOCKED}-0ubuntu2", f"{NEWER}-0ubuntu1")
    assert answer(back, stack=stack).passes
    assert not answer(installs("nvidia-utils-550-server", f"{OTHER}-1", f"{NEWER}-0ubuntu1"), stack=stack).passes


def test_nvidias_own_archive_without_branches_in_its_names_is_the_driver_too() -> None:
    stack = (("libnvidia-compute", "libnvidia-compute", "595.84-1ubuntu1", ""),)
    found = answer(installs("libnvidia-compute", "610.12-1ubuntu1", "595.84-1ubuntu1"), stack=stack, lock=OTHER)
    assert not found.passes
    assert found.lines[1] == "libnvidia-compute: 595.84 to 610.12"


def test_the_modules_metapackage_is_judged_by_the_driver_it_depends_on() -> None:
    name, old = f"{PREBUILT}-generic", "6.8.0-31.31"
    assert answer(installs(name, "6.8.0-149.149", old, depends=BUILT.format(LOCKED))).passes
    found = answer(installs(name, "6.8.0-149.149", old, depends=BUILT.format(NEWER)))
    assert found.lines[1] == f"{name}: {LOCKED} to {NEWER}"
    assert not answer(removes(name, old)).passes


def test_the_words_are_at_most_six_lines_whatever_is_refused() -> None:
    many = [installs(f"libnvidia-x{number}", f"{NEWER}-1") for number in range(40)]
    found = answer(*many, kernel(NEXT), removes(f"{PREBUILT}-{RUNNING}", "6.8.0-31.31"), change=planned(OTHER))
    assert not found.passes
    assert len(found.lines) <= 6
    assert "(and 39 more)" in found.lines[1]


# --- kernels --------------------------------------------------------------------------------------------------


def test_a_new_kernel_without_its_module_is_refused_and_names_the_package_that_is_missing() -> None:
    found = answer(kernel(NEXT))
    assert not found.passes
    assert found.lines[1] == (f"linux-image-{NEXT}: kernel {NEXT}, which would boot next, would have no NVIDIA module")
    assert f"install {PREBUILT}-{NEXT} in the same command" in found.lines[2]


def test_a_new_kernel_with_the_locked_drivers_module_passes() -> None:
    assert answer(kernel(NEXT), module(NEXT)).passes


def test_a_new_kernel_with_another_drivers_module_is_refused() -> None:
    found = answer(kernel(NEXT), module(NEXT, NEWER, "580-server"))
    assert not found.passes
    assert f"would load driver {NEWER}" in found.lines[1]


def test_a_module_package_that_does_not_say_its_driver_passes_with_a_note() -> None:
    silent = installs(f"{PREBUILT}-{NEXT}", "6.8.0-149.149", source="linux-restricted-modules")
    found = answer(kernel(NEXT), silent)
    assert found.passes
    assert "unknown driver" in found.lines[0]


def test_an_older_kernel_and_the_same_one_again_do_not_become_the_next() -> None:
    for action in (
        kernel("6.8.0-30-generic"),
        installs(f"linux-image-{RUNNING}", "6.8.0-31.32", "6.8.0-31.31"),
        installs(f"linux-image-{NEXT}-dbgsym", "6.8.0-149.149"),
        installs("linux-image-generic", "6.8.0-149.149", "6.8.0-31.31"),
    ):
        assert answer(action) == apt_guard.Answer(passes=True)


def test_the_removal_of_the_running_kernels_modules_is_refused_and_of_an_old_kernels_not() -> None:
    found = answer(removes(f"{PREBUILT}-{RUNNING}", "6.8.0-31.31"))
    assert not found.passes
    assert "would have no NVIDIA module" in found.lines[1]
    stack = (*STACK, (f"{PREBUILT}-6.8.0-30-generic", "linux-restricted-modules", "6.8.0-30.30", BUILT.format(LOCKED)))
    assert answer(removes(f"{PREBUILT}-6.8.0-30-generic", "6.8.0-30.30"), stack=stack).passes


def test_modules_of_the_running_kernel_spun_anew_from_another_driver_are_refused() -> None:
    found = answer(installs(f"{PREBUILT}-{RUNNING}", "6.8.0-31.31+1", "6.8.0-31.31", depends=BUILT.format(NEWER)))
    assert not found.passes
    assert f"kernel {RUNNING}, which would boot next, would load driver {NEWER}" in found.lines[1]


def test_the_removal_of_the_newest_kernel_counts_by_what_then_boots() -> None:
    good, bare = {RUNNING: "kernel/nvidia-550srv/nvidia.ko"}, {RUNNING: ""}
    newest = {NEXT: "kernel/nvidia-550srv/nvidia.ko"}
    gone = removes(f"linux-image-{NEXT}", "6.8.0-149.149")
    assert answer(gone, kernels={**good, **newest}, running=NEXT).passes
    found = answer(gone, kernels={**bare, **newest}, running=NEXT)
    assert not found.passes
    assert f"kernel {RUNNING}, which would boot next, would have no NVIDIA module" in found.lines[1]


def test_the_modules_of_a_kernel_that_runs_and_does_not_boot_next_are_not_removed_either() -> None:
    both = {RUNNING: "kernel/nvidia-550srv/nvidia.ko", NEXT: "kernel/nvidia-550srv/nvidia.ko"}
    found = answer(removes(f"{PREBUILT}-{RUNNING}", "6.8.0-31.31"), kernels=both)
    assert not found.passes
    assert f"kernel {RUNNING}, which runs now, would have no NVIDIA module" in found.lines[1]


def test_a_next_boot_that_was_without_a_module_before_is_not_held_against_anyone() -> None:
    trapped = {RUNNING: "kernel/nvidia-550srv/nvidia.ko", NEXT: "", "6.8.0-30-generic": ""}
    assert answer(removes("linux-image-6.8.0-30-generic", "6.8.0-30.30"), kernels=trapped).passes


def test_a_module_on_the_disk_counts_whatever_package_it_came_from() -> None:
    both = {RUNNING: "kernel/nvidia-550srv/nvidia.ko", NEXT: "kernel/nvidia-550srv/nvidia.ko"}
    gone = removes(f"linux-image-{NEXT}", "6.8.0-149.149")
    assert answer(gone, kernels=both, running=NEXT, stack=()).passes


def pinned_to(release: str) -> dict[str, str]:
    text = (GRUB / "first.cfg").read_text(encoding="utf-8")
    title = f"Advanced options for Ubuntu>Ubuntu, with Linux {release}"
    return {"/boot/grub/grub.cfg": text.replace('set default="0"', f'set default="{title}"')}


def test_where_the_next_boot_is_pinned_a_new_kernel_is_only_told() -> None:
    found = answer(kernel("6.8.0-200-generic"), files=pinned_to(RUNNING))
    assert found.passes
    assert "comes without an NVIDIA module; the next boot stays 6.8.0-31-generic (configured default)" in found.lines[0]
    numbered = {"/boot/grub/grub.cfg": (GRUB / "first.cfg").read_text(encoding="utf-8")}
    two = {RUNNING: "kernel/nvidia-550srv/nvidia.ko", NEXT: "kernel/nvidia-550srv/nvidia.ko"}
    assert not answer(kernel("6.8.0-200-generic"), files=numbered, kernels=two).passes


def test_a_menu_that_cannot_be_read_makes_the_newest_kernel_the_next() -> None:
    assert not answer(kernel(NEXT), files={"/boot/grub/grub.cfg": "menuentry {{{"}).passes


def test_a_container_has_no_say_in_kernels() -> None:
    host = machine(kernel(NEXT), files={"/run/systemd/container": "lxc"})
    host.files.remove(f"/boot/vmlinuz-{RUNNING}")
    assert asked(host, said(kernel(NEXT))).passes


def test_a_host_without_any_driver_has_nothing_to_lose() -> None:
    assert answer(kernel(NEXT), stack=(), kernels={RUNNING: ""}) == apt_guard.Answer(passes=True)


def test_a_module_that_no_package_brought_is_missed_too_and_a_planned_kernel_lets_it_be_built() -> None:
    by_hand = {RUNNING: "updates/nvidia.ko"}
    found = answer(kernel(NEXT), stack=(), kernels=by_hand)
    assert not found.passes
    assert f"--kernel {NEXT}" in found.lines[2]
    found = answer(kernel(NEXT), stack=(), kernels=by_hand, change=planned(LOCKED, NEXT))
    assert found.passes
    assert "has no NVIDIA module yet" in found.lines[0]
    assert not answer(kernel(NEXT), stack=(), kernels=by_hand, change=planned(LOCKED, "6.8.0-200-generic")).passes


def dkms(*actions: tuple[str, dict[str, str]], **about: Any) -> apt_guard.Answer:
    old = "6.1.0-35-amd64"
    return answer(*actions, lock="535.261.03", stack=DKMS_STACK, running=old,
                  kernels={old: "updates/dkms/nvidia-current.ko"}, **about)  # fmt: skip


def test_where_dkms_builds_only_missing_headers_are_refused() -> None:
    image = kernel(DEBIAN)
    found = dkms(image)
    assert not found.passes
    assert f"DKMS needs linux-headers-{DEBIAN}" in found.lines[1]
    headers = installs(f"linux-headers-{DEBIAN}", "6.1.153-1", source="linux")
    for built in (
        dkms(image, headers),
        dkms(image, files={f"/lib/modules/{DEBIAN}/build/include": ""}),
        dkms(image, files={f"/usr/src/linux-headers-{DEBIAN}/include/x": ""}),
    ):
        assert built.passes
        assert f"DKMS will build the driver for kernel {DEBIAN}" in built.lines[0]
    assert not dkms(image, installs("linux-headers-6.1.0-41-amd64", "6.1.155-1", source="linux")).passes
    older = installs("linux-headers-6.1.0-39-amd64", "6.1.148-1", source="linux")
    assert not dkms(image, kernel("6.1.0-39-amd64"), older).passes
    for place in (f"/lib/modules/{DEBIAN}/build/include", f"/usr/src/linux-headers-{DEBIAN}/include/x"):
        assert not dkms(image, removes(f"linux-headers-{DEBIAN}", "6.1.153-1"), files={place: ""}).passes


def test_where_dkms_builds_and_the_next_boot_is_pinned_missing_headers_are_told() -> None:
    about: dict[str, Any] = {"stack": (), "kernels": {RUNNING: "updates/dkms/nvidia.ko"}}
    tree = {"/var/lib/dkms/nvidia/550.54.15/source": "", **pinned_to(RUNNING)}
    found = answer(kernel("6.8.0-200-generic"), files=tree, **about)
    assert found.passes
    assert "comes without an NVIDIA module; the next boot stays" in found.lines[0]
    tree["/usr/src/linux-headers-6.8.0-200-generic/include/x"] = ""
    assert answer(kernel("6.8.0-200-generic"), files=tree, **about) == apt_guard.Answer(passes=True)


def test_dkms_is_known_by_its_own_folder_as_well() -> None:
    tree = {"/var/lib/dkms/nvidia/550.54.15/source": ""}
    found = answer(kernel(NEXT), stack=(), kernels={RUNNING: "updates/dkms/nvidia.ko"}, files=tree)
    assert "DKMS needs" in found.lines[1]


def test_a_kernel_of_nvidias_flavour_is_a_kernel_and_no_driver() -> None:
    assert box.image("linux-image-6.8.0-1010-nvidia") == "6.8.0-1010-nvidia"
    assert answer(kernel("6.8.0-1010-nvidia"), module("6.8.0-1010-nvidia")).passes
    assert not answer(kernel("6.8.0-1010-nvidia")).passes


# --- the planned change ---------------------------------------------------------------------------------------


def test_an_open_change_lets_exactly_its_driver_through() -> None:
    found = answer(*REPLACE, change=planned())
    assert found.passes
    assert found.lines == (f"let through by the planned change: driver {NEWER} (security)",)
    assert not answer(*REPLACE, change=planned(OTHER)).passes
    assert not answer(installs("nvidia-utils-595", f"{OTHER}-1"), change=planned()).passes


def test_an_open_change_lets_the_old_driver_go_once_the_new_one_is_there() -> None:
    gone = removes("libnvidia-compute-550-server", f"{LOCKED}-0ubuntu2")
    found = answer(gone, change=planned())
    assert not found.passes
    assert "the planned change that is open is another one" in found.lines[2]
    new = ("libnvidia-compute-580-server", "nvidia-graphics-drivers-580-server", f"{NEWER}-0ubuntu1", "")
    both = (*STACK, new)
    assert answer(gone, change=planned(), stack=both).passes
    back = removes(new[0], new[2])
    assert not answer(back, change=planned(), stack=(*both, ("nvidia-utils-580-server", new[1], new[2], ""))).passes
    assert "(and 1 more)" in answer(gone, back, change=planned(), stack=both).lines[1]


def test_an_open_change_does_not_let_a_kernel_without_a_module_through() -> None:
    assert not answer(*REPLACE, kernel(NEXT), change=planned()).passes
    assert not answer(kernel(NEXT), change=planned(LOCKED, NEXT)).passes
    assert answer(*REPLACE, kernel(NEXT), module(NEXT, NEWER, "580-server"), change=planned()).passes
    assert answer(kernel(NEXT), module(NEXT), change=planned(LOCKED, NEXT)).passes


def test_within_a_change_of_the_driver_the_running_kernel_may_be_left_behind() -> None:
    actions = (*REPLACE, kernel(NEXT), module(NEXT, NEWER, "580-server"),
               removes(f"{PREBUILT}-{RUNNING}", "6.8.0-31.31"))  # fmt: skip
    found = answer(*actions, change=planned())
    assert found.passes
    assert any(RUNNING in line and "would have no NVIDIA module" in line for line in found.lines)


def test_a_change_past_its_window_is_open_and_says_so() -> None:
    host = machine(*REPLACE, change=planned())
    host.clock.advance(7200)
    found = asked(host, said(*REPLACE))
    assert found.passes
    assert found.lines[-1] == "this change is 1.0 h past its window: sudo holdfast change status"


def test_a_change_that_cannot_be_read_permits_nothing() -> None:
    found = answer(*REPLACE, files={changes.FILE: "{"})
    assert not found.passes


# --- what real apt runs said ----------------------------------------------------------------------------------

DATA = Path(__file__).resolve().parents[1] / "data" / "apt-guard"


def recorded(case: str, **about: Any) -> apt_guard.Answer:
    """The answer to a real apt run (SOURCE.md says which), with what the packages in it said of themselves."""
    host = machine(**about)
    if not case.startswith("bookworm"):
        host.run.answer(("dpkg-query", ...), (DATA / "noble-installed.tsv").read_text(encoding="utf-8"))
    listed = DATA / case / "packages.txt"
    for block in listed.read_text(encoding="utf-8").split("\n\n") if listed.exists() else ():
        path, _, fields = block.partition("\n")
        host.run.answer(("dpkg-deb", "--field", path, ...), fields)
    return asked(host, (DATA / case / "stdin").read_bytes())


@pytest.mark.parametrize(("case", "more"), [("noble-full-upgrade", 5), ("noble-open-580", 10)])
def test_the_real_way_to_580_is_refused_with_the_driver_at_its_end(case: str, more: int) -> None:
    package, following = "nvidia-kernel-common-550-server", "nvidia-kernel-common-570-server"
    says = f"{package}: {LOCKED} to an empty package that leads to {following} {NEWER} (and {more} more)"
    found = recorded(case)
    assert (found.passes, found.lines[1]) == (False, says)


@pytest.mark.parametrize(
    ("case", "package", "release"),
    [
        ("noble-purge-modules", f"{PREBUILT}-{RUNNING}", RUNNING),
        ("noble-kernel", "linux-image-6.8.0-31-lowlatency", "6.8.0-31-lowlatency"),
        ("noble-newest-kernel", f"linux-image-{NEXT}", NEXT),
    ],
)
def test_real_runs_that_leave_the_next_boot_without_a_module_are_refused(case: str, package: str, release: str) -> None:
    says = f"{package}: kernel {release}, which would boot next, would have no NVIDIA module"
    found = recorded(case)
    assert (found.passes, found.lines[1]) == (False, says)


def test_the_real_removal_of_the_driver_is_refused() -> None:
    found = recorded("noble-remove-driver")
    assert (found.passes, found.lines[1]) == (
        False, f"nvidia-utils-550-server: {LOCKED} would be removed (and 1 more)",
    )  # fmt: skip


@pytest.mark.parametrize("case", ["noble-upgrade", "noble-reinstall", "noble-kernel-and-modules", "noble-cuda-toolkit"])
def test_real_apt_runs_that_leave_the_driver_alone_pass_without_a_word(case: str) -> None:
    assert recorded(case) == apt_guard.Answer(passes=True)


def test_the_real_way_to_580_goes_with_its_planned_change_and_with_no_other() -> None:
    for case in ("noble-full-upgrade", "noble-open-580"):
        found = recorded(case, change=planned())
        assert found.passes
        assert found.lines[-1] == f"let through by the planned change: driver {NEWER} (security)"
        assert not recorded(case, change=planned(OTHER)).passes


def test_debians_packages_of_the_locked_version_pass_and_of_the_security_pocket_not() -> None:
    about: dict[str, Any] = {"lock": "535.261.03", "stack": (), "kernels": {"6.1.0-35-amd64": ""}}
    assert recorded("bookworm-install", **about) == apt_guard.Answer(passes=True)
    found = recorded("bookworm-install-newer", **about)
    assert not found.passes
    assert "would be installed as 535.309.01" in found.lines[1]
    # nvidia-modprobe, nvidia-persistenced and nvidia-support have versions of their own
    assert "(and 10 more)" in found.lines[1]


def test_debians_real_kernel_needs_its_headers_where_dkms_builds() -> None:
    old = "6.1.0-35-amd64"
    about: dict[str, Any] = {"lock": "535.261.03", "stack": DKMS_STACK, "running": old,
                             "kernels": {old: "updates/dkms/nvidia-current.ko"}}  # fmt: skip
    assert "DKMS needs linux-headers-6.1.0-50-amd64" in recorded("bookworm-kernel", **about).lines[1]
    found = recorded("bookworm-kernel-and-headers", **about)
    assert found.passes
    assert "DKMS will build" in found.lines[0]


# --- the lock, and failing open -------------------------------------------------------------------------------


def test_without_a_lock_nothing_is_asked() -> None:
    host = machine(*UPGRADE, kernel(NEXT), lock=None)
    assert asked(host, said(*UPGRADE, kernel(NEXT))) == apt_guard.Answer(passes=True)
    assert host.run.calls == []


def test_an_unrelated_transaction_asks_nothing() -> None:
    host = machine()
    assert asked(host, said(installs("hello", "2.10-3"), removes("linux-headers-6.8.0-30", "1"))).passes
    assert host.run.calls == []


@pytest.mark.parametrize(
    "lock",
    ["", "latest\n", "550.54.15\n580.178.04\n", FileTrouble("denied", kind="denied"), FileTrouble("x", kind="other")],
)
def test_a_lock_that_is_none_lets_everything_through_with_a_warning(lock: object) -> None:
    found = answer(*UPGRADE, files={LOCK_FILE: lock})
    assert found.passes
    assert "cannot tell" in found.lines[0]
    assert found.log == found.lines


@pytest.mark.parametrize("trouble", [1, timed_out(), CommandFailed("dpkg-query: not found"), RuntimeError("bug")])
def test_dpkg_that_does_not_answer_lets_everything_through_with_a_warning(trouble: object) -> None:
    host = machine(*UPGRADE, commands={("dpkg-query", ...): trouble})
    host.run.answer(("dpkg-query", ...), trouble)
    found = asked(host, said(*UPGRADE))
    assert found.passes
    assert "cannot tell" in found.log[0]


def test_a_package_file_that_cannot_be_read_is_judged_by_what_apt_says_of_it() -> None:
    host = machine(*REPLACE)
    for line, _ in REPLACE:
        host.run.answer(("dpkg-deb", "--field", line.split(" ")[-1], ...), 2)
    found = asked(host, said(*REPLACE))
    assert not found.passes
    assert found.lines[1].startswith(f"nvidia-utils-550-server: {LOCKED} to 550.163.01")


@pytest.mark.parametrize(
    "words",
    [
        b"",
        b"VERSION 2\n\nhello - < 1.0 /x.deb\n",
        b"/var/cache/apt/archives/nvidia-utils-580_1_amd64.deb\n",
        b"VERSION 3\n",
        b"VERSION 3\na=b\n",
        b"VERSION 3\n\nnvidia-utils-580 1 2 3\n",
        b"VERSION 3\n\nnvidia-utils-580 - - none < 1 amd64 none **UNKNOWN**\n",
    ],
)
def test_words_that_are_not_version_3_let_everything_through_with_a_warning(words: bytes) -> None:
    found = asked(machine(), words)
    assert found.passes
    assert "cannot tell" in found.lines[0]


WORD = st.sampled_from(
    ["VERSION 3", "", "-", "none", "<", "=", "amd64", "**REMOVE**", "**CONFIGURE**", "/x.deb",
     "nvidia-utils-550-server", f"linux-image-{NEXT}", f"{PREBUILT}-{RUNNING}", f"{LOCKED}-1", f"{NEWER}-1",
     "\x00", "é", "a=b"]
)  # fmt: skip
LINES = st.lists(st.lists(WORD, max_size=10).map(" ".join), max_size=8).map(lambda lines: "\n".join(lines).encode())
ANY = {("dpkg-deb", ...): 2}


@given(st.one_of(st.binary(max_size=300), LINES, LINES.map(lambda text: b"VERSION 3\n\n" + text)), st.booleans())
def test_whatever_comes_the_answer_is_yes_or_no(words: bytes, locked: bool) -> None:
    found = asked(machine(lock=LOCKED if locked else None, commands=ANY), words)
    assert found.passes or locked


# --- the process ----------------------------------------------------------------------------------------------


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The guard as apt runs it: bytes on stdin, words on stderr, a log."""
    seen = SimpleNamespace(host=machine(*UPGRADE), log=[])
    monkeypatch.setattr(apt_guard, "real_host", lambda: seen.host)
    monkeypatch.setattr(apt_guard.syslog, "warn", lambda tag, text: seen.log.append(text))
    seen.feed = lambda words: monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(words)))
    seen.feed(said(*UPGRADE))
    return seen


def test_a_veto_is_77_with_its_words_on_stderr_and_in_the_log(
    process: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert apt_guard.main() == 77
    printed = capsys.readouterr()
    assert printed.err.startswith(f"holdfast: refused, and nothing was changed: driver {LOCKED} is locked")
    assert printed.out == ""
    assert process.log[0].startswith("refused apt-get dist-upgrade: nvidia-utils-550-server: ")


def test_a_crash_is_0_with_a_warning(
    process: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def crash() -> None:
        raise MemoryError

    monkeypatch.setattr(apt_guard, "real_host", crash)
    assert apt_guard.main() == 0
    assert "MemoryError" in capsys.readouterr().err
    assert "MemoryError" in process.log[0]


def test_a_terminal_that_is_gone_does_not_turn_a_veto_into_a_yes(
    process: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Gone:
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Gone())
    assert apt_guard.main() == 77


def test_more_than_apt_ever_says_lets_everything_through(
    process: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(transaction, "LIMIT", 100)
    assert apt_guard.main() == 0
    assert "more than 100 bytes" in capsys.readouterr().err


# --- the record -----------------------------------------------------------------------------------------------


def test_a_veto_is_left_for_the_daemon_and_a_yes_is_not() -> None:
    host = machine(*UPGRADE)
    asked(host, said(*UPGRADE, command="/usr/bin/unattended-upgrade%20--token=s3cret"))
    kept = vetoes.last(host)
    assert kept is not None
    assert (kept.command, kept.unattended, kept.package) == ("unattended-upgrade", True, "nvidia-utils-550-server")
    assert (kept.at, kept.boot) == (START.wall, START.boot_id)
    assert "s3cret" not in json.dumps(host.files.read_text(vetoes.FILE))
    assert kept.reason.endswith(f"; the lock says {LOCKED}")
    host = machine(installs("hello", "1.0"))
    assert asked(host, said(installs("hello", "1.0"))).passes
    assert vetoes.last(host) is None


def test_a_record_that_cannot_be_written_does_not_turn_a_veto_into_a_yes(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(host: object, veto: object) -> None:
        raise FileTrouble("no space left", kind="other")

    monkeypatch.setattr(vetoes, "record", full)
    found = answer(*UPGRADE)
    assert not found.passes
    assert found.log[-1] == "no space left"


@pytest.mark.parametrize(
    ("asked", "command", "unattended"),
    [
        ("apt-get%20-y%20install%20https://user:password@host/x.deb", "apt-get install", False),
        ("apt%20full-upgrade", "apt full-upgrade", False),
        ("/usr/bin/python3%20/usr/bin/unattended-upgrades%20-d", "unattended-upgrades", True),
        ("%20", "", False),
        ("%c3%a9%00evil%1b[2J", "evil2J", False),
        ("packagekitd", "packagekitd", False),
    ],
)
def test_of_the_command_line_only_program_and_verb_are_kept(asked: str, command: str, unattended: bool) -> None:
    found = transaction.parse(said(command=asked))
    assert (found.command, found.unattended) == (command, unattended)


def test_what_apt_says_is_read_as_it_is_written() -> None:
    words = said(installs("hello", "2.0", "1.0"), removes("bye", "1.0"),
                 ("hello 1.0 amd64 none < 2.0 amd64 none **CONFIGURE**", {}))  # fmt: skip
    first, second = transaction.parse(words).actions
    assert (first.name, first.old, first.new, first.file[-4:]) == ("hello", "1.0", "2.0", ".deb")
    assert (second.name, second.old, second.new, second.file) == ("bye", "1.0", "", "")
    with pytest.raises(HostError, match="another version"):
        transaction.parse(b"VERSION 1\n\n")
