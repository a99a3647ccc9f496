"""What `holdfast hold` would hold on this host now, and why it would refuse: read for the plan and for `--explain`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agent.host import Host, boot, driver_truth, packages
from agent.host.driver_truth import Present
from agent.host.hold_set import HoldSet, hold_set
from agent.host.packages import Package

NO_DPKG = "no-dpkg"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why this host is not to be held as it is: one line with the way out, and a stable code."""

    words: str
    code: str


@dataclass(frozen=True, slots=True)
class Look:
    """What is installed and what of it to hold. driver: the locked version, "" without a usable lock.

    refusal: why a person's `hold` would be refused now, None when it would not.
    """

    installed: tuple[Package, ...]
    chosen: HoldSet
    driver: str
    refusal: Refusal | None


def look(host: Host) -> Look:
    """Everything, from fresh facts. Raises CommandFailed where dpkg cannot be asked."""
    if not host.files.exists(packages.STATUS):
        words = "this host has no dpkg, so nothing can be held"
        return Look((), HoldSet((), (), ""), "", Refusal(words, NO_DPKG))
    installed = packages.installed(host)
    now = driver_truth.present(host)
    chosen = hold_set(installed, boot.running_release(host) or "")
    refusal = _unlocked(now) or _packages(installed) or _inconsistent(host, now)
    return Look(installed, chosen, now.lock.version or "", refusal)


def native_architecture(installed: Sequence[Package]) -> str:
    """The host's own architecture: dpkg's, "" when dpkg is not among the packages."""
    return next((package.architecture for package in installed if package.name == "dpkg"), "")


def _unlocked(now: Present) -> Refusal | None:
    """Why there is nothing agreed that could be held."""
    lock, loaded = now.lock, now.loaded
    if lock.problem == "absent":
        return Refusal("no driver is locked yet, so nobody has said what to hold: sudo holdfast lock write", "no-lock")
    if lock.problem:
        return Refusal(f"{lock.detail}: sudo holdfast lock write", "lock-unusable")
    if loaded.problem:
        return Refusal(f"the loaded module does not say its version: {loaded.problem}", "driver-unknown")
    if loaded.version is None:
        words = f"the lock says {lock.version}, and no driver is loaded: load it first (holdfast lock show)"
        return Refusal(words, "driver-not-loaded")
    if loaded.version != lock.version:
        words = (
            f"the lock says {lock.version}, but {loaded.version} is loaded: bring the locked driver back, or agree to"
            " this one with sudo holdfast lock write"
        )
        return Refusal(words, "driver-drift")
    return None


def _packages(installed: Sequence[Package]) -> Refusal | None:
    """Why the driver's packages are not fit to be frozen as they are."""
    found = packages.driver_packages(installed)
    if not found:
        return Refusal(
            "no package of the NVIDIA driver is installed, so there is nothing to hold", "no-driver-packages"
        )
    half = [package.name for package in found if package.half_done]
    if half:
        return Refusal(f"{half[0]} stopped half-way: sudo dpkg --configure -a first", "packages-half-done")
    versions = sorted({str(each.driver_version) for each in found if packages.shares_the_version(each)})
    if len(versions) > 1:
        words = f"packages of several drivers are mixed ({', '.join(versions)}): bring them to one version first"
        return Refusal(words, "packages-mixed")
    return None


def _inconsistent(host: Host, now: Present) -> Refusal | None:
    """Why this host contradicts itself, so that holding it would keep a fault."""
    wrong = driver_truth.contradictions(now, driver_truth.future(host, {}))
    if not wrong:
        return None
    return Refusal(
        f"{wrong[0]}: mend that first (holdfast lock show), then sudo holdfast lock write", "driver-mismatch"
    )
