"""Which NVIDIA module a kernel would load, what keeps it from loading, and what is not asked twice."""

from __future__ import annotations

from typing import Any

import pytest

from agent.errors import CommandFailed, FileTrouble
from agent.host import kernel_modules
from agent.host.kernel_modules import KernelDriver, kernel_driver
from tests.support.fake_files import File
from tests.support.fake_host import FakeHost, Link
from tests.support.kernels import OLD, A, B, kernel, modinfo, module_path, tells

PLACE = "kernel/nvidia-550srv/nvidia.ko"
OPEN = "kernel/nvidia-550srv-open/nvidia.ko.zst"
DKMS = "updates/dkms/nvidia-current.ko.xz"
DEBIAN = {"/etc/modprobe.d/nvidia.conf": "install nvidia modprobe -i nvidia-current $CMDLINE_OPTS\n"}
FIRMWARE = {f"/lib/firmware/nvidia/{A}/gsp_{chip}.bin": "" for chip in ("tu10x", "ga10x")}


def host(*places: str, said: str | None = None, **more: Any) -> FakeHost:
    answers = {module_path(OLD, place): said or modinfo(A) for place in places}
    return FakeHost.build({**kernel(OLD, *places), **more.pop("files", {})}, commands=tells(answers), **more)


@pytest.mark.parametrize(
    ("place", "files"),
    [
        (PLACE, {}),
        (DKMS, DEBIAN),
        (DKMS, {}),  # loaded by the aliases of its devices
        ("updates/dkms/nvidia-tesla-535-current.ko", {}),
        (OPEN, {}),
    ],
)
def test_the_module_is_found_under_each_name(place: str, files: dict[str, str]) -> None:
    found = kernel_driver(host(place, files=files), OLD)
    assert (found.version, found.path, found.absent, found.problem) == (A, module_path(OLD, place), "", "")
    assert found.signer == "Canonical Ltd. Kernel Module Signing"
    assert not found.open


def test_of_two_modules_the_one_that_modprobe_is_told_to_load_counts() -> None:
    machine = host("updates/dkms/nvidia.ko", DKMS, files=DEBIAN)
    assert kernel_driver(machine, OLD).path == module_path(OLD, DKMS)


@pytest.mark.parametrize(
    ("files", "parameters", "says"),
    [
        ({}, "", f"kernel {OLD} has no nvidia module"),
        ({module_path(OLD): "built, but depmod never saw it"}, "", f"kernel {OLD} has no nvidia module"),
        ({f"/lib/modules/{OLD}/modules.dep": f"{PLACE}:\n"}, "", f"{module_path(OLD)} is listed but does not exist"),
        ({"/etc/modprobe.d/off.conf": "install nvidia /bin/false\n"}, "", "/etc/modprobe.d/off.conf says: install"),
        ({}, "ro module_blacklist=nouveau,nvidia", "command line says module_blacklist=nouveau,nvidia"),
    ],
)
def test_no_module_is_absent_with_the_reason(files: dict[str, str], parameters: str, says: str) -> None:
    found = kernel_driver(host(files=files), OLD, parameters=parameters)
    assert found.version is None
    assert says in found.absent
    assert not found.problem


def test_a_kernel_without_modules_and_one_that_depmod_never_saw_are_absent() -> None:
    assert kernel_driver(FakeHost.build(), "6.1").absent == "/lib/modules/6.1 does not exist"
    assert "depmod never ran" in kernel_driver(FakeHost.build({"/lib/modules/6.1/x": ""}), "6.1").absent


def test_a_blacklist_in_modprobe_d_does_not_stop_who_asks_by_name() -> None:
    files = {"/lib/modprobe.d/blacklist.conf": "blacklist nvidia\noptions nvidia NVreg_X=1\n"}
    assert kernel_driver(host(PLACE, files=files), OLD).version == A


