"""What dpkg knows of the driver's packages, read-only: which there are, their versions, holds and half-done states.

Which packages are the driver is data (`agent/data/driver_packages.json`), matched against *installed* packages by
source and name, never given to apt as a glob: a glob also catches the kernel flavour called nvidia, the container
toolkit and the CUDA toolkits.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from agent.errors import CommandFailed, FileTrouble, InternalError
from agent.host import Host, mounts
from agent.model import Json

STATUS = "/var/lib/dpkg/status"
UPDATES = "/var/lib/dpkg/updates"
"""Where dpkg keeps what it has done and not yet written into its status file."""
LOCKS = ("/var/lib/dpkg/lock-frontend", "/var/lib/dpkg/lock")
QUERY_S = 20.0
_FORMAT = (
    "${db:Status-Abbrev}\\t${Package}\\t${Architecture}\\t${source:Package}\\t${Version}\\t${binary:Summary}"
    "\\t${Section}\\n"
)
_DATA = Path(__file__).resolve().parents[1] / "data" / "driver_packages.json"
_DRIVER_VERSION = re.compile(r"(?:\d+:)?(\d{3}\.\d{1,4}(?:\.\d{1,4})?)(?=[-+~]|$)")
_TRANSITIONAL = re.compile(r"\b(?:transitional|dummy)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Package:
    """One package that dpkg knows. wanted, state: the letters of dpkg-query's Status-Abbrev ("h", "i").

    transitional: it holds nothing and only depends on its successor.
    """

    name: str
    architecture: str
    source: str
    version: str
    wanted: str
    state: str
    transitional: bool = False

    @property
    def key(self) -> str:
        """What the record of our holds calls it: NAME:ARCHITECTURE, "all" included."""
        return f"{self.name}:{self.architecture}"

    @property
    def held(self) -> bool:
        """Whether dpkg's selection is hold."""
        return self.wanted == "h"

    @property
    def installed(self) -> bool:
        """Whether it is wholly there."""
        return self.state == "i"

    @property
    def half_done(self) -> bool:
        """Whether an installation stopped half-way: half-installed, unpacked, half-configured, waiting for triggers."""
        return self.state in "HUFWt"

    @property
    def driver_version(self) -> str | None:
        """The driver's version within the package's: 550.54.15 of 550.54.15-0ubuntu2; None where it has none."""
        matched = _DRIVER_VERSION.match(self.version)
        return matched[1] if matched else None


@dataclass(frozen=True, slots=True)
class Transaction:
    """Someone changes packages now. `pid` is 0 where only dpkg's unfinished notes say so."""

    pid: int
    command: str
    words: str


def installed(host: Host) -> tuple[Package, ...]:
    """Every package that is installed or half so. Raises CommandFailed where dpkg cannot be asked."""
    answer = host.run(["dpkg-query", "--show", f"--showformat={_FORMAT}"], timeout_s=QUERY_S, limit=16 << 20)
    if answer.rc != 0 or answer.truncated:
        reason = answer.stderr.strip().splitlines()
        raise CommandFailed(f"dpkg-query: {reason[-1] if reason else f'status {answer.rc}'}", where="dpkg-query")
    found = []
    for line in answer.stdout.splitlines():
        fields = line.split("\t", 6)
        if len(fields) >= 6 and len(fields[0]) >= 2 and fields[0][1] not in "nc":
            status, name, architecture, source, version, summary, section = (*fields, "")[:7]
            empty = is_transitional(summary, section)
            found.append(Package(name, architecture, source, version, status[0], status[1], empty))
    return tuple(found)


def is_transitional(summary: str, section: str) -> bool:
    """Whether a package only leads to its successor. Pure.

    Ubuntu's dummies of the driver keep the description of what they were; only their section says what they are now.
    """
    return _TRANSITIONAL.search(summary) is not None or section.rpartition("/")[2] == "oldlibs"


def is_driver(name: str, source: str) -> bool:
    """Whether a package with this name and source is a part of the NVIDIA driver. Pure."""
    never, sources, names, _ = _patterns()
    if never.fullmatch(name):
        return False
    return sources.fullmatch(source) is not None or names.fullmatch(name) is not None


def is_never_ours(name: str) -> bool:
    """Whether a name belongs to what is never held: NVIDIA's kernel flavour, container and CUDA toolkits. Pure."""
    return _patterns()[0].fullmatch(name) is not None


def shares_the_version(package: Package) -> bool:
    """Whether this part of the driver must have the same version as all the others. Pure."""
    *_, apart = _patterns()
    return package.driver_version is not None and not package.transitional and not apart.fullmatch(package.name)


def driver_packages(packages: Sequence[Package]) -> tuple[Package, ...]:
    """Those that are the driver."""
    return tuple(package for package in packages if is_driver(package.name, package.source))


def transaction(host: Host) -> Transaction | None:
    """Who changes packages now, None when nobody does. Raises FileTrouble where that cannot be read.

    The kernel lists who holds a lock (proc_locks(5)); nothing is locked or opened here.
    """
    locks = {str(host.files.stat(path).inode): path for path in LOCKS if host.files.exists(path)}
    for line in host.files.read_text("/proc/locks", 4 << 20).splitlines() if locks else ():
        words = line.split()
        # "1: POSIX  ADVISORY  WRITE 1234 fe:00:131077 0 EOF"; a waiter has "->" in the second place
        if len(words) < 6 or words[1] != "POSIX" or words[5].count(":") != 2:
            continue
        major, minor, inode = words[5].split(":")
        if inode in locks and _same_device(host, locks[inode], major, minor):
            pid = int(words[4]) if words[4].isdecimal() else 0
            command = _command(host, pid)
            return Transaction(pid, command, f"{command or 'a program'} (pid {pid}) is changing packages")
    if host.files.exists(UPDATES) and any(name.isdecimal() for name in host.files.listdir(UPDATES)):
        return Transaction(0, "dpkg", "dpkg was interrupted: sudo dpkg --configure -a")
    return None


def stamp(host: Host) -> str:
    """What changes whenever dpkg has changed anything: inode, size and time of its status file. Raises FileTrouble."""
    seen = host.files.stat(STATUS)
    return f"{seen.inode}:{seen.size}:{seen.mtime!r}"


def _same_device(host: Host, path: str, major: str, minor: str) -> bool:
    """Whether a lock on this device (hexadecimal, as /proc/locks has it) can be one on the path; yes when unknown."""
    known = mounts.device(host, path)
    try:
        return known in (None, f"{int(major, 16)}:{int(minor, 16)}")
    except ValueError:
        return False


def _command(host: Host, pid: int) -> str:
    try:
        return host.files.read_text(f"/proc/{pid}/comm").strip() if pid > 0 else ""
    except FileTrouble:
        return ""


@cache
def _patterns() -> tuple[re.Pattern[str], re.Pattern[str], re.Pattern[str], re.Pattern[str]]:
    """Never, sources, names, apart. Raises InternalError when the shipped file is wrong."""
    try:
        document: Mapping[str, Json] = json.loads(_DATA.read_text(encoding="utf-8"))
        lists = (document["never"], document["sources"], document["names"], document["apart"]["names"])
        never, sources, names, rest = (re.compile("|".join(f"(?:{each})" for each in part)) for part in lists)
    except (OSError, ValueError, KeyError, TypeError, re.error) as error:
        raise InternalError(f"agent/data/driver_packages.json: {error}") from error
    return never, sources, names, rest
