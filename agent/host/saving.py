"""Where each file of a set comes from: the set itself, apt's cache, an archive, dpkg-repack; and the manifest.

An archive's copy is taken while it has one, because it drops old versions without a word. What is nowhere to be had is
named in the manifest with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from agent.errors import CommandFailed, FileTrouble, HostError
from agent.host import Host, boot, driver, driver_set, driver_truth, kernel_modules, saved_driver
from agent.host.driver_set import Wanted
from agent.host.saved_driver import Manifest, Missing, Saved, SavedFile

CACHE = "/var/cache/apt/archives"
REPACK = "/usr/bin/dpkg-repack"
OFFERS_S = 60.0
DESCRIBE_S = 120.0
_MODULES = "/lib/modules"
_STANZA = re.compile(r"\n\s*\n")
_FIELD = re.compile(r"^(Package|Version|Architecture|Filename|Size|SHA256):[ \t]*(.*)$", re.MULTILINE)

How: TypeAlias = Literal["there", "cache", "archive", "repack", "nowhere"]


@dataclass(frozen=True, slots=True)
class Offer:
    """A package file that one of apt's sources has. size: bytes. sha256: "" where the index has none."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Source:
    """Where one package's file comes from. size: bytes that it will take, at most."""

    wanted: Wanted
    how: How
    size: int
    offer: Offer | None


@dataclass(frozen=True, slots=True)
class Subject:
    """What is to be saved: the driver and the kernel that serve now. module: the path of its module file."""

    driver: str
    kernel: str
    module: str

    @property
    def folder(self) -> str:
        """Where its set lies."""
        return saved_driver.folder_of(self.driver, self.kernel)


def subject(host: Host) -> Subject | str:
    """The locked driver as it is installed for the running kernel; or why there is nothing to save, in words."""
    now = driver_truth.present(host)
    locked, release = now.lock.version, boot.running_release(host)
    if locked is None:
        return f"no driver is locked ({now.lock.detail})"
    if release is None:
        return "which kernel runs cannot be read"
    found = kernel_modules.kernel_driver(host, release)
    if found.version != locked:
        why = found.problem or found.absent or f"it is {found.version}"
        return f"the module of kernel {release} on disk is not the locked {locked}: {why}"
    for name, reading in (("libnvidia-ml", now.library), ("libcuda", now.cuda)):
        if reading.version not in (None, locked):
            return f"{name} on disk is {reading.version}, locked is {locked}"
    return Subject(locked, release, found.path)


def sources(host: Host, about: Subject) -> tuple[Source, ...]:
    """Where each package's file comes from now, in the set's order. Raises HostError."""
    wanted = driver_set.wanted(driver_set.installed(host), about.kernel)
    offers = offered(host, wanted)
    known = {each.file: each.sha256 for each in _before(host, about.folder)}
    kept = _names(host, f"{about.folder}/debs")
    digests = saved_driver.digests(host, about.folder, [f"debs/{each.file}" for each in wanted if each.file in kept])
    cached, repacked = _names(host, CACHE), _names(host, f"{about.folder}/repacked")
    repack = host.files.exists(REPACK)

    def source(each: Wanted) -> Source:
        offer = offers.get(each.spec)
        expected = offer.sha256 if offer and offer.sha256 else known.get(f"debs/{each.file}")
        digest = digests.get(f"debs/{each.file}")
        if digest is not None and expected in (None, digest):
            return Source(each, "there", 0, offer)
        if each.file in cached and (offer is None or _digest(host, each.file) == offer.sha256):
            return Source(each, "cache", host.files.stat(f"{CACHE}/{each.file}").size, offer)
        if offer is not None:
            return Source(each, "archive", offer.size, offer)
        if each.file in repacked:
            return Source(each, "there", 0, None)
        return Source(each, "repack" if repack else "nowhere", each.size if repack else 0, None)

    return tuple(source(each) for each in wanted)


def offered(host: Host, wanted: Sequence[Wanted]) -> dict[str, Offer]:
    """What apt's sources have of these very versions, by spec. One question for all. Raises CommandFailed."""
    if not wanted:
        return {}
    answer = host.run(["apt-cache", "show", *(each.spec for each in wanted)], timeout_s=OFFERS_S, limit=16 << 20)
    found: dict[str, Offer] = {}
    for stanza in _STANZA.split(answer.stdout):
        fields: Mapping[str, str] = dict(_FIELD.findall(stanza))
        if not fields.get("Filename"):  # what dpkg knows, and no source has
            continue
        spec = f"{fields.get('Package')}:{fields.get('Architecture')}={fields.get('Version')}"
        size = fields.get("Size", "")
        found.setdefault(spec, Offer(int(size) if size.isdigit() else 0, fields.get("SHA256", "")))
    return found


def modules(host: Host, about: Subject) -> dict[str, int]:
    """NVIDIA's modules of the kernel, relative to its folder of modules, with their sizes. Raises FileTrouble."""
    files = driver_set.module_files(host, about.kernel, about.module)
    return {name: host.files.stat(host.files.realpath(f"{_MODULES}/{about.kernel}/{name}")).size for name in files}


def modules_there(host: Host, about: Subject, names: Sequence[str]) -> bool:
    """Whether the set has these modules, each as it is installed. Raises CommandFailed."""
    ours = (
        saved_driver.digests(host, about.folder, [f"modules/{name}" for name in names]) if _there(host, about) else {}
    )
    theirs = saved_driver.digests(host, f"{_MODULES}/{about.kernel}", names)
    return bool(names) and {name.removeprefix("modules/"): digest for name, digest in ours.items()} == theirs


