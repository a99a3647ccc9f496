"""Every truth about the driver at once: the lock, what is loaded, what is on disk, what each kernel would load.

Nothing here raises: each truth that cannot be read carries its own problem, so that one unreadable file does not hide
the others. Nothing here touches the GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from agent.errors import FileTrouble, HostError
from agent.host import Host, boot, driver, kernel_modules
from agent.host.boot import NextBoot
from agent.host.driver import CUDA_LIBRARY, Lock
from agent.host.kernel_modules import KernelDriver, Known


@dataclass(frozen=True, slots=True)
class Reading:
    """One version: None when there is none, or when `problem` says why it cannot be told."""

    version: str | None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Present:
    """What is agreed, what runs, and what a program started now would load.

    loaded: the kernel module. library, cuda: libnvidia-ml and libcuda on disk.
    """

    lock: Lock
    loaded: Reading
    library: Reading
    cuda: Reading


@dataclass(frozen=True, slots=True)
class Future:
    """What would be loaded again: by the running kernel, and by the one that boots next. None where it is not known.

    secure_boot: whether signatures count; None when that cannot be read.
    """

    next: NextBoot
    coming: KernelDriver | None
    running: KernelDriver | None
    secure_boot: bool | None


def present(host: Host) -> Present:
    """What is true now. Cheap: a handful of small files."""
    return Present(
        lock=driver.read_lock(host),
        loaded=_reading(lambda: driver.loaded_version(host)),
        library=_reading(lambda: driver.library_version(host)),
        cuda=_reading(lambda: driver.library_version(host, CUDA_LIBRARY)),
    )


def future(host: Host, known: Known) -> Future:
    """What will be true after a reboot. `known` is what was read before, and is brought up to date."""
    secure_boot = boot.secure_boot(host)
    following = boot.next_boot(host)
    release = boot.running_release(host)
    running, coming = None, None
    if release:
        running = kernel_modules.kernel_driver(
            host, release, parameters=_command_line(host), secure_boot=secure_boot, known=known
        )
    if following.release:
        coming = kernel_modules.kernel_driver(
            host,
            following.release,
            parameters=following.parameters,
            initrd=following.initrd,
            secure_boot=secure_boot,
            known=known,
        )
    return Future(following, coming, running, secure_boot)


def contradictions(now: Present, later: Future) -> tuple[str, ...]:
    """Every way in which this host contradicts itself, in words; () when all is one. Pure.

    The lock is left out: this says whether the host is fit to be locked.
    """
    loaded = now.loaded.version
    found = [
        f"the loaded module is {loaded}, {name} on disk is {reading.version}"
        for name, reading in (("libnvidia-ml", now.library), ("libcuda", now.cuda))
        if loaded and reading.version not in (None, loaded)
    ]
    for which, kernel in _kernels(later):
        if kernel.absent:
            found.append(f"{which}, {kernel.release}, would load no driver: {kernel.absent}")
        elif kernel.version and loaded and kernel.version != loaded:
            found.append(f"the loaded module is {loaded}, {which}, {kernel.release}, would load {kernel.version}")
        if kernel.stale:
            found.append(kernel.stale)
    return tuple(found)


def unreadable(now: Present, later: Future) -> tuple[str, ...]:
    """Every truth that cannot be told, with the reason. Pure."""
    readings = (("the loaded module", now.loaded), ("libnvidia-ml", now.library), ("libcuda", now.cuda))
    found = [f"{name}: {reading.problem}" for name, reading in readings if reading.problem]
    if later.next.problem:
        found.append(f"which kernel boots next: {later.next.problem}")
    found += [f"what {which} loads: {kernel.problem}" for which, kernel in _kernels(later) if kernel.problem]
    return tuple(found)


def _kernels(later: Future) -> Iterator[tuple[str, KernelDriver]]:
    """The kernels that matter, once each. In a container they are its host's business, and so is the driver."""
    if later.next.by == "container":
        return
    if later.coming is not None:
        yield "the kernel that boots next", later.coming
    if later.running is not None and (later.coming is None or later.coming.release != later.running.release):
        yield "the running kernel", later.running


def _reading(read: Callable[[], str | None]) -> Reading:
    try:
        return Reading(read())
    except HostError as error:
        return Reading(None, error.message)


def _command_line(host: Host) -> str:
    try:
        return host.files.read_text("/proc/cmdline").strip()
    except FileTrouble:
        return ""
