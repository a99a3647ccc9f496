#!/usr/bin/env python3
"""Vendor the locked libraries: fetch each wheel by its hash, unpack it, and write the bill of materials.

The lock (requirements/runtime.txt) names every library once for all supported Pythons. A library whose wheel is the
same file for every Python goes to `common`; one that differs, or that only some Pythons need, goes to `cp310` ...
`cp314`.

Runs on the build environment of script/build-deb (requirements/build.txt).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
import uuid
import zipfile
from collections import defaultdict
from dataclasses import dataclass, field
from email.parser import BytesParser
from pathlib import Path, PurePosixPath

from packaging.markers import Marker
from packaging.utils import canonicalize_name, parse_wheel_filename

MINORS = ("3.10", "3.11", "3.12", "3.13", "3.14")
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
# glibc 2.28 is older than that of every supported release (Ubuntu 22.04 has 2.35).
GLIBC_MINORS = (17, 24, 26, 27, 28)
# Libraries with compiled parts. All others must come as a wheel for any platform, or the build stops.
COMPILED = frozenset({"markupsafe", "psutil", "pydantic-core", "pyyaml"})
# Libraries that are published as source only; their wheel is built here.
SOURCE_ONLY = frozenset({"sdnotify"})
# Only these files of a .dist-info directory are of use at run time: the version, and the entry points that apscheduler
# looks up. Licences stand in debian/copyright; RECORD would list files the package does not ship.
KEPT_METADATA = frozenset({"METADATA", "entry_points.txt"})
# nvidia-ml-py installs a sample program as the top-level module `example`.
STRAY_MODULES = frozenset({"example.py"})


@dataclass(frozen=True, slots=True)
class Pin:
    """One line of the lock."""

    name: str
    version: str
    marker: Marker | None
    hashes: frozenset[str]

    def wanted_by(self, minor: str, machine: str) -> bool:
        """Tell whether this Python on this machine needs the library."""
        environment = {
            "python_version": minor,
            "python_full_version": f"{minor}.0",
            "sys_platform": "linux",
            "platform_system": "Linux",
            "platform_machine": machine,
            "platform_python_implementation": "CPython",
            "implementation_name": "cpython",
            "os_name": "posix",
            "extra": "",
        }
        return self.marker is None or self.marker.evaluate(environment)

    def requirement(self) -> str:
        """Render the line for pip, without the marker: it is decided here, for the Python that is built for."""
        return " ".join(
            [f"{self.name}=={self.version}", *(f"--hash=sha256:{digest}" for digest in sorted(self.hashes))]
        )


@dataclass(slots=True)
class Vendored:
    """A library as it will be shipped: its files, and where each goes (`common`, `cp310`, ...)."""

    pin: Pin
    wheels: dict[str, Path] = field(default_factory=dict)
    source: Path | None = None


def read_lock(text: str) -> list[Pin]:
    """Parse a hashed requirements file; any line that is not understood is an error."""
    pins = []
    for raw in re.sub(r"\\\n", " ", text).splitlines():
        line = raw.split("#", 1)[0].strip()
        if not line:
            continue
        match = re.fullmatch(r"([A-Za-z0-9._-]+)==(\S+)\s*(?:;\s*(.*?))?((?:\s+--hash=sha256:[0-9a-f]{64})+)", line)
        if match is None:
            raise SystemExit(f"vendor: cannot read this line of the lock: {line[:120]}")
        name, version, marker, hashes = match.groups()
        digests = frozenset(re.findall(r"sha256:([0-9a-f]{64})", hashes))
        pins.append(Pin(canonicalize_name(name), version, Marker(marker) if marker else None, digests))
    return pins


def sha256(path: Path) -> str:
    """Return the file's SHA-256 in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def pip(*arguments: str | Path) -> bool:
    """Run this environment's pip; return whether it succeeded."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *map(str, arguments)]
    return subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode == 0


def fetch(pins: list[Pin], cache: Path, kind: str, options: list[str]) -> Path:
    """Have pip put the pinned files into a directory, from the cache when it has them, and return that directory.

    pip compares every file with the lock's hashes, also one that comes from the cache.
    """
    store = cache / "files"
    store.mkdir(parents=True, exist_ok=True)
    target = cache / "picked" / kind
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    wanted = target / "requirements.txt"
    wanted.write_text("".join(f"{pin.requirement()}\n" for pin in pins))
    base: list[str | Path] = ["download", "--no-deps", "--require-hashes", *options, "--requirement", wanted]
    offline = subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "--quiet",
            *map(str, base),
            "--no-index",
            "--find-links",
            store,
            "--dest",
            target,
        ],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    if offline.returncode != 0:
        if not pip(*base, "--dest", target):
            raise SystemExit(f"vendor: could not fetch the libraries ({kind})")
        for path in target.iterdir():
            if path != wanted:
                shutil.copy2(path, store / path.name)
    wanted.unlink()
    return target


def fetch_all(pins: list[Pin], cache: Path, machine: str) -> list[Vendored]:
    """Fetch every pinned library for every supported Python."""
    by_name = {pin.name: Vendored(pin) for pin in pins}
    pure = [pin for pin in pins if pin.name not in COMPILED | SOURCE_ONLY]
    any_platform = [
        "--only-binary=:all:",
        "--python-version=3.10",
        "--implementation=py",
        "--abi=none",
        "--platform=any",
    ]
    found = fetch(pure, cache, "pure", any_platform)
    for path in found.iterdir():
        name = canonicalize_name(parse_wheel_filename(path.name)[0])
        by_name[name].wheels.update(dict.fromkeys(MINORS, path))

    platforms = [f"--platform=manylinux_2_{minor}_{machine}" for minor in GLIBC_MINORS]
    platforms.append(f"--platform=manylinux2014_{machine}")
    for minor in MINORS:
        options = ["--only-binary=:all:", f"--python-version={minor}", "--implementation=cp", *platforms]
        compiled = [pin for pin in pins if pin.name in COMPILED]
        for path in fetch(compiled, cache, f"{machine}-{minor}", options).iterdir():
            by_name[canonicalize_name(parse_wheel_filename(path.name)[0])].wheels[minor] = path

    sources = fetch(
        [pin for pin in pins if pin.name in SOURCE_ONLY], cache, "source", ["--no-binary=:all:", "--no-build-isolation"]
    )
    built = cache / "picked" / "built"
    shutil.rmtree(built, ignore_errors=True)
    for source in sources.iterdir():
        if not pip("wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", built, source):
            raise SystemExit(f"vendor: could not build {source.name}")
    for name in SOURCE_ONLY:
        wheel = next(built.glob(f"{name}-*-none-any.whl"), None)
        if wheel is None:
            raise SystemExit(f"vendor: {name} did not build a wheel for any platform")
        by_name[name].wheels.update(dict.fromkeys(MINORS, wheel))
        by_name[name].source = next(sources.glob(f"{name}-*"))

    for library in by_name.values():
        check_complete(library, machine)
    return sorted(by_name.values(), key=lambda library: library.pin.name)


def check_complete(library: Vendored, machine: str) -> None:
    """Drop what a Python does not need, and stop when one misses what it needs or a file is not the locked one."""
    for minor in MINORS:
        if not library.pin.wanted_by(minor, machine):
            library.wheels.pop(minor, None)
        elif minor not in library.wheels:
            raise SystemExit(f"vendor: no wheel of {library.pin.name} for Python {minor}")
    locked = [library.source] if library.source else list(library.wheels.values())
    for path in locked:
        if sha256(path) not in library.pin.hashes:
            raise SystemExit(f"vendor: {path.name} is not the file that the lock names")


def placements(library: Vendored) -> dict[str, Path]:
    """Return directory name → wheel: `common` when one file serves every Python, else one directory per Python."""
    files = set(library.wheels.values())
    if len({path.name for path in files}) == 1 and set(library.wheels) == set(MINORS):
        return {"common": files.pop()}
    return {f"cp{minor.replace('.', '')}": path for minor, path in library.wheels.items()}


def unpack(wheel: Path, target: Path) -> None:
    """Unpack a wheel's library files; scripts, headers, notes, licences and installer records stay behind."""
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.infolist():
            path = PurePosixPath(entry.filename)
            if entry.is_dir() or ".." in path.parts or path.is_absolute():
                continue
            if path.parts[0].endswith(".data") or entry.filename in STRAY_MODULES:
                continue
            # Notes for editors and licences of parts, whose text debian/copyright has.
            if any(part.startswith(".") for part in path.parts) or path.name.startswith("LICENSE"):
                continue
            if path.parts[0].endswith(".dist-info") and (len(path.parts) != 2 or path.name not in KEPT_METADATA):
                continue
            destination = target / path
            destination.parent.mkdir(parents=True, exist_ok=True)
            destination.write_bytes(archive.read(entry))


