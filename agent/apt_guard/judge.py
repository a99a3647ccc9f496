"""May this transaction go on? Pure: from the lock, the planned change, the packages that move and the kernels.

Refused is what would change or remove the locked driver, and what would leave the next boot without its module; nothing
else. What cannot be told is let through with a note: a guard that is wrong stops security updates.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from agent.host import packages
from agent.host.changes import Change
from agent.host.debian_version import newest_last
from agent.host.debs import Described
from agent.host.driver import LOCK_FILE
from agent.host.kernel_modules import KernelDriver

MODULES = re.compile(r"linux-modules-nvidia-(\d{3}(?:-server)?(?:-open)?)-(.+)")
"""Ubuntu's prebuilt modules: their branch, and a kernel's release or, for a metapackage, its flavour."""
PREBUILT_PLACE = re.compile(r"/kernel/nvidia-\d{3}")
"""Where those put the module: /lib/modules/6.8.0-31-generic/kernel/nvidia-550srv/nvidia.ko."""
_OBJECTS = re.compile(r"linux-(?:objects|signatures)-nvidia-.*")
"""What those are linked from; they come and go with them."""
_UNLOCK = f"to do it, and have no driver locked any more: sudo rm {LOCK_FILE}, then repeat"
_BRANCH = re.compile(r"-\d{3}(?=-|$)|-server\b|-open\b")


@dataclass(frozen=True, slots=True)
class Move:
    """One package of the driver: as it is, and as it would be; None for not there."""

    name: str
    before: Described | None
    after: Described | None

    @property
    def kernel(self) -> str:
        """The kernel whose prebuilt modules it holds, "" for any other package."""
        matched = MODULES.fullmatch(self.name)
        return matched[2] if matched and matched[2][0].isdecimal() else ""


@dataclass(frozen=True, slots=True)
class Kernels:
    """The kernels before and after.

    running, next: releases, "" when unknown. pinned: the next boot is one certain entry, whatever comes; then `how`
    says which. following: what boots next afterwards. arriving, leaving: releases of images. headers: those that arrive
    and have their headers then. modules: by kernel or flavour, branch and driver of the prebuilt packages, "" for the
    driver of one that goes or does not say. loads: what a kernel on the disk would load now. dkms: modules are built on
    this host.
    """

    running: str = ""
    next: str = ""
    pinned: bool = False
    how: str = ""
    following: str = ""
    arriving: tuple[str, ...] = ()
    leaving: tuple[str, ...] = ()
    headers: frozenset[str] = frozenset()
    modules: Mapping[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)
    loads: Mapping[str, KernelDriver] = field(default_factory=dict)
    dkms: bool = False


@dataclass(frozen=True, slots=True)
class Reason:
    """One thing that must not happen: the package, and what would become of it.

    leads: the driver it leads to, "" for none or unknown. way: how to get there all the same, "" for by a change.
    """

    package: str
    words: str
    leads: str = ""
    way: str = ""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What must not happen, () to go on; and what is good to know."""

    reasons: tuple[Reason, ...] = ()
    notes: tuple[str, ...] = ()


def judge(
    locked: str, change: Change | None, moves: Sequence[Move], kernels: Kernels, staying: frozenset[str] = frozenset()
) -> Judgement:
    """Whether a transaction may go on, given the driver version that is locked and the change that is open.

    staying: the versions of the driver's packages that do not move. An open change permits the driver that it leads to
    beside the locked one, and the old one's removal once the new one is there or comes. A kernel must bring, or have,
    the module of either in any case.
    """
    permitted = {locked} | ({change.to} if change else set())
    reasons = [*_of_packages(locked, permitted, moves, staying)]
    about_kernels, notes = _of_kernels(permitted, change, moves, kernels)
    return Judgement((*reasons, *about_kernels), tuple(notes))


def following(pinned: str, on_disk: Sequence[str], arriving: Sequence[str], leaving: Sequence[str]) -> str:
    """The kernel that boots next after a transaction: the pinned one while it is there, else the newest, "" for none.

    GRUB's first entry is the newest kernel, and every installation of one writes its menu anew.
    """
    left = (set(on_disk) - set(leaving)) | set(arriving)
    return pinned if pinned in left else max(left, key=newest_last, default="")


def _of_packages(locked: str, permitted: set[str], moves: Sequence[Move], staying: frozenset[str]) -> Iterator[Reason]:
    """Every package that would no longer be the locked driver; first those that are installed."""
    comes = {stem(move.name) for move in moves if _driver(move.after) in permitted}
    renewed = bool((staying | {_driver(move.after) for move in moves}) & (permitted - {locked}))
    for move in sorted(moves, key=lambda each: each.before is None):
        if move.kernel or _OBJECTS.fullmatch(move.name) or _apart(move):
            continue  # a kernel's modules are judged by what that kernel would load
        before, after = _driver(move.before), _driver(move.after)
        was = before or (move.before.package.version if move.before else "")
        if after is not None:
            if after not in permitted:
                yield Reason(move.name, f"{was} to {after}" if was else f"would be installed as {after}", after)
            continue
        stays = move.after is not None and not move.after.empty
        if before not in permitted or stays or stem(move.name) in comes or (before == locked and renewed):
            continue
        if move.after is None:
            yield Reason(move.name, f"{was} would be removed", way=_UNLOCK)
        else:
            leads = _end_of_chain(move.after, moves)
            to = f"{move.after.leads_to} {leads}".strip() or "nothing"
            yield Reason(move.name, f"{was} to an empty package that leads to {to}", leads)


