"""What makes up the driver that serves: which installed packages, and which module files, as they are now.

The driver's own packages, those of the kernel it serves, what links or builds its modules, and what these depend on.
Read from dpkg's record of installed packages; the base system, which cannot be missing, is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from agent.errors import CommandFailed
from agent.host import Host, packages
from agent.host.packages import QUERY_S

Role: TypeAlias = Literal["driver", "kernel", "link", "support"]
"""driver: put back in any case. kernel: where it is missing. link: binutils, whose exact version Ubuntu's module needs
to come out as it was signed. support: anything that these need, put back only where it is missing altogether."""

_FORMAT = (
    "${db:Status-Abbrev}\\t${Package}\\t${Architecture}\\t${source:Package}\\t${Version}\\t${Essential}\\t${Priority}\\t"
    "${Installed-Size}\\t${Pre-Depends}, ${Depends}\\t${Provides}\\n"
)
_BASE = frozenset({"required", "important"})
_KERNEL = ("linux-image-", "linux-image-unsigned-", "linux-modules-", "linux-modules-extra-")
_PER_KERNEL = re.compile(
    r"linux-(?:modules|objects|signatures)-nvidia-(?:.*-)?(?P<release>\d+\.\d+\.\d+-\d+-[a-z0-9.-]+)$"
)
_BUILDERS = ("dkms", "gcc", "make")
_LINKERS = ("binutils",)
_MODULE_FILE = re.compile(r"nvidia[a-z0-9_-]*\.ko(?:\.(?:xz|zst|gz))?")


@dataclass(frozen=True, slots=True)
class Known:
    """One installed package with what it needs. size: bytes that it takes on disk. depends: groups of alternatives."""

    name: str
    architecture: str
    source: str
    version: str
    base: bool
    size: int
    depends: tuple[tuple[str, ...], ...]
    provides: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Wanted:
    """One package that belongs to the set, at the version that is installed. size: bytes on disk once unpacked."""

    name: str
    architecture: str
    version: str
    role: Role
    size: int

    @property
    def spec(self) -> str:
        """As apt-get takes it: NAME:ARCHITECTURE=VERSION."""
        return f"{self.name}:{self.architecture}={self.version}"

    @property
    def file(self) -> str:
        """The name that apt gives its file; a colon in the version is escaped."""
        return f"{self.name}_{self.version.replace(':', '%3a')}_{self.architecture}.deb"


def installed(host: Host) -> tuple[Known, ...]:
    """Every package that is wholly installed, with its dependencies. Raises CommandFailed."""
    answer = host.run(["dpkg-query", "--show", f"--showformat={_FORMAT}"], timeout_s=QUERY_S, limit=32 << 20)
    if answer.rc != 0 or answer.truncated:
        raise CommandFailed(f"dpkg-query ended with status {answer.rc}", where="dpkg-query")
    return tuple(parse(answer.stdout))


def parse(text: str) -> Iterable[Known]:
    """The wholly installed packages in dpkg-query's answer. Pure."""
    for line in text.splitlines():
        fields = line.split("\t")
        if len(fields) != 10 or fields[0][1:2] != "i":
            continue
        _, name, architecture, source, version, essential, priority, size, depends, provides = fields
        base = essential == "yes" or priority in _BASE
        yield Known(
            name,
            architecture,
            source,
            version,
            base,
            int(size) * 1024 if size.isdigit() else 0,
            tuple(_groups(depends)),
            tuple(word for group in _groups(provides) for word in group),
        )


def wanted(known: Sequence[Known], release: str) -> tuple[Wanted, ...]:
    """The set for the kernel of this release, by role and name. Pure."""
    drivers = [each for each in known if packages.is_driver(each.name, each.source) and _of_kernel(each, release)]
    kernel = [each for each in known if any(each.name == f"{start}{release}" for start in _KERNEL)]
    tools: list[Known] = []
    if any(each.name.startswith("linux-objects-nvidia-") for each in drivers):
        tools += [each for each in known if each.name in _LINKERS]
    if any("dkms" in each.name for each in drivers):
        tools += [each for each in known if each.name in _BUILDERS or each.name == f"linux-headers-{release}"]
    index = _Index(known)
    own = {*drivers, *kernel}
    base = index.closure(each for each in known if each.base and each not in own)
    linker = {each.source for each in tools if each.name in _LINKERS}
    needed = index.closure((*drivers, *kernel, *tools))

    def role(each: Known) -> Role | None:
        if each in drivers:
            return "driver"
        if each in kernel:
            return "kernel"
        if each.source in linker:
            return "link"
        other = packages.is_driver(each.name, each.source) or each.name.startswith(("linux-image-", "linux-modules-"))
        return None if each in base or other else "support"

    found = [(each, role(each)) for each in needed]
    kept = [Wanted(each.name, each.architecture, each.version, as_, each.size) for each, as_ in found if as_]
    return tuple(sorted(kept, key=lambda each: (_ROLES.index(each.role), each.name, each.architecture)))


_ROLES: tuple[Role, ...] = ("driver", "kernel", "link", "support")


def module_files(host: Host, release: str, path: str) -> tuple[str, ...]:
    """NVIDIA's modules beside the module file at `path`, relative to /lib/modules/RELEASE. Raises FileTrouble."""
    root = f"/lib/modules/{release}/"
    folder = path.rpartition("/")[0]
    inside = folder.removeprefix(root.rstrip("/")).lstrip("/")
    names = [name for name in host.files.listdir(folder) if _MODULE_FILE.fullmatch(name)]
    return tuple(f"{inside}/{name}" if inside else name for name in names)


def _of_kernel(package: Known, release: str) -> bool:
    """Whether a package of the driver's belongs to this kernel, or to none in particular.

    A package that leads to the newest kernel's modules belongs to this one only while they are this one's.
    """
    named = _PER_KERNEL.fullmatch(package.name)
    if named is not None:
        return package.name.endswith(f"-{release}")
    leads = [match for group in package.depends for word in group if (match := _PER_KERNEL.fullmatch(word))]
    return not leads or any(match[0].endswith(f"-{release}") for match in leads)


def _groups(text: str) -> Iterable[tuple[str, ...]]:
    """The names in a relation field, group by group, without versions and architectures."""
    for part in text.split(","):
        names = tuple(word.split("(")[0].split("[")[0].strip().split(":")[0] for word in part.split("|"))
        names = tuple(name for name in names if name)
        if names:
            yield names


class _Index:
    """Installed packages by name and by what they provide."""

    def __init__(self, known: Sequence[Known]) -> None:
        self._by_name: dict[str, list[Known]] = {}
        self._by_provided: dict[str, list[Known]] = {}
        for each in known:
            self._by_name.setdefault(each.name, []).append(each)
            for name in each.provides:
                self._by_provided.setdefault(name, []).append(each)

    def closure(self, roots: Iterable[Known]) -> Mapping[Known, None]:
        """These packages and everything installed that they need, directly or not, in a stable order."""
        found: dict[Known, None] = {}
        ahead = list(roots)
        while ahead:
            each = ahead.pop()
            if each in found:
                continue
            found[each] = None
            for group in each.depends:
                ahead += self._satisfying(group, each.architecture)
        return found

    def _satisfying(self, group: Sequence[str], architecture: str) -> list[Known]:
        """What is installed of one group of alternatives; of several architectures the same one first."""
        there = [each for name in group for each in self._by_name.get(name, ())]
        there = there or [each for name in group for each in self._by_provided.get(name, ())]
        same = [each for each in there if each.architecture in (architecture, "all")]
        return same or there
