"""Whether the next boot will find the NVIDIA driver that this box must run.

Looks at the kernel that will boot next (GRUB's one-shot, saved and default entries, systemd-boot, a kernel loaded for
kexec, else the newest one), at the module that kernel would load, at what could keep it from loading (Secure Boot and
its signature, missing firmware, a module that was never linked or built), at a stale copy in the initial ramdisk, and
at the libraries on disk. CRITICAL: after a reboot no engine would have a GPU. WARNING: another driver would run than
the locked one. UNKNOWN: something could not be read, and the summary says what. While packages are being changed the
last answer stands. What to do: before any reboot, install the modules of that kernel
(linux-modules-nvidia-BRANCH-KERNEL, or its headers and `dkms autoinstall -k KERNEL`), or let GRUB boot the last good
one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from agent.host import Host, boot, driver, driver_truth, kernel_modules, packages
from agent.host.boot import NextBoot
from agent.host.driver_truth import Future, Present
from agent.model import Judgement, Moment, Observation, Observed, Status
from agent.plugin import Check, NoParameters, Target

DPKG_S = 1800.0
"""How long a change of packages is waited for, seconds: one that waits for an answer may last for hours."""
_MENUS = tuple(f"{folder}/{name}" for folder in boot.GRUB_FOLDERS for name in ("grub.cfg", "grubenv"))
_PROBLEMS = ("lock.unreadable", "next.problem", "next.driver_problem", "library.problem", "cuda.problem")
_LATER = ("next.", "running.", "secure_boot", "known")


def observe(host: Host, target: Target, before: Observed | None) -> Iterable[Observation]:
    """Every truth about the driver. While packages are half-way, what was seen before that is repeated."""
    yield Observation("traces", driver.traces(host))
    if not driver.traces(host):
        return
    yield from _now(driver_truth.present(host))
    change = packages.transaction(host)
    now = host.clock.now()
    since = _since(before, now) if change is not None else None
    yield Observation("change", change.words if change is not None else "")
    yield Observation("change.since", None if since is None else [since.wall, since.boot_s, since.boot_id])
    if change is not None and since is not None and now.since(since) < DPKG_S:
        if before is not None and before.value("next.by") is not None:
            yield from (each for each in before.observations if each.name.startswith(_LATER))
        else:
            yield Observation("next.problem", change.words)
        return
    kept = before.value("known") if before is not None else None
    known = dict(kept) if isinstance(kept, dict) else {}
    yield from _later(driver_truth.future(host, known))
    yield Observation("known", kernel_modules.still_there(host, known))


def judge(now: Observed, before: Observed | None, params: NoParameters) -> Judgement:
    """The worst first: cannot tell, no driver, a driver that its libraries do not fit, another driver."""
    if not now.value("traces"):
        return Judgement(Status.OK, "no NVIDIA driver, nothing locked")
    problem = next((now.value(name) for name in _PROBLEMS if now.value(name)), None)
    if problem:
        return Judgement(Status.UNKNOWN, f"what the next boot loads cannot be told: {problem}")
    wanted = now.value("locked") or now.value("loaded")
    kernel = f"the next boot (kernel {now.value('next.release')}, {now.value('next.how')})"
    if now.value("next.absent"):
        if wanted is None:
            return Judgement(Status.OK, "no NVIDIA driver runs, none is locked, and the next boot has none either")
        return Judgement(Status.CRITICAL, f"{kernel} has no NVIDIA driver: {now.value('next.absent')}")
    version = now.value("next.version")
    other = next((now.value(name) for name in ("library", "cuda") if now.value(name) not in (None, version)), None)
    if other:
        words = f"{kernel} loads {version}, but the libraries on disk are {other}: no engine would start"
        return Judgement(Status.CRITICAL, words)
    return _drift(now, kernel, version, wanted)


def _drift(now: Observed, kernel: str, version: str, wanted: str | None) -> Judgement:
    """Module and libraries fit each other: are they the right ones?"""
    if wanted is not None and version != wanted:
        agreed = "is locked" if now.value("locked") else "runs now"
        return Judgement(Status.WARNING, f"{kernel} loads {version}, but {wanted} {agreed}")
    if now.value("next.stale"):
        return Judgement(Status.WARNING, f"{kernel} may load an older driver: {now.value('next.stale')}")
    fits = ", as locked" if now.value("locked") else ", as now" if wanted else ""
    missing = "" if now.value("library") else "; no libnvidia-ml is on disk"
    return Judgement(Status.OK, f"{kernel} loads {version}{fits}{missing}")


def _since(before: Observed | None, now: Moment) -> Moment:
    """When the change of packages was first seen."""
    said = before.value("change.since") if before is not None else None
    match said:
        case [int() | float() as wall, int() | float() as boot_s, str() as boot_id]:
            return Moment(wall, boot_s, boot_id)
        case _:
            return now


def _now(truth: Present) -> Iterator[Observation]:
    yield Observation("locked", truth.lock.version)
    yield Observation("lock.unreadable", truth.lock.detail if truth.lock.problem == "unreadable" else "")
    for name, reading in (("loaded", truth.loaded), ("library", truth.library), ("cuda", truth.cuda)):
        yield Observation(name, reading.version)
        yield Observation(f"{name}.problem", reading.problem)


def _later(truth: Future) -> Iterator[Observation]:
    following: NextBoot = truth.next
    for name in ("release", "by", "how", "entry", "problem"):
        yield Observation(f"next.{name}", getattr(following, name))
    for prefix, found in (("next", truth.coming), ("running", truth.running)):
        if found is not None:
            for name in ("version", "path", "open", "signer", "absent", "stale"):
                yield Observation(f"{prefix}.{name}", getattr(found, name))
            yield Observation(f"{prefix}.driver_problem", found.problem)
    if truth.running is not None:
        yield Observation("running.release", truth.running.release)
    yield Observation("secure_boot", truth.secure_boot)


CHECK = Check(
    id="driver.next_boot",
    scope="host",
    every_s=300.0,  # a look costs root about 0.3 s of CPU, most of it the start of Python
    timeout_s=90.0,
    observe=observe,
    judge=judge,
    as_root=True,
    due_when_changed=(packages.STATUS, driver.LOCK_FILE, "/boot", "/lib/modules", *_MENUS),
    unsettled="change",
)
"""As root: grub.cfg, the boot partition and the modules' keys are often readable by root alone."""