def trust_system_certificates(vendor: Path) -> None:
    """Point certifi at the system's store, so that a host's own authorities count and a stale bundle never does."""
    bundle = vendor / "common" / "certifi" / "cacert.pem"
    bundle.unlink()
    bundle.symlink_to("/etc/ssl/certs/ca-certificates.crt")


def metadata(wheel: Path) -> dict[str, str]:
    """Return the fields of a wheel's METADATA that the bill of materials shows."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(entry for entry in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", entry))
        message = BytesParser().parsebytes(archive.read(name))
    return {key.lower(): value for key, value in message.items() if key in {"Summary", "License-Expression"}}


def embedded_components(wheel: Path) -> list[dict[str, object]]:
    """Return what a wheel's own bill of materials lists (pydantic-core: the Rust crates that are linked in)."""
    components: list[dict[str, object]] = []
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            if re.fullmatch(r"[^/]+\.dist-info/sboms/.*\.json", name):
                found = json.loads(archive.read(name)).get("components", [])
                components += [
                    {key: item[key] for key in ("type", "name", "version", "purl", "licenses") if key in item}
                    for item in found
                ]
    return sorted(components, key=lambda item: (str(item.get("name")), str(item.get("version"))))


def licence_of(name: str, copyright_text: str) -> str:
    """Return the licence that debian/copyright states for a vendored library."""
    for stanza in copyright_text.split("\n\n"):
        if re.search(
            rf"^\s+vendor/\*/{re.escape(name.replace('-', '_'))}-\*\.dist-info/\*$",
            stanza,
            re.MULTILINE | re.IGNORECASE,
        ):
            found = re.search(r"^License: (.+)$", stanza, re.MULTILINE)
            if found:
                return found[1]
    raise SystemExit(f"vendor: debian/copyright has no entry for {name}")


