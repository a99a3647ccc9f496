"""How a saved driver is put back: which of its packages, with which commands, and what that would take away.

The same words serve the repair and the trial in a scratch root. apt-get is given the saved files by name and a
configuration of its own without sources, so it can neither fetch nor choose anything else.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.errors import CommandFailed, HostError
from agent.host import Host, driver, driver_set, kernel_modules, packages, saved_driver
from agent.host.driver_set import Known
from agent.host.saved_driver import Manifest, Saved, SavedFile

APT_CONFIGURATION = Path(__file__).resolve().parents[1] / "data" / "apt-offline.conf"
SIMULATE_S = 60.0
INSTALL_S = 1800.0
"""DKMS builds the modules in here."""
_REMOVES = re.compile(r"^Remv (?P<name>[a-z0-9][a-z0-9.+-]*)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Restoration:
    """What putting back comes to. paths: the packages' files. copy: makes the modules as they were saved, where linking
    did not. reasons: what is not as saved now; () when nothing has to be done.
    """

    paths: tuple[str, ...]
    simulate: tuple[str, ...]
    install: tuple[str, ...]
    copy: tuple[str, ...]
    reasons: tuple[str, ...]


def restoration(host: Host, saved: Saved) -> Restoration:
    """The commands, from what is installed now. Raises HostError."""
    known = driver_set.installed(host)
    paths = tuple(f"{saved.folder}/{each.file}" for each in chosen(host, saved.manifest, known))
    return Restoration(
        paths=paths,
        simulate=_apt_get("--simulate", paths),
        install=_apt_get("--yes", paths),
        copy=(
            "cp", "--archive", "--no-preserve=ownership", "--no-target-directory", "--",
            f"{saved.folder}/modules", f"/lib/modules/{saved.manifest.kernel}",
        ),
        reasons=amiss(host, saved.manifest, known),
    )  # fmt: skip


def chosen(host: Host, manifest: Manifest, known: Sequence[Known]) -> tuple[SavedFile, ...]:
    """The saved packages that must be given to apt-get. Raises FileTrouble."""
    versions = {(each.name, each.architecture): each.version for each in known}
    release = manifest.kernel
    whole = host.files.exists(f"/boot/vmlinuz-{release}") and host.files.exists(f"/lib/modules/{release}/modules.dep")

    def needed(each: SavedFile) -> bool:
        there = versions.get((each.name, each.architecture))
        if each.role == "support":
            return there is None
        exact = there == each.version
        return each.role == "driver" or not exact or (each.role == "kernel" and not whole)

    return tuple(each for each in manifest.packages if needed(each))


def amiss(host: Host, manifest: Manifest, known: Sequence[Known]) -> tuple[str, ...]:
    """What of the saved driver is not there as it was saved, in words; () when all is. Raises HostError."""
    versions = {(each.name, each.architecture): each.version for each in known}
    found = [
        f"{each.name} is {versions.get((each.name, each.architecture)) or 'not installed'}, saved was {each.version}"
        for each in manifest.packages
        if each.role in ("driver", "kernel") and versions.get((each.name, each.architecture)) != each.version
    ]
    return (*found, *not_back(host, manifest))


def not_back(host: Host, manifest: Manifest) -> tuple[str, ...]:
    """What of the driver's files is not as saved: the kernel's module and the libraries. Raises HostError."""
    found = []
    coming = kernel_modules.kernel_driver(host, manifest.kernel)
    if coming.version != manifest.driver:
        why = coming.problem or coming.absent or f"it would load {coming.version}"
        found.append(f"kernel {manifest.kernel} has no module of driver {manifest.driver}: {why}")
    for library in (driver.NVML_LIBRARY, driver.CUDA_LIBRARY):
        seen = driver.library_version(host, library)
        if seen != manifest.driver:
            found.append(f"{library} on disk is {seen or 'missing'}")
    return tuple(found)


def modules_differ(host: Host, manifest: Manifest) -> bool:
    """Whether a module of the kernel is not the one that was saved. Raises CommandFailed."""
    root = f"/lib/modules/{manifest.kernel}"
    wanted = {each.file.removeprefix("modules/"): each.sha256 for each in manifest.modules}
    if not host.files.exists(root):
        return True
    return saved_driver.digests(host, root, wanted) != wanted


def depmod(release: str) -> tuple[str, ...]:
    """What makes modprobe see the modules."""
    return ("depmod", "-a", release)


def would_remove(host: Host, simulation: Sequence[str], manifest: Manifest, known: Sequence[Known]) -> tuple[str, ...]:
    """Packages outside the driver and its kernel that putting back would remove.

    Raises CommandFailed, with apt's own words, where it cannot be done at all.
    """
    answer = host.run(simulation, timeout_s=SIMULATE_S)
    if answer.rc != 0:
        said = [line.strip() for line in (*answer.stdout.splitlines(), *answer.stderr.splitlines())]
        told = [line for line in said if line.startswith("E:") or "Depends:" in line or "Conflicts:" in line]
        words = "; ".join(told[:4]) or f"status {answer.rc}"
        raise CommandFailed(f"apt-get cannot put it back from what was saved: {words}", where="apt-get")
    sources = {each.name: each.source for each in known}
    removed = dict.fromkeys(match["name"] for match in _REMOVES.finditer(answer.stdout))
    own = re.compile(rf"linux-(?:image|modules)-(?:[a-z]+-)?{re.escape(manifest.kernel)}")
    return tuple(
        name for name in removed if not packages.is_driver(name, sources.get(name, "")) and not own.fullmatch(name)
    )


def back_or_why(host: Host, manifest: Manifest) -> str:
    """Why the saved driver is not back, "" when it is."""
    try:
        return "; ".join(not_back(host, manifest))
    except HostError as error:
        return error.message


def _apt_get(how: str, paths: Sequence[str]) -> tuple[str, ...]:
    """The command. Where dependencies are broken already apt-get does nothing without --fix-broken, not even mend them;
    what that would remove is judged as all else is.
    """
    return (
        "env", f"APT_CONFIG={APT_CONFIGURATION}", "DEBIAN_FRONTEND=noninteractive", "NEEDRESTART_SUSPEND=1",
        "apt-get", "install", how, "--quiet", "--reinstall", "--fix-broken", "--allow-downgrades",
        "--allow-change-held-packages", "--option", "DPkg::Lock::Timeout=60", *paths,
    )  # fmt: skip
