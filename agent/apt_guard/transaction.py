"""What apt is about to do, as it says it to its hooks: Pre-Install-Pkgs, version 3 (apt.conf(5)). Pure.

    VERSION 3
    CommandLine::AsString=apt-get%20install%20-y%20hello
    …
                                                         (an empty line)
    hello 2.10-2 amd64 none < 2.10-3 amd64 none /var/cache/apt/archives/hello_2.10-3_amd64.deb

Name, old version, architecture and multi-arch, the order of the two versions, the same of the new one, and a file,
`**CONFIGURE**` or `**REMOVE**`; "-" for no version.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from agent.errors import HostError

LIMIT = 16 << 20
"""Bytes that apt may say: some hundred times what the upgrade of a whole release is."""
_ENCODED = re.compile(rb"%([0-9A-Fa-f]{2})")
_VERBS = re.compile(r"autopurge|autoremove|build-dep|install|purge|reinstall|remove|satisfy|(?:[a-z]+-)?upgrade")
_UNATTENDED = "unattended-upgrade"


@dataclass(frozen=True, slots=True)
class Action:
    """One package: old and new version and architecture, "" for none. file: the .deb, "" for a removal."""

    name: str
    old: str
    old_architecture: str
    new: str
    new_architecture: str
    file: str


@dataclass(frozen=True, slots=True)
class Transaction:
    """The actions in apt's order, without those that only configure; and the program that asked for them."""

    actions: tuple[Action, ...]
    command: str = ""
    unattended: bool = False


def parse(said: bytes) -> Transaction:
    """What apt said. Raises HostError when it is not version 3 of the protocol, or not understood."""
    head, _, rest = said.partition(b"\n")
    if head.strip() != b"VERSION 3":
        raise HostError(f"apt speaks another version of its protocol: {head[:40].decode('utf-8', 'replace')!r}")
    settings, empty, actions = rest.partition(b"\n\n")
    if rest.startswith(b"\n"):  # no settings at all
        settings, empty, actions = b"", b"\n\n", rest[1:]
    if not empty:
        raise HostError("apt named no actions")
    words = next((line for line in settings.splitlines() if line.lower().startswith(b"commandline::asstring=")), b"")
    asked = _ENCODED.sub(lambda code: bytes([int(code[1], 16)]), words.partition(b"=")[2])
    command, unattended = _command(asked.decode("utf-8", "replace"))
    lines = actions.decode("utf-8", "replace").split("\n")
    return Transaction(tuple(each for line in lines if line and (each := _action(line))), command, unattended)


def _action(line: str) -> Action | None:
    """One line; None for one that only configures. Raises HostError."""
    fields = line.split(" ", 8)
    if len(fields) != 9:
        raise HostError(f"apt named an action of {len(fields)} words")
    name, old, old_architecture, _, _, new, new_architecture, _, what = fields
    if what == "**CONFIGURE**":
        return None
    if what != "**REMOVE**" and not what.startswith("/"):
        raise HostError(f"apt named an unknown action: {what[:40]!r}")
    old, new = ("" if each == "-" else each for each in (old, new))
    if what == "**REMOVE**":
        return Action(name, old, old_architecture, "", "", "")
    return Action(name, old, old_architecture if old else "", new, new_architecture, what)


def _command(asked: str) -> tuple[str, bool]:
    """The program's name and its verb, nothing else of the command line; and whether it runs by itself."""
    words = [word.rpartition("/")[2] for word in asked.split()]
    programs = [word for word in words[:3] if word.startswith(_UNATTENDED)]
    if programs:
        return programs[0][:40], True
    verb = next((word for word in words[1:] if _VERBS.fullmatch(word)), "")
    program = re.sub(r"[^A-Za-z0-9+._-]", "", words[0])[:40] if words else ""
    return f"{program} {verb}".strip(), False