def test_a_file_in_etc_hides_one_of_the_same_name() -> None:
    files = {"/lib/modprobe.d/a.conf": "install nvidia /bin/true\n", "/etc/modprobe.d/a.conf": Link("/dev/null")}
    assert kernel_driver(host(PLACE, files=files), OLD).version == A


@pytest.mark.parametrize(
    "machine",
    [
        host(files={f"/lib/modules/{OLD}/modules.dep": FileTrouble("denied", kind="denied")}),
        host(PLACE, files={"/etc/modprobe.d/x.conf": FileTrouble("denied", kind="denied")}),
        host(PLACE, said="filename: x\nlicense: NVIDIA\n"),
        FakeHost.build(kernel(OLD, PLACE), commands={("modinfo", "*"): 1}),
        FakeHost.build(kernel(OLD, PLACE), commands={("modinfo", "*"): CommandFailed("modinfo: not found")}),
    ],
    ids=["modules.dep", "modprobe.d", "no version", "modinfo fails", "no modinfo"],
)
def test_what_cannot_be_read_is_a_problem_and_no_absence(machine: FakeHost) -> None:
    found = kernel_driver(machine, OLD)
    assert found.problem
    assert (found.version, found.absent) == (None, "")


def test_the_open_module_needs_its_firmware_and_the_other_one_does_not() -> None:
    free = modinfo(A, licence="Dual MIT/GPL")
    found = kernel_driver(host(OPEN, said=free), OLD)
    assert found.absent == f"the open module needs /lib/firmware/nvidia/{A}/gsp_tu10x.bin, which is missing"
    assert kernel_driver(host(OPEN, said=free, files=FIRMWARE), OLD).open
    packed = {f"{path}.zst": "" for path in FIRMWARE}
    assert kernel_driver(host(OPEN, said=free, files=packed), OLD).version == A
    assert kernel_driver(host(PLACE), OLD).version == A


def test_a_module_of_another_kernel_does_not_load_unless_symbols_have_versions() -> None:
    other = modinfo(A, release="6.8.0-30-generic", vermagic="SMP preempt mod_unload")
    assert "was built for 6.8.0-30-generic" in kernel_driver(host(PLACE, said=other), OLD).absent
    assert kernel_driver(host(PLACE, said=modinfo(A, release="6.8.0-30-generic")), OLD).version == A


# --- signatures ----------------------------------------------------------------------------------------------

MOK = "builder Secure Boot Module Signature key"
ENROLLED = f"[key 1]\nSHA1 Fingerprint: aa\n        Subject: CN={MOK}\n"
KEYS = f"1a2b3c4d I------     1 perm 1f030000     0     0 asymmetri {MOK}: 88f752e5: X509.rsa 14df34d1 []\n"


@pytest.mark.parametrize(
    ("signer", "answers", "files", "refused"),
    [
        ("Canonical Ltd. Kernel Module Signing", {}, {}, ""),
        ("", {}, {}, "is not signed"),
        (MOK, {"mokutil --list-enrolled": ENROLLED}, {"/proc/keys": ""}, ""),
        (MOK, {"mokutil --list-enrolled": "MokListRT is empty\n"}, {"/proc/keys": ""}, "not enrolled"),
        (MOK, {"mokutil --list-enrolled": ENROLLED.replace("builder", "other")}, {"/proc/keys": ""}, "not enrolled"),
        (MOK, {}, {"/proc/keys": KEYS}, ""),
    ],
)
def test_where_signatures_count_the_signer_must_be_known(
    signer: str, answers: dict[str, str], files: dict[str, str], refused: str
) -> None:
    machine = host(PLACE, said=modinfo(A, signer=signer), files=files)
    for command, answer in answers.items():
        machine.run.answer(command, answer)
    found = kernel_driver(machine, OLD, secure_boot=True)
    assert (found.version, refused in found.absent, found.problem) == (None if refused else A, True, "")
    assert kernel_driver(machine, OLD, secure_boot=False).version == A