def stem(name: str) -> str:
    """A package's name without branch and flavour, which change while the part of the driver stays the same."""
    return _BRANCH.sub("", name)


def _driver(described: Described | None) -> str | None:
    return described.driver_version if described else None


def _apart(move: Move) -> bool:
    """Whether this part has a version of its own, or lies beside others of its kind (modprobe, firmware)."""
    known = [each.package for each in (move.before, move.after) if each and each.driver_version]
    prebuilt = MODULES.fullmatch(move.name) is not None
    return not prebuilt and bool(known) and not any(packages.shares_the_version(package) for package in known)


def _end_of_chain(after: Described, moves: Sequence[Move]) -> str:
    """The driver that an empty package leads to, through other empty ones; "" when it is not in the transaction."""
    coming = {move.name: move.after for move in moves if move.after is not None}
    for _ in range(len(coming)):
        following_one = coming.get(after.leads_to)
        if following_one is None:
            return ""
        if not following_one.empty:
            return following_one.driver_version or ""
        after = following_one
    return ""


def _of_kernels(
    permitted: set[str], change: Change | None, moves: Sequence[Move], kernels: Kernels
) -> tuple[list[Reason], list[str]]:
    """Every kernel that matters and would be without the driver."""
    if not any(driver.version for driver in kernels.loads.values()) and not kernels.modules:
        return [], []  # nothing that could be lost
    moved = {move.kernel for move in moves if move.kernel}
    reasons: list[Reason] = []
    notes: list[str] = []
    for release in dict.fromkeys((kernels.following, kernels.running)):
        becomes_next = release == kernels.following != kernels.next and (kernels.arriving or kernels.leaving)
        if not release or not (release in moved or becomes_next):
            continue
        found = _of_kernel(release, permitted, change, moves, kernels)
        if isinstance(found, str):
            notes += [found] if found else []
        elif release != kernels.following and len(permitted) > 1:
            notes.append(found.words)  # within a change of the driver the kernel that runs now may be left behind
        else:
            reasons.append(found)
    for release in kernels.arriving if kernels.pinned else ():
        built = kernels.dkms and release in kernels.headers
        if release != kernels.following and not built and not permitted.intersection(_comes(release, moves)):
            stays = f"the next boot stays {kernels.following} ({kernels.how})"
            notes.append(f"kernel {release} comes without an NVIDIA module; {stays}")
    return reasons, notes


def _of_kernel(
    release: str, permitted: set[str], change: Change | None, moves: Sequence[Move], kernels: Kernels
) -> Reason | str:
    """Whether this kernel has the driver afterwards: a reason against, or a note, "" for none."""
    arrives = release in kernels.arriving
    moved = next((move.name for move in moves if move.kernel == release), f"kernel {release}")
    package = f"linux-image-{release}" if arrives else moved
    kernel = f"kernel {release}, which {'would boot next' if release == kernels.following else 'runs now'},"
    coming = _comes(release, moves)
    load = KernelDriver(release, version=coming[0]) if coming else _stays(release, moves, kernels)
    if load.version in permitted or any(version in permitted for version in coming):
        return ""
    if load.version:
        return Reason(package, f"{kernel} would load driver {load.version}", load.version)
    if coming or load.problem:
        return f"{kernel} has modules of an unknown driver{': ' if load.problem else ''}{load.problem}"
    if arrives and kernels.dkms:
        headers = f"linux-headers-{release}"
        if release in kernels.headers:
            return f"DKMS will build the driver for kernel {release}; look before the reboot: holdfast lock show"
        words = f"{kernel} would have no NVIDIA module: DKMS needs {headers}"
        return Reason(package, words, way=f"to do it: install {headers} in the same command")
    beside = _beside(release, kernels)
    if arrives and not beside and change is not None and change.kernel == release:
        return f"kernel {release} has no NVIDIA module yet; look before the reboot: holdfast lock show"
    way = _UNLOCK
    if arrives:
        way = f'to do it: sudo holdfast change begin --kernel {release} --reason "…", repeat, and build its module'
    if arrives and beside:
        way = f"to do it: install {beside} in the same command, if the archive has it"
    return Reason(package, f"{kernel} would have no NVIDIA module", way=way)


def _comes(release: str, moves: Sequence[Move]) -> list[str]:
    """The drivers of the prebuilt modules that come for this kernel, "" for one that does not say."""
    arriving = [move.after for move in moves if move.kernel == release and move.after is not None]
    return [after.driver_version or "" for after in arriving if not after.empty]


def _stays(release: str, moves: Sequence[Move], kernels: Kernels) -> KernelDriver:
    """What a kernel on the disk loads afterwards, when nothing comes for it."""
    now = kernels.loads.get(release, KernelDriver(release))
    removed = any(move.kernel == release and move.before is not None for move in moves)
    if not removed or not PREBUILT_PLACE.search(now.path):
        return now
    left = [version for _, version in kernels.modules.get(release, ()) if version]
    return KernelDriver(release, version=left[0] if left else None)


def _beside(release: str, kernels: Kernels) -> str:
    """The package of prebuilt modules that belongs to a kernel, named like those that are there; "" without any."""
    branches = [branch for known in kernels.modules.values() for branch, _ in known]
    return f"linux-modules-nvidia-{branches[0]}-{release}" if branches else ""
