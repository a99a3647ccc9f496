"""Which installed packages have a newer version in a security pocket, as apt's own lists say it. Never a network.

A pocket is one for security by its Release file (suite or codename `…-security`, or label Debian-Security), which apt
prints for every list it has (`apt-cache policy` without names), never by the archive's address, which a mirror changes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agent.errors import CommandFailed
from agent.host import Host

LISTS = "/var/lib/apt/lists"
"""Where apt keeps its lists: the folder changes whenever one of them does."""
QUERY_S = 30.0
"""apt builds its cache in memory where it may not write: a second or two."""
_LIMIT = 8 << 20
_VERSION = re.compile(r"^ (\*\*\*|   ) (\S+) -?\d+(?: \(.*\))?$")
_SOURCE = re.compile(r"^ {7,10}-?\d+ (\S.*)$")
_POCKET = re.compile(r"^ {1,4}-?\d+ (\S.*)$")
_RELEASE = re.compile(r"^ {5,}release (\S.*)$")
_NAME = re.compile(r"^(\S+):$")


@dataclass(frozen=True, slots=True)
class Waiting:
    """A newer version in a security pocket. name: as apt was asked for it."""

    name: str
    installed: str
    version: str


def security_updates(host: Host, names: Sequence[str]) -> tuple[Waiting, ...]:
    """Those of the installed packages for which a security pocket has a newer version, in apt's order.

    names: NAME, or NAME:ARCHITECTURE for a foreign one. Raises CommandFailed where apt cannot be asked.
    """
    if not names:
        return ()
    pockets = security_pockets(_ask(host))
    return waiting(_ask(host, *names), pockets) if pockets else ()


def security_pockets(said: str) -> frozenset[str]:
    """The lists that are of a security pocket, in the words by which `apt-cache policy` names each. Pure."""
    found, pocket = set(), ""
    for line in said.splitlines():
        listed, released = _POCKET.match(line), _RELEASE.match(line)
        if listed:
            pocket = listed[1]
        elif released and _is_security(dict(_fields(released[1]))):
            found.add(pocket)
    return frozenset(found)


def waiting(said: str, pockets: frozenset[str]) -> tuple[Waiting, ...]:
    """What `apt-cache policy NAME…` says of newer versions in these pockets. Pure.

    Versions are listed newest first, and `***` is the installed one: what stands above it is newer.
    """
    found: list[Waiting] = []
    name, version, newest = "", "", ""
    for line in said.splitlines():
        named, listed, source = _NAME.match(line), _VERSION.match(line), _SOURCE.match(line)
        if named:
            name, version, newest = named[1], "", ""
        elif listed and listed[1] == "***":
            if newest:
                found.append(Waiting(name, listed[2], newest))
            name = ""
        elif listed:
            version = listed[2]
        elif source and name and not newest and source[1] in pockets:
            newest = version
    return tuple(found)


def _is_security(release: Mapping[str, str]) -> bool:
    suites = (release.get("a", ""), release.get("n", ""))
    return release.get("l") == "Debian-Security" or any(suite.endswith("-security") for suite in suites)


def _fields(release: str) -> list[tuple[str, str]]:
    """`v=24.04,o=Ubuntu,a=noble-security,…` as pairs."""
    return [(name, value) for name, mark, value in (each.partition("=") for each in release.split(",")) if mark]


def _ask(host: Host, *names: str) -> str:
    answer = host.run(["apt-cache", "policy", *names], timeout_s=QUERY_S, limit=_LIMIT)
    if answer.rc != 0 or answer.truncated:
        raise CommandFailed(f"apt-cache policy ended with status {answer.rc}", where="apt-cache")
    return answer.stdout