def bill_of_materials(
    libraries: list[Vendored], version: str, architecture: str, copyright_text: str
) -> dict[str, object]:
    """Render the bill of materials (CycloneDX 1.5): the same input always gives the same bytes."""
    components: list[dict[str, object]] = []
    for library in libraries:
        pin = library.pin
        placed = placements(library)
        wheel = next(iter(placed.values()))
        purl = f"pkg:pypi/{pin.name}@{pin.version}"
        shipped: dict[str, list[str]] = defaultdict(list)
        for directory, path in placed.items():
            shipped[(library.source or path).name].append(directory)
        digests = {
            path.name: sha256(path) for path in [*placed.values(), *([library.source] if library.source else [])]
        }
        component: dict[str, object] = {
            "type": "library",
            "bom-ref": purl,
            "name": pin.name,
            "version": pin.version,
            "purl": purl,
            "licenses": [{"license": {"name": licence_of(pin.name, copyright_text)}}],
            "properties": [
                {"name": "holdfast:file", "value": f"{name} sha256:{digests[name]} in {','.join(sorted(directories))}"}
                for name, directories in sorted(shipped.items())
            ],
        }
        summary = metadata(wheel).get("summary")
        if summary:
            component["description"] = summary
        if len(shipped) == 1:
            component["hashes"] = [{"alg": "SHA-256", "content": digests[next(iter(shipped))]}]
        parts = embedded_components(wheel)
        if parts:
            component["components"] = parts
        components.append(component)
    serial = hashlib.sha256(json.dumps([version, architecture, components], sort_keys=True).encode()).digest()
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{uuid.UUID(bytes=serial[:16], version=4)}",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "name": "holdfast",
                "version": version,
                "purl": f"pkg:deb/holdfast@{version}?arch={architecture}",
                "licenses": [{"license": {"id": "Apache-2.0"}}],
            }
        },
        "components": components,
    }


def main() -> None:
    """Fill a directory with the vendored libraries of one architecture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", choices=MACHINES, required=True)
    parser.add_argument("--lock", type=Path, required=True)
    parser.add_argument(
        "--copyright", type=Path, required=True, help="debian/copyright, which must have an entry per library"
    )
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--version", required=True)
    parser.add_argument("--target", type=Path, required=True, help="becomes vendor/{common,cp310,...}")
    parser.add_argument("--sbom", type=Path, required=True)
    arguments = parser.parse_args()

    libraries = fetch_all(read_lock(arguments.lock.read_text()), arguments.cache, MACHINES[arguments.arch])
    for library in libraries:
        for directory, wheel in placements(library).items():
            unpack(wheel, arguments.target / directory)
    trust_system_certificates(arguments.target)
    bill = bill_of_materials(libraries, arguments.version, arguments.arch, arguments.copyright.read_text())
    arguments.sbom.write_text(json.dumps(bill, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
