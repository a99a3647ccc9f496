"""The saved driver: a folder for each driver and kernel with everything that puts them back, and its manifest.

`/var/lib/holdfast-runner/packages/DRIVER-KERNEL/` holds `debs/` (and `repacked/`, what no archive has any more),
`modules/` (the kernel's modules as they were linked or built here) and `manifest.json`, which is written last: a folder
without one is nothing yet. Only root writes there; the daemon may look.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from agent.errors import CommandFailed, FileTrouble
from agent.host import Host
from agent.model import Json

FOLDER = "/var/lib/holdfast-runner/packages"
MANIFEST = "manifest.json"
SET_NAME = r"^([A-Za-z0-9][A-Za-z0-9.+~_-]{0,127})?$"
"""A set's folder name, DRIVER-KERNEL; or nothing."""
SHA256SUM_S = 300.0
"""How long all checksums of a set may take: half a gigabyte from a slow disk."""
_MANIFEST_LIMIT = 4 << 20
_TOLERANCE_S = 0.001


@dataclass(frozen=True, slots=True)
class SavedFile:
    """One file of a set. file: below the set's folder. size: bytes. mtime: Unix seconds, for the cheap look.

    name, architecture, version, role, origin: of a package; origin is archive, cache or repacked. All "" for a module.
    """

    file: str
    size: int
    mtime: float
    sha256: str
    name: str = ""
    architecture: str = ""
    version: str = ""
    role: str = ""
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Missing:
    """One thing that belongs to the set and is not in it, with the reason."""

    name: str
    version: str
    why: str


@dataclass(frozen=True, slots=True)
class Trial:
    """How the trial in a scratch root ended. at: Unix seconds. took_s: how long it took, seconds."""

    proven: bool
    words: str
    at: float
    took_s: float


@dataclass(frozen=True, slots=True)
class Manifest:
    """One set. entry: what booted the kernel, in words. at: Unix seconds. tried: None before its first trial."""

    driver: str
    kernel: str
    entry: str
    at: float
    by: str
    packages: tuple[SavedFile, ...]
    modules: tuple[SavedFile, ...]
    missing: tuple[Missing, ...]
    tried: Trial | None = None

    @property
    def complete(self) -> bool:
        """Whether nothing is missing."""
        return not self.missing and bool(self.packages) and bool(self.modules)

    @property
    def files(self) -> tuple[SavedFile, ...]:
        """Every file."""
        return (*self.packages, *self.modules)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(each.size for each in self.files)


@dataclass(frozen=True, slots=True)
class Saved:
    """A set on disk."""

    folder: str
    manifest: Manifest


def folder_of(version: str, release: str) -> str:
    """Where the set of this driver and kernel lies."""
    return f"{FOLDER}/{version}-{release}"


def text(manifest: Manifest) -> str:
    """The manifest's text."""
    return json.dumps({"holdfast": 1, **asdict(manifest)}, indent=1) + "\n"


def read(host: Host, folder: str) -> Manifest:
    """A set's manifest. Raises FileTrouble: missing, or malformed when it is none."""
    path = f"{folder}/{MANIFEST}"
    said = host.files.read_text(path, _MANIFEST_LIMIT)
    try:
        found: Mapping[str, Json] = json.loads(said)
        tried = found["tried"]
        return Manifest(
            driver=str(found["driver"]),
            kernel=str(found["kernel"]),
            entry=str(found["entry"]),
            at=float(found["at"]),
            by=str(found["by"]),
            packages=tuple(_file(each) for each in found["packages"]),
            modules=tuple(_file(each) for each in found["modules"]),
            missing=tuple(Missing(**each) for each in found["missing"]),
            tried=None if tried is None else Trial(**tried),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise FileTrouble(f"{path} is no manifest: {error}", kind="malformed", where=path) from error


def sets(host: Host) -> tuple[Saved, ...]:
    """Every set with a manifest that can be read, newest first. Raises FileTrouble where the folder cannot be read."""
    if not host.files.exists(FOLDER):
        return ()
    found = []
    for name in host.files.listdir(FOLDER):
        try:
            found.append(Saved(f"{FOLDER}/{name}", read(host, f"{FOLDER}/{name}")))
        except FileTrouble as trouble:
            if trouble.kind == "denied":
                raise
    return tuple(sorted(found, key=lambda each: each.manifest.at, reverse=True))


def for_driver(found: Sequence[Saved], version: str) -> Saved | None:
    """The set that puts this driver back: the newest complete one of that version, else the newest of it. Pure."""
    fitting = [each for each in found if each.manifest.driver == version]
    return next((each for each in fitting if each.manifest.complete), next(iter(fitting), None))


def named(found: Sequence[Saved], name: str) -> Saved | None:
    """The set whose folder is called so. Pure."""
    return next((each for each in found if each.folder == f"{FOLDER}/{name}"), None)


def changed(host: Host, saved: Saved) -> tuple[str, ...]:
    """Every file of a set that is not as it was saved, in words, by size and time alone: cheap."""
    wrong = []
    for each in saved.manifest.files:
        try:
            seen = host.files.stat(f"{saved.folder}/{each.file}")
        except FileTrouble as trouble:
            wrong.append(f"{each.file} is gone" if trouble.kind == "missing" else trouble.message)
            continue
        if seen.is_link or seen.is_dir or seen.size != each.size or abs(seen.mtime - each.mtime) > _TOLERANCE_S:
            wrong.append(f"{each.file} is not as it was saved")
    return tuple(wrong)


def corrupted(host: Host, saved: Saved) -> tuple[str, ...]:
    """Every file of a set whose checksum is not the saved one, in words. Reads all of it. Raises CommandFailed."""
    found = digests(host, saved.folder, [each.file for each in saved.manifest.files])
    return tuple(
        f"{each.file} is gone" if each.file not in found else f"{each.file} is not what was saved (checksum)"
        for each in saved.manifest.files
        if found.get(each.file) != each.sha256
    )


def digests(host: Host, folder: str, files: Iterable[str]) -> dict[str, str]:
    """The SHA-256 of files below a folder, those that can be read. Raises CommandFailed where none can be made."""
    names = sorted(files)
    if not names:
        return {}
    answer = host.run(["sha256sum", "--zero", "--", *names], timeout_s=SHA256SUM_S, cwd=folder)
    if answer.rc not in (0, 1) or answer.truncated:
        raise CommandFailed(f"sha256sum ended with status {answer.rc}", where=folder)
    lines = (line.partition("  ") for line in answer.stdout.split("\0"))
    return {name: digest for digest, _, name in lines if name}


def tried(manifest: Manifest, trial: Trial) -> Manifest:
    """The manifest with the outcome of a trial."""
    return replace(manifest, tried=trial)


def _file(said: Any) -> SavedFile:
    return SavedFile(**{**said, "size": int(said["size"]), "mtime": float(said["mtime"])})
