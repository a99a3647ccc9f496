"""What this host is, as far as a transaction touches it: the driver's packages in it, and the kernels."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from agent.apt_guard import judge
from agent.apt_guard.judge import Kernels, Move
from agent.apt_guard.transaction import Action, Transaction
from agent.errors import CommandFailed, FileTrouble
from agent.host import Host, boot, debs, grub, kernel_modules, packages
from agent.host.debs import Described
from agent.host.packages import Package

FEW_SECONDS = 10.0
"""How long packages in files are asked for what they are; after that, what apt said of them must do."""
_DRIVER_LIKE = re.compile(r"nvidia|cuda|nvcuvid|nvoptix|nvsdm")
"""Every name that can be a part of the driver (agent/data/driver_packages.json), so that no other file is opened."""
_IMAGE = re.compile(r"linux-image-(?:unsigned-)?(\d+\.\d+.*?)(?:-unsigned)?")
_HEADERS = re.compile(r"linux-headers-(\d+\.\d+.*)")
_NOT_AN_IMAGE = re.compile(r".*-(?:dbg|dbgsym)")


@dataclass(frozen=True, slots=True)
class Box:
    """The packages of the driver that move, the versions of those that stay, the kernels, what could not be read."""

    moves: tuple[Move, ...]
    staying: frozenset[str]
    kernels: Kernels
    notes: tuple[str, ...] = ()


def concerned(transaction: Transaction) -> bool:
    """Whether any package in it can be a part of the driver, or a kernel. Pure, so that most runs cost nothing more."""
    return any(_DRIVER_LIKE.search(action.name) or image(action.name) for action in transaction.actions)


def image(name: str) -> str:
    """The release of the kernel that a package holds, "" for any other package."""
    matched = _IMAGE.fullmatch(name)
    return matched[1] if matched and not _NOT_AN_IMAGE.fullmatch(name) else ""


def look(host: Host, transaction: Transaction) -> Box:
    """What the transaction touches. Raises CommandFailed when dpkg cannot say what is installed."""
    known = debs.installed(host)
    moves, notes = _moves(host, transaction.actions, known)
    kernels = _kernels(host, transaction.actions, known, moves)
    return Box(moves, _staying(known, moves), kernels, tuple(notes))


def _moves(
    host: Host, actions: Sequence[Action], known: Mapping[tuple[str, str], Described]
) -> tuple[tuple[Move, ...], list[str]]:
    """The packages of the driver that move, one for each name and architecture, and what could not be read."""
    until = host.clock.now().boot_s + FEW_SECONDS
    found: dict[tuple[str, str], Move] = {}
    notes: list[str] = []
    for action in actions:
        if not _DRIVER_LIKE.search(action.name):
            continue
        before = known.get((action.name, action.old_architecture)) if action.old else None
        after = before if action.old == action.new else None  # the same again is what it is already
        if action.file and after is None:
            after, note = _in_file(host, action, in_time=host.clock.now().boot_s < until)
            notes += [note] if note else []
        if any(packages.is_driver(each.package.name, each.package.source) for each in (before, after) if each):
            key = (action.name, action.new_architecture or action.old_architecture)
            earlier = found.get(key, Move(action.name, None, None))
            # apt removes some packages first that it installs anew
            found[key] = Move(action.name, earlier.before or before, after or earlier.after)
    return tuple(found.values()), notes


def _staying(known: Mapping[tuple[str, str], Described], moves: Sequence[Move]) -> frozenset[str]:
    """The versions of the driver's packages that are installed and do not move."""
    moved = {move.name for move in moves}
    return frozenset(
        version
        for described in known.values()
        if (version := described.driver_version)
        and described.package.installed
        and described.package.name not in moved
        and packages.is_driver(described.package.name, described.package.source)
        and packages.shares_the_version(described.package)
    )


def _in_file(host: Host, action: Action, *, in_time: bool) -> tuple[Described, str]:
    """The package in a file, and a note when only apt's own words for it are known."""
    try:
        if in_time:
            return debs.in_file(host, action.file), ""
        note = "not enough time to read every package"
    except CommandFailed as error:
        note = error.message
    return Described(Package(action.name, action.new_architecture, action.name, action.new, "i", "i")), note


def _kernels(
    host: Host, actions: Sequence[Action], known: Mapping[tuple[str, str], Described], moves: Sequence[Move]
) -> Kernels:
    """The kernels, looked at only when one of them or its modules move."""
    arriving = {release for action in actions if action.file and (release := image(action.name))}
    leaving = {release for action in actions if not action.file and (release := image(action.name))} - arriving
    if not arriving and not leaving and not any(move.kernel for move in moves):
        return Kernels()
    following_boot = boot.next_boot(host)
    if following_boot.by == "container":
        return Kernels()
    running = boot.running_release(host) or ""
    on_disk = _on_disk(host)
    pinned = following_boot.pinned
    now = following_boot.release or (judge.following("", on_disk, (), ()))
    after = judge.following(now if pinned else "", on_disk, sorted(arriving), sorted(leaving))
    if not pinned and not arriving and not leaving:
        after = now
    wanted = [release for release in dict.fromkeys((now, running, after)) if release in {*on_disk, running}]
    return Kernels(
        running=running,
        next=now,
        pinned=pinned,
        how=following_boot.how,
        following=after,
        arriving=tuple(sorted(arriving)),
        leaving=tuple(sorted(leaving)),
        headers=frozenset(_headers(host, actions, arriving)),
        modules=_modules(known, moves),
        loads={release: kernel_modules.kernel_driver(host, release) for release in wanted},
        dkms=_dkms(host, known),
    )


def _on_disk(host: Host) -> tuple[str, ...]:
    try:
        names = host.files.listdir("/boot")
    except FileTrouble:
        return ()
    releases = (release for name in names if (release := grub.kernel_release(name)))
    return tuple(release for release in releases if not release.endswith((".old", ".dpkg-bak", ".dpkg-new")))


def _headers(host: Host, actions: Sequence[Action], releases: Iterable[str]) -> Iterator[str]:
    """Those of these kernels that have their headers afterwards."""
    named = {matched[1]: action for action in actions if (matched := _HEADERS.fullmatch(action.name))}
    for release in releases:
        try:
            places = (f"/lib/modules/{release}/build/include", f"/usr/src/linux-headers-{release}/include")
            if named[release].file if release in named else any(map(host.files.exists, places)):
                yield release
        except FileTrouble:
            yield release  # not readable is not missing


def _modules(
    known: Mapping[tuple[str, str], Described], moves: Sequence[Move]
) -> dict[str, tuple[tuple[str, str], ...]]:
    """Branch and driver of the prebuilt modules that are installed, by kernel or flavour; no driver for what goes."""
    gone = {move.name for move in moves if move.after is None}
    found: dict[str, tuple[tuple[str, str], ...]] = {}
    for described in known.values():
        matched = judge.MODULES.fullmatch(described.package.name)
        if matched and described.package.installed and not described.empty:
            version = "" if described.package.name in gone else described.driver_version or ""
            found[matched[2]] = (*found.get(matched[2], ()), (matched[1], version))
    return found


def _dkms(host: Host, known: Mapping[tuple[str, str], Described]) -> bool:
    """Whether the driver's modules are built on this host."""
    if any(
        "dkms" in described.package.name
        and described.package.installed
        and packages.is_driver(described.package.name, described.package.source)
        for described in known.values()
    ):
        return True
    try:
        return any(name.startswith("nvidia") for name in host.files.listdir("/var/lib/dkms"))
    except FileTrouble:
        return False
