"""What a planned change must have made true, beside what is: the same list for `change status` and for `change finish`.

Nothing here raises for what the machine does: what cannot be read is a truth that cannot be told, which is never yes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from agent.errors import HostError
from agent.host import Host, driver_truth, packages
from agent.host.changes import Change
from agent.host.driver_truth import Future, Present
from agent.host.kernel_modules import KernelDriver
from agent.host.packages import Package


@dataclass(frozen=True, slots=True)
class Truth:
    """One thing that must become true. ok: whether it is, None when that cannot be told. words: what is found."""

    name: str
    ok: bool | None
    words: str


@dataclass(frozen=True, slots=True)
class Seen:
    """What the machine shows. packages: everything that is installed. unsettled: why they say nothing now, or ""."""

    now: Present
    later: Future
    packages: tuple[Package, ...] = ()
    unsettled: str = ""


def look(host: Host) -> Seen:
    """Everything that the truths rest on, read afresh. Never raises."""
    now, later = driver_truth.present(host), driver_truth.future(host, {})
    try:
        if not host.files.exists(packages.STATUS):
            return Seen(now, later)
        busy = packages.transaction(host)
        return Seen(now, later, packages.installed(host), busy.words if busy is not None else "")
    except HostError as error:
        return Seen(now, later, unsettled=error.message)


def truths(change: Change, seen: Seen) -> tuple[Truth, ...]:
    """Everything that the change must have made true, in the order in which it comes true. Pure."""
    return tuple(_truths(change, seen))


def missing(found: Iterable[Truth]) -> tuple[str, ...]:
    """What is not true yet or cannot be told, in words; () when the change is complete. Pure."""
    return tuple(f"{each.name}: {each.words}" for each in found if not each.ok)


def _truths(change: Change, seen: Seen) -> Iterator[Truth]:
    yield _packages(change.to, seen)
    yield _libraries(change.to, seen.now)
    if seen.later.next.by == "container":
        yield Truth("next boot", True, "this is a container: its host decides which kernel boots")
    else:
        yield from _next_boot(change, seen.later)
    loaded = seen.now.loaded
    if loaded.problem:
        yield Truth("loaded module", None, loaded.problem)
    else:
        yield Truth("loaded module", loaded.version == change.to, loaded.version or "none is loaded")
    running = seen.later.running
    release = running.release if running is not None else ""
    if change.kernel:
        yield Truth("running kernel", release == change.kernel if release else None, release or "it does not say which")
    # Before the reboot the running kernel has the old module, and is on its way out.
    stays = loaded.version == change.to and change.kernel in ("", release)
    if running is not None and stays and seen.later.coming is not None and release != seen.later.coming.release:
        yield _module("module, running", change.to, running)


def _packages(to: str, seen: Seen) -> Truth:
    name = "packages"
    found = packages.driver_packages(seen.packages)
    if seen.unsettled:
        return Truth(name, None, seen.unsettled)
    if not found:
        return Truth(name, True, "no package of the driver is installed")
    half = [each.name for each in found if each.half_done]
    if half:
        return Truth(name, False, f"{_some(half)} stopped half-way (sudo dpkg --configure -a)")
    versions = [each for each in found if each.installed and packages.shares_the_version(each)]
    wrong = [each for each in versions if each.driver_version != to]
    if wrong:
        return Truth(name, False, f"{_some([f'{each.name} {each.driver_version}' for each in wrong])}")
    return Truth(name, True, f"{len(found)}, all of {to}" if versions else f"{len(found)}, none with a driver version")


def _libraries(to: str, now: Present) -> Truth:
    name = "libraries"
    for reading in (now.library, now.cuda):
        if reading.problem:
            return Truth(name, None, reading.problem)
    if now.library.version != to:
        return Truth(name, False, f"libnvidia-ml is {now.library.version or 'not there'}")
    if now.cuda.version not in (None, to):
        return Truth(name, False, f"libcuda is {now.cuda.version}")
    return Truth(name, True, to)


def _next_boot(change: Change, later: Future) -> Iterator[Truth]:
    following, coming = later.next, later.coming
    if following.problem or coming is None:
        yield Truth("next boot", None, following.problem or "it cannot be told which kernel boots next")
        return
    if change.kernel:
        yield Truth("next boot", coming.release == change.kernel, f"kernel {coming.release} ({following.how})")
    yield _module("module, next boot", change.to, coming)


def _module(name: str, to: str, kernel: KernelDriver) -> Truth:
    """What one kernel would load."""
    if kernel.problem:
        return Truth(name, None, kernel.problem)
    if kernel.absent:
        return Truth(name, False, kernel.absent)
    if kernel.stale:
        return Truth(name, False, f"{kernel.stale} (sudo update-initramfs -u -k {kernel.release})")
    return Truth(name, kernel.version == to, f"{kernel.version}, for kernel {kernel.release}")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
