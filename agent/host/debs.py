"""What a package says of itself: one that is installed, and one that lies in a file and is about to be.

A package's name and version do not say which driver it brings. Ubuntu's `nvidia-driver-550-server 550.163.01` is empty
and leads to another branch, and `linux-modules-nvidia-550-server-6.8.0-31-generic` carries the kernel's version: there
the dependency on nvidia-kernel-common says which driver its modules were built from.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from agent.errors import CommandFailed
from agent.host import Host
from agent.host.packages import QUERY_S, Package, is_transitional

DEB_S = 5.0
"""How long dpkg-deb may take; it reads the first few kilobytes of a file."""
_FORMAT = (
    "${db:Status-Abbrev}\\t${Package}\\t${Architecture}\\t${source:Package}\\t${Version}\\t${Depends}\\t"
    "${binary:Summary}\\t${Section}\\n"
)
_FIELDS = ("Package", "Version", "Architecture", "Source", "Depends", "Description", "Section")
_PER_KERNEL = re.compile(r"linux-(?:modules|objects|signatures)-nvidia-\d{3}[^/]*")
_BUILT_FROM = re.compile(r"\bnvidia-kernel-common(?:-\S+)? \([>=]= (?:\d+:)?(\d{3}\.\d{1,4}(?:\.\d{1,4})?)")
_LEADS_TO = re.compile(r"(?:^|, )([a-z0-9][a-z0-9+.-]+)")


@dataclass(frozen=True, slots=True)
class Described:
    """A package with its dependencies, as one line of text."""

    package: Package
    depends: str = ""

    @property
    def empty(self) -> bool:
        """Whether it holds nothing and only leads to its successor."""
        return self.package.transitional

    @property
    def driver_version(self) -> str | None:
        """The driver that it brings; None for none, and for a per-kernel package that does not say."""
        if self.empty:
            return None
        if _PER_KERNEL.fullmatch(self.package.name):
            built_from = _BUILT_FROM.search(self.depends)
            return built_from[1] if built_from else None
        return self.package.driver_version

    @property
    def leads_to(self) -> str:
        """The first package of NVIDIA's that an empty one depends on, "" for none."""
        names = _LEADS_TO.findall(self.depends) if self.empty else ()
        return next((name for name in names if "nvidia" in name), "")


def installed(host: Host) -> dict[tuple[str, str], Described]:
    """Every package that is installed or half so, by name and architecture. Raises CommandFailed."""
    answer = host.run(["dpkg-query", "--show", f"--showformat={_FORMAT}"], timeout_s=QUERY_S, limit=32 << 20)
    if answer.rc != 0 or answer.truncated:
        reason = answer.stderr.strip().splitlines()
        raise CommandFailed(f"dpkg-query: {reason[-1] if reason else f'status {answer.rc}'}", where="dpkg-query")
    found = {}
    for line in answer.stdout.splitlines():
        fields = line.split("\t", 7)
        if len(fields) == 8 and len(fields[0]) >= 2 and fields[0][1] not in "nc":
            status, name, architecture, source, version, depends, summary, section = fields
            empty = is_transitional(summary, section)
            package = Package(name, architecture, source, version, status[0], status[1], empty)
            found[name, architecture] = Described(package, depends)
    return found


def in_file(host: Host, path: str) -> Described:
    """The package in a .deb file. Raises CommandFailed when dpkg-deb cannot say."""
    answer = host.run(["dpkg-deb", "--field", path, *_FIELDS], timeout_s=DEB_S)
    fields = {}
    for line in answer.stdout.splitlines():
        name, colon, value = line.partition(":")
        if colon and not name[:1].isspace():  # an indented line goes on with a description
            fields[name] = value.strip()
    if answer.rc != 0 or not fields.get("Package") or not fields.get("Version"):
        reason = answer.stderr.strip().splitlines()
        raise CommandFailed(f"dpkg-deb {path}: {reason[-1] if reason else f'status {answer.rc}'}", where=path)
    source = fields.get("Source", "").split(" ")[0] or fields["Package"]
    empty = is_transitional(fields.get("Description", ""), fields.get("Section", ""))
    package = Package(
        fields["Package"], fields.get("Architecture", ""), source, fields["Version"], "i", "i", transitional=empty
    )
    return Described(package, fields.get("Depends", ""))