def manifest(host: Host, about: Subject, planned: Sequence[Source], names: Sequence[str], by: str) -> Manifest:
    """What is in the folder now, measured and named; and what is missing, with the reason. Raises HostError."""
    found: list[SavedFile] = []
    missing: list[Missing] = []
    places = {each.wanted.spec: _place(host, about.folder, each.wanted) for each in planned}
    digests = saved_driver.digests(host, about.folder, [place for place in places.values() if place])
    for source in planned:
        place = places[source.wanted.spec]
        why = _why_missing(host, about.folder, source, place, digests.get(place, ""))
        if why:
            missing.append(Missing(source.wanted.name, source.wanted.version, why))
            continue
        each, origin = source.wanted, "repacked" if place.startswith("repacked/") else str(source.how)
        if origin == "there":
            origin = next((seen.origin for seen in _before(host, about.folder) if seen.file == place), "archive")
        entry = _measured(host, about.folder, place, digests[place])
        found.append(
            SavedFile(
                place, entry[0], entry[1], digests[place], each.name, each.architecture, each.version, each.role, origin
            )
        )
    kernel_files, lost = _saved_modules(host, about, names)
    following = boot.next_boot(host)
    entry_words = f"{following.by}: {following.entry}" if following.release == about.kernel else ""
    return Manifest(
        about.driver, about.kernel, entry_words, host.clock.now().wall, by,
        tuple(found), kernel_files, (*missing, *lost),
        tried=_trial_before(host, about.folder, digests),
    )  # fmt: skip


def _saved_modules(
    host: Host, about: Subject, names: Sequence[str]
) -> tuple[tuple[SavedFile, ...], tuple[Missing, ...]]:
    theirs = saved_driver.digests(host, f"{_MODULES}/{about.kernel}", names)
    ours = saved_driver.digests(host, about.folder, [f"modules/{name}" for name in names])
    found, lost = [], []
    for name in names:
        file, digest = f"modules/{name}", theirs.get(name)
        if digest is None or ours.get(file) != digest:
            lost.append(Missing(name, about.driver, "the module could not be copied, or changed while it was"))
            continue
        size, mtime = _measured(host, about.folder, file, digest)
        found.append(SavedFile(file, size, mtime, digest))
    return tuple(found), tuple(lost)


def _why_missing(host: Host, folder: str, source: Source, place: str, digest: str) -> str:
    """Why a package's file is not in the set, "" when it is and is whole."""
    if not place:
        if source.how in ("archive", "cache"):
            return "its download failed; it was tried from where apt gets it"
        hint = "" if host.files.exists(REPACK) else "; dpkg-repack, which could make it again, is not installed"
        return f"neither {CACHE} nor any of apt's sources has this version any more{hint}"
    if source.offer and source.offer.sha256 and place.startswith("debs/"):
        return "" if digest == source.offer.sha256 else "its checksum is not the archive's"
    answer = host.run(["dpkg-deb", "--contents", f"{folder}/{place}"], timeout_s=DESCRIBE_S, limit=4096)
    return "" if answer.rc == 0 else "its file is damaged"


def _place(host: Host, folder: str, each: Wanted) -> str:
    """Where the set has this package, relative to its folder; "" where it has not."""
    return next((p for p in (f"debs/{each.file}", f"repacked/{each.file}") if host.files.exists(f"{folder}/{p}")), "")


def _measured(host: Host, folder: str, file: str, digest: str) -> tuple[int, float]:
    if not digest:
        raise FileTrouble(f"{folder}/{file} cannot be read", kind="other", where=file)
    seen = host.files.stat(f"{folder}/{file}")
    return seen.size, seen.mtime


def _before(host: Host, folder: str) -> tuple[SavedFile, ...]:
    """What the folder's manifest named, () where it has none that can be read."""
    try:
        return saved_driver.read(host, folder).packages
    except HostError:
        return ()


def _trial_before(host: Host, folder: str, digests: Mapping[str, str]) -> saved_driver.Trial | None:
    """The last trial, as long as the packages are the ones that were tried."""
    try:
        known = saved_driver.read(host, folder)
    except HostError:
        return None
    return known.tried if {each.file: each.sha256 for each in known.packages} == dict(digests) else None


def obsolete(found: Sequence[Saved], current: str, keep: int) -> tuple[Saved, ...]:
    """Sets that need not be kept: all but the current one and the newest other complete ones, `keep` in all. Pure."""
    others = [each for each in found if each.folder != current]
    kept = [each for each in others if each.manifest.complete][: max(0, keep - 1)]
    return tuple(each for each in others if each not in kept)


def locked_set(host: Host, name: str = "") -> Saved | str:
    """The set of this name, or of the locked driver; or why there is none, in words."""
    try:
        found = saved_driver.sets(host)
    except FileTrouble as trouble:
        return trouble.message
    if name:
        return saved_driver.named(found, name) or f"there is no saved set called {name}"
    lock = driver.read_lock(host)
    if lock.version is None:
        return f"no driver is locked ({lock.detail})"
    saved = saved_driver.for_driver(found, lock.version)
    if saved is None:
        return f"driver {lock.version} was never saved here (sudo holdfast run save-driver, while it is installed)"
    if not saved.manifest.complete:
        first = saved.manifest.missing[0] if saved.manifest.missing else Missing("everything", "", "it was cut off")
        return f"the saved set of {lock.version} lacks {first.name}: {first.why}"
    return saved


def _there(host: Host, about: Subject) -> bool:
    return host.files.exists(f"{about.folder}/modules")


def _names(host: Host, path: str) -> frozenset[str]:
    return frozenset(host.files.listdir(path)) if host.files.exists(path) else frozenset()


def _digest(host: Host, name: str) -> str:
    try:
        return saved_driver.digests(host, CACHE, [name]).get(name, "")
    except CommandFailed:
        return ""
