"""Whether the packages of the NVIDIA driver are one version, whole, and what is on disk.

WARNING: packages of several versions are mixed (a partial hold, an upgrade that stopped), one was left half installed,
or the library on disk is another version than its package (a .run installer over packages). Holds are shown, never
changed. What to do: finish what stopped with `sudo dpkg --configure -a`, then bring all of them to the locked version.
"""

from __future__ import annotations

from collections.abc import Iterable

from agent.host import Host, driver, driver_truth, packages
from agent.model import Judgement, Observation, Observed, Status
from agent.plugin import Check, NoParameters, Target


def observe(host: Host, target: Target, before: Observed | None) -> Iterable[Observation]:
    """The installed packages that are the driver; asked again only when dpkg has changed anything."""
    if not host.files.exists(packages.STATUS):
        yield Observation("dpkg", False)
        return
    stamp = packages.stamp(host)
    change = packages.transaction(host)
    yield Observation("dpkg", True)
    yield Observation("stamp", stamp)
    yield Observation("change", change.words if change is not None else "")
    truth = driver_truth.present(host)
    yield Observation("library", truth.library.version)
    yield Observation("locked", truth.lock.version)
    if before is not None and before.value("stamp") == stamp and before.value("packages") is not None:
        yield Observation("packages", before.value("packages"))
        return
    found = packages.driver_packages(packages.installed(host))
    yield Observation(
        "packages",
        [
            {
                "name": package.name,
                "architecture": package.architecture,
                "source": package.source,
                "version": package.version,
                "driver": package.driver_version if packages.shares_the_version(package) else None,
                "held": package.held,
                "half_done": package.half_done,
            }
            for package in found
            if package.installed or package.half_done
        ],
    )


def judge(now: Observed, before: Observed | None, params: NoParameters) -> Judgement:
    """Half-done first, then mixed, then files that are not the packages'."""
    if not now.value("dpkg"):
        return Judgement(Status.OK, "this host has no dpkg")
    found = now.value("packages") or []
    if not found:
        return Judgement(Status.OK, "no package of the NVIDIA driver is installed")
    if now.value("change"):
        return Judgement(Status.UNKNOWN, f"{now.value('change')}: the packages are not settled")
    half = [package["name"] for package in found if package["half_done"]]
    if half:
        return Judgement(Status.WARNING, f"{_some(half)} stopped half-way (sudo dpkg --configure -a)")
    versions: dict[str, list[str]] = {}
    for package in found:
        if package["driver"]:
            versions.setdefault(package["driver"], []).append(package["name"])
    if len(versions) > 1:
        parts = [f"{version} ({_some(versions[version])})" for version in sorted(versions)]
        return Judgement(Status.WARNING, f"packages of several drivers are mixed: {', '.join(parts)}")
    held = sum(1 for package in found if package["held"])
    library = now.value("library")
    for version in versions:
        if library not in (None, version):
            words = f"the packages are {version}, but the library on disk is {library}: something replaced it"
            return Judgement(Status.WARNING, words)
        return Judgement(Status.OK, f"{len(found)} packages of driver {version}, {held} of them held")
    return Judgement(Status.OK, f"{len(found)} packages around the driver, {held} of them held")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


CHECK = Check(
    id="driver.packages",
    scope="host",
    every_s=60.0,
    timeout_s=30.0,
    observe=observe,
    judge=judge,
    due_when_changed=(packages.STATUS, driver.LOCK_FILE),
    unsettled="change",
)
