"""A small mirror of Ubuntu 24.04 as it is on a Saturday: pinned packages of its release and security pockets.

What is pinned stands in `mirror.txt`, with checksums: the kernel and the driver that `bed.kernels` installs, and what
the security pocket offers for them, a newer kernel, the transitional packages that lead from driver 550 to another
one, and updates that have nothing to do with either. So the scene stays what it was when it was written. Where the
archive has dropped a pinned version, the newest of the same kind is taken, and said.

`python mirror.py` (with this file's folder's parent on the path) pins what the archive offers now.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import re
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from llama_build import cache_root, exclusively

from bed import rootfs
from bed.errors import BedError, NotServedError, UnavailableError
from bed.host import BootedHost

PINS = Path(__file__).with_name("mirror.txt")
PLACE = "/srv/ubuntu"
"""Where a host sees the mirror: bind `Mirror.folder` there."""
POCKETS = ("noble", "noble-security")
UNRELATED = ("libssl3t64", "openssl", "tzdata")
"""Security updates that have nothing to do with the driver; by name they come before and after it."""
ROOTS = {
    "noble": (
        "linux-image-virtual", "linux-modules-nvidia-550-server-generic", "nvidia-utils-550-server",
        "libnvidia-compute-550-server", "ocl-icd-libopencl1",
    ),
    "noble-security": (
        "linux-image-virtual", "linux-modules-nvidia-550-server-generic", "nvidia-utils-550-server",
        "libnvidia-compute-550-server", "nvidia-kernel-common-550-server", *UNRELATED,
    ),
}  # fmt: skip
"""What a box with the driver has installed by name; with all they need of the kernel and the driver, a pocket.

linux-image-virtual is the kernel's metapackage without half a gigabyte of firmware for hardware that no host here has.
"""
_COMPONENTS = ("main", "restricted", "universe", "multiverse")
# Everything else that they need is in the root file system already.
_FOLLOWED = re.compile(r"(?:linux|nvidia|libnvidia)-.*")
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Pin:
    """One package of the mirror. path: below the archive's root, as its index has it."""

    pocket: str
    name: str
    version: str
    size: int
    sha256: str
    path: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


@dataclass(frozen=True)
class Mirror:
    """A finished mirror. kernel, driver: the release and the version that the security pocket leads to.

    unrelated: the versions of UNRELATED there. notes: what was taken in place of versions that the archive dropped.
    """

    folder: Path
    kernel: str
    driver: str
    unrelated: Mapping[str, str]
    notes: tuple[str, ...]

    def deb(self, name: str, pocket: str = "noble-security") -> str:
        """Where a host sees this package's file. Raises BedError when the pocket has none."""
        for stanza in _stanzas((self.folder / _index(pocket)).read_text(encoding="utf-8")):
            if stanza["Package"] == name:
                return f"{PLACE}/{stanza['Filename']}"
        raise BedError(f"{pocket} of the mirror has no {name}")


def ubuntu_mirror() -> Mirror:
    """The mirror, made when first asked for: half a gigabyte. Nobody may write into it.

    Raises NotServedError when Ubuntu's archive does not answer, BedError when it serves something else than was pinned.
    """
    text = PINS.read_bytes()
    wanted = cache_root() / "mirror" / f"noble-{hashlib.sha256(text).hexdigest()[:12]}"
    if not wanted.exists():
        with exclusively("ubuntu-mirror"):
            if not wanted.exists():
                make(pinned(text.decode("ascii")), wanted)
    return _describe(wanted)


def use(host: BootedHost, *pockets: str) -> None:
    """Let apt know the mirror's pockets and nothing else, and read their lists."""
    lines = [f"deb [trusted=yes] file:{PLACE} {pocket} main\n" for pocket in pockets]
    host.sh("rm -rf /etc/apt/sources.list /etc/apt/sources.list.d/* /var/lib/apt/lists/*_dists_*")
    host.write("/etc/apt/sources.list", "".join(lines))
    host.run("apt-get", "-q", "update", timeout=120)


def pinned(text: str) -> list[Pin]:
    """The pins of a list: pocket, name, version, bytes, SHA-256 and path on each line."""
    found = []
    for line in text.splitlines():
        if line and not line.startswith("#"):
            pocket, name, version, size, sha256, path = line.split()
            found.append(Pin(pocket, name, version, int(size), sha256, path))
    return found