def test_signatures_that_cannot_be_checked_are_a_problem() -> None:
    machine = host(PLACE, said=modinfo(A, signer=MOK))
    assert "Secure Boot" in kernel_driver(machine, OLD, secure_boot=None).problem
    machine.run.answer("mokutil --list-enrolled", CommandFailed("mokutil: not found", code="command-not-found"))
    assert "keys" in kernel_driver(machine, OLD, secure_boot=True).problem


def test_a_kernel_told_to_enforce_signatures_does_so_without_secure_boot() -> None:
    machine = host(PLACE, said=modinfo(A, signer=""))
    assert "not signed" in kernel_driver(machine, OLD, parameters="ro module.sig_enforce=1").absent


# --- the initial ramdisk -------------------------------------------------------------------------------------

INITRD = f"initrd.img-{OLD}"
HOLDS = f"usr/lib/modules/{OLD}/updates/dkms/nvidia.ko.zst\nusr/lib/modprobe.d/nvidia.conf\n"


def with_initrd(written: float, changed: float, listing: Any) -> KernelDriver:
    """A module and an initial ramdisk, each with its time; only initramfs-tools are installed."""
    machine = host(files={module_path(OLD): File("module", mtime=changed), f"/boot/{INITRD}": File("", mtime=written),
                          f"/lib/modules/{OLD}/modules.dep": f"{PLACE}:\n"})  # fmt: skip
    machine.run.answer(("modinfo", "*"), modinfo(A))
    machine.run.answer(f"lsinitramfs /boot/{INITRD}", listing)
    machine.run.answer(("lsinitrd", "*"), CommandFailed("lsinitrd: not found", code="command-not-found"))
    return kernel_driver(machine, OLD, initrd=INITRD)


def test_an_older_copy_in_the_initial_ramdisk_is_stale() -> None:
    assert f"/boot/{INITRD} holds a copy" in with_initrd(500.0, 1000.0, HOLDS).stale
    assert not with_initrd(2000.0, 1000.0, AssertionError("a newer one is not unpacked")).stale
    assert not with_initrd(500.0, 1000.0, "usr/lib/modprobe.d/nvidia.conf\nkernel/nvidiafb.ko\n").stale


def test_an_initial_ramdisk_that_cannot_be_listed_is_a_problem() -> None:
    assert "cannot be read" in with_initrd(500.0, 1000.0, 1).problem


def test_dracut_lists_it_where_initramfs_tools_are_not() -> None:
    machine = host(PLACE, files={f"/boot/{INITRD}": File("", mtime=1.0)})
    machine.run.answer(f"lsinitramfs /boot/{INITRD}", CommandFailed("x", code="command-not-found"))
    machine.run.answer(f"lsinitrd /boot/{INITRD}", f"-rw-r--r-- 1 root root 5 Jan  1 1970 {HOLDS}")
    assert kernel_driver(machine, OLD, initrd=INITRD).stale


# --- what is remembered --------------------------------------------------------------------------------------


def test_a_file_is_asked_about_once_until_it_is_another_one() -> None:
    machine, known = host(PLACE), {}
    assert kernel_driver(machine, OLD, known=known) == kernel_driver(machine, OLD, known=known)
    assert len(machine.run.calls) == 1
    machine.files.entries[module_path(OLD)] = File("module", mtime=2000.0)
    machine.run.answer(("modinfo", module_path(OLD)), modinfo(B))
    assert kernel_driver(machine, OLD, known=known).version == B
    del machine.files.entries[module_path(OLD)]
    assert kernel_modules.still_there(machine, known) == {}


@pytest.mark.parametrize("rubbish", [None, [], {"stamp": 1}, {"stamp": "x", "facts": None}])
def test_a_memory_that_is_none_is_not_believed(rubbish: Any) -> None:
    assert kernel_driver(host(PLACE), OLD, known={module_path(OLD): rubbish}).version == A
