"""What a person types next during a planned change, derived from what is installed and what the archive offers.

Where a name cannot be derived, plain words say what to install: a wrong command is worse than none.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from agent.errors import HostError
from agent.host import Host, packages
from agent.host.changes import Change
from agent.host.debian_version import newest_last
from agent.host.packages import Package
from agent.host.planned import Truth

ASK_APT_S = 20.0
READY_MODULES = "linux-modules-nvidia-"
_MODULES = re.compile(r"linux-modules-nvidia-(\d{3}(?:-server)?(?:-open)?)-(\d+\.\d+\.\d+-\d+-[a-z0-9-]+)")
"""Ubuntu's ready-made modules of one kernel: the variant, and the kernel's release."""
_DKMS = re.compile(r"nvidia-(?:.*-)?dkms(?:-.*)?")
_COMES_ALONG = re.compile(r"nvidia-firmware-.*\d{3}\.\d+|linux-(?:objects|signatures)-nvidia-")
"""What others depend on, under a name that says more than the branch."""


@dataclass(frozen=True, slots=True)
class Next:
    """What comes next: why, and the command to type ("" where words must do)."""

    why: str
    command: str


def asked_for(host: Host) -> frozenset[str]:
    """The packages that a person asked for by name, as apt remembers it; none where it cannot be asked."""
    try:
        answer = host.run(["apt-mark", "showmanual"], timeout_s=ASK_APT_S)
    except HostError:
        return frozenset()
    return frozenset(answer.stdout.split()) if answer.rc == 0 else frozenset()


def offered_modules(host: Host) -> frozenset[str]:
    """Every package of ready-made modules that the archive offers; none where apt cannot be asked."""
    try:
        answer = host.run(["apt-cache", "pkgnames", READY_MODULES], timeout_s=ASK_APT_S)
    except HostError:
        return frozenset()
    return frozenset(answer.stdout.split()) if answer.rc == 0 else frozenset()


def next_step(
    change: Change,
    found: Sequence[Truth],
    installed: Iterable[Package],
    manual: Collection[str] = (),
    offered: Collection[str] = (),
) -> Next:
    """The next thing to do, from the truths as they are now. Pure.

    manual: the packages that a person asked for. offered: the modules that the archive has, () when nobody knows.
    """
    state = {each.name: each for each in found}
    unknown = next((each for each in found if each.ok is None), None)
    if unknown is not None:
        return Next(f"{unknown.name} cannot be told: {unknown.words}", "holdfast lock show")
    wrong = [name for name, each in state.items() if not each.ok]
    if not wrong:
        return Next("everything is as planned", "sudo holdfast change finish")
    stopped = next((each for each in found if "dpkg --configure" in each.words), None)
    if stopped is not None:
        return Next(f"{stopped.name}: {stopped.words.partition(' (')[0]}", "sudo dpkg --configure -a")
    stale = next((each for each in found if "update-initramfs" in each.words), None)
    if stale is not None and not {"packages", "libraries"} & set(wrong):
        return Next("the initial ramdisk is older than the module", stale.words.rpartition("(")[2].rstrip(")"))
    present = tuple(installed)
    lacking = "next boot" in wrong and _lacks_kernel(change, present)
    if {"packages", "libraries", "module, next boot"} & set(wrong) or lacking:
        line = install_line(change, present, manual, offered)
        words = f"install driver {change.to}" + (f" and kernel {change.kernel}" if change.kernel else "")
        return Next(words if line else f"{words}, with the packages of this distribution", line)
    if "next boot" in wrong:
        why = f"let the boot loader start kernel {change.kernel}: {state['next boot'].words} would start now"
        return Next(why, "")
    return Next("the planned driver is in place and comes with the next boot", "sudo reboot")


def install_line(
    change: Change, installed: Iterable[Package], manual: Collection[str] = (), offered: Collection[str] = ()
) -> str:
    """The apt line that leads to the planned driver and kernel, "" where the names cannot be derived. Pure.

    Where any kernel will do and the archive has no module of the planned branch for the one that runs, it leads to the
    newest kernel of the same flavour for which it has one.
    """
    present = [each for each in installed if each.installed]
    ours = [each.name for each in packages.driver_packages(present) if not _COMES_ALONG.match(each.name)]
    if not ours:
        return ""
    names: list[str] = []
    if change.to != change.locked or not change.kernel:
        asked = [name for name in ours if name in manual and not _MODULES.fullmatch(name)]
        names += [_renamed(name, change) for name in asked or ours if not _MODULES.fullmatch(name)]
    variants = {found[1] for name in ours if (found := _MODULES.fullmatch(name))}
    kernels = {found[2] for name in ours if (found := _MODULES.fullmatch(name))}
    if change.kernel:
        names.append(f"linux-image-{change.kernel}")
        if any(_DKMS.fullmatch(name) for name in ours):
            names.append(f"linux-headers-{change.kernel}")
        kernels = {change.kernel} if variants else set()
    renamed = sorted({_renamed(f"-{variant}", change).removeprefix("-") for variant in variants})
    there = {*offered, *(each.name for each in present)} if offered else set()
    for variant, kernel in ((variant, kernel) for variant in renamed for kernel in sorted(kernels)):
        if not there or f"{READY_MODULES}{variant}-{kernel}" in there:
            names.append(f"{READY_MODULES}{variant}-{kernel}")
            continue
        other = None if change.kernel else _newest_like(kernel, variant, offered)
        if other is None:
            return ""
        names += [f"linux-image-{other}", f"{READY_MODULES}{variant}-{other}"]
    return " ".join(("sudo apt install", *dict.fromkeys(names))) if names else ""


def _newest_like(kernel: str, variant: str, offered: Collection[str]) -> str | None:
    """The newest kernel of the same flavour for which the archive has modules of this variant; None for none."""
    flavour = kernel.split("-", 2)[-1]
    found = (_MODULES.fullmatch(name) for name in offered)
    fitting = [each[2] for each in found if each and each[1] == variant and each[2].split("-", 2)[-1] == flavour]
    return max(fitting, key=newest_last, default=None)


def _renamed(name: str, change: Change) -> str:
    """The package's name in the planned branch: nvidia-utils-550-server of 580 is nvidia-utils-580-server."""
    old, new = change.locked.partition(".")[0], change.to.partition(".")[0]
    return re.sub(rf"(?<=-){re.escape(old)}(?=-|$)", new, name) if old else name


def _lacks_kernel(change: Change, installed: Iterable[Package]) -> bool:
    """Whether packages of the planned kernel are still to be installed; not where none name their kernel."""
    names = {each.name for each in installed if each.installed}
    if not change.kernel or not any(name.startswith("linux-image-") for name in names):
        return False
    ready = any(_MODULES.fullmatch(name) for name in names)
    modules = any((found := _MODULES.fullmatch(name)) and found[2] == change.kernel for name in names)
    image = any(name in names for name in (f"linux-image-{change.kernel}", f"linux-image-unsigned-{change.kernel}"))
    return not image or (ready and not modules)