def offered(pocket: str) -> list[Pin]:
    """What the archive offers now of a pocket's ROOTS and all they need of the kernel and the driver.

    Raises NotServedError when it does not answer, BedError when it no longer has one of the roots.
    """
    packages: dict[str, dict[str, str]] = {}
    providers: dict[str, str] = {}
    for component in _COMPONENTS:
        index = lzma.decompress(_open(f"dists/{pocket}/{component}/binary-amd64/Packages.xz")).decode()
        for stanza in _stanzas(index):
            name = stanza["Package"]
            if name not in packages or _newer(stanza["Version"], packages[name]["Version"]):
                packages[name] = stanza
    for name, stanza in packages.items():
        for provided in _names(stanza.get("Provides", "")):
            providers.setdefault(provided[0], name)
    waiting, taken = list(ROOTS[pocket]), dict[str, Pin]()
    while waiting:
        name = waiting.pop()
        if name in taken:
            continue
        if name not in packages:
            raise BedError(f"Ubuntu's {pocket} no longer has {name}")
        stanza = packages[name]
        taken[name] = Pin(
            pocket, name, stanza["Version"], int(stanza["Size"]), stanza["SHA256"], stanza["Filename"]
        )  # fmt: skip
        for alternatives in _names(stanza.get("Pre-Depends", ""), stanza.get("Depends", "")):
            known = [
                each if each in packages else providers[each]
                for each in alternatives
                if _FOLLOWED.fullmatch(each) and (each in packages or each in providers)
            ]
            waiting += known[:1]
    return sorted(taken.values(), key=lambda pin: pin.name)


def make(pins: Sequence[Pin], wanted: Path) -> Mirror:
    """Make a mirror in a folder of the cache. Raises as ubuntu_mirror does."""
    notes = []
    debs = {pin: fetch(pin) for pin in pins}
    for pocket in POCKETS:
        gone = [pin for pin, deb in debs.items() if deb is None and pin.pocket == pocket]
        if gone:
            current = offered(pocket)
            notes.append(f"Ubuntu's archive has dropped {', '.join(map(str, gone))}: {pocket} is what it offers now, "
                         f"{', '.join(map(str, current))}")  # fmt: skip
            debs = {pin: deb for pin, deb in debs.items() if pin.pocket != pocket}
            debs |= {pin: fetch(pin) for pin in current}
    with tempfile.TemporaryDirectory(dir=wanted.parent, prefix=".building-") as name:
        tree = Path(name) / "mirror"
        for pocket in POCKETS:
            index = []
            for pin, deb in debs.items():
                if pin.pocket == pocket:
                    if deb is None:
                        raise BedError(f"Ubuntu's archive lists {pin} and does not serve it")
                    index.append(_add(tree, pin, deb))
            _publish(tree, pocket, "\n".join(index))
        (tree / "notes.txt").write_text("".join(f"{note}\n" for note in notes), encoding="utf-8")
        tree.rename(wanted)
    return _describe(wanted)


def _add(tree: Path, pin: Pin, deb: Path) -> str:
    """Put a package into the mirror and return its stanza of the index."""
    place = tree / pin.path
    place.parent.mkdir(parents=True, exist_ok=True)
    os.link(deb, place)
    done = subprocess.run(["dpkg-deb", "--field", str(deb)], text=True, check=False, capture_output=True, timeout=60)
    if done.returncode != 0:
        raise BedError(f"{pin} is no package: {done.stderr.strip()}")
    return f"{done.stdout.strip()}\nFilename: {pin.path}\nSize: {pin.size}\nSHA256: {pin.sha256}\n"


def _publish(tree: Path, pocket: str, index: str) -> None:
    """Write a pocket's index and its Release file, with the names that Ubuntu's has."""
    listed = tree / _index(pocket)
    listed.parent.mkdir(parents=True)
    listed.write_text(index, encoding="utf-8")
    raw = listed.read_bytes()
    (tree / "dists" / pocket / "Release").write_text(
        f"Origin: Ubuntu\nLabel: Ubuntu\nSuite: {pocket}\nVersion: 24.04\nCodename: noble\n"
        "Date: Fri, 20 Nov 2026 00:00:00 UTC\nArchitectures: amd64\nComponents: main\nSHA256:\n"
        f" {hashlib.sha256(raw).hexdigest()} {len(raw)} main/binary-amd64/Packages\n",
        encoding="utf-8",
    )


def _describe(folder: Path) -> Mirror:
    text = (folder / _index("noble-security")).read_text(encoding="utf-8")
    packages = {stanza["Package"]: stanza for stanza in _stanzas(text)}
    kernel = re.search(r"linux-image-(\d\S*?)(?:,|$)", packages["linux-image-virtual"]["Depends"])
    library = "libnvidia-compute-550-server"
    while following := re.fullmatch(r"(libnvidia-compute-\S+)", packages[library].get("Depends", "")):
        library = following[1]
    driver = re.match(r"\d+\.\d+(?:\.\d+)?", packages[library]["Version"])
    if kernel is None or driver is None:
        raise BedError(f"{folder} leads to no kernel or to no driver")
    return Mirror(
        folder=folder,
        kernel=kernel[1],
        driver=driver[0],
        unrelated={name: packages[name]["Version"] for name in UNRELATED},
        notes=tuple((folder / "notes.txt").read_text(encoding="utf-8").splitlines()),
    )


def _index(pocket: str) -> str:
    return f"dists/{pocket}/main/binary-amd64/Packages"


def fetch(pin: Pin) -> Path | None:
    """The package's file, kept in the cache; None when the archive has dropped it."""
    kept = cache_root() / "mirror" / "debs" / f"{pin.sha256}.deb"
    if kept.exists():
        return kept
    kept.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with tempfile.NamedTemporaryFile(dir=kept.parent, prefix=".fetching-") as file:
        try:
            with urllib.request.urlopen(f"{_archive()}/{pin.path}", timeout=60) as answer:
                while part := answer.read(_CHUNK):
                    digest.update(part)
                    file.write(part)
        except urllib.error.HTTPError as error:
            if error.code in (404, 410):
                return None
            raise NotServedError(f"Ubuntu's archive refuses {pin}: {error}") from error
        except OSError as error:
            raise NotServedError(f"Ubuntu's archive does not answer for {pin}: {error}") from error
        if digest.hexdigest() != pin.sha256:
            raise BedError(f"Ubuntu's archive serves another file than was pinned as {pin}")
        file.flush()
        os.link(file.name, kept)
        kept.chmod(0o644)
    return kept


def _open(path: str) -> bytes:
    try:
        with urllib.request.urlopen(f"{_archive()}/{path}", timeout=60) as answer:
            body: bytes = answer.read()
    except OSError as error:
        raise NotServedError(f"Ubuntu's archive does not answer for {path}: {error}") from error
    return body


@cache
def _archive() -> str:
    try:
        return rootfs.ubuntu_archive("noble")
    except UnavailableError as error:
        raise NotServedError(str(error)) from error


def _stanzas(text: str) -> Iterator[dict[str, str]]:
    for block in text.split("\n\n"):
        fields = {}
        for line in block.splitlines():
            if line and line[0] not in " \t":
                name, _, value = line.partition(":")
                fields[name] = value.strip()
        if fields:
            yield fields


def _names(*fields: str) -> Iterator[list[str]]:
    """The names in dependency fields: for each dependency, its alternatives."""
    for field in fields:
        for clause in filter(None, field.split(",")):
            yield [alternative.split()[0].partition(":")[0] for alternative in clause.split("|")]


def _newer(left: str, right: str) -> bool:
    return subprocess.run(["dpkg", "--compare-versions", left, "gt", right], check=False).returncode == 0


def main() -> int:
    """Pin what the archive offers now."""
    comments = [line for line in PINS.read_text(encoding="ascii").splitlines() if line.startswith("#")]
    pins = [pin for pocket in POCKETS for pin in offered(pocket)]
    lines = [f"{p.pocket} {p.name} {p.version} {p.size} {p.sha256} {p.path}" for p in pins]
    PINS.write_text("".join(f"{line}\n" for line in comments + lines), encoding="ascii")
    print(f"{len(pins)} packages, {sum(pin.size for pin in pins) / 1e6:.0f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
