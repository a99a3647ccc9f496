"""How the last runs of unattended-upgrades ended: read from its log by the few lines that say so, and nothing else.

The lines are those of unattended-upgrades 2.8 to 2.12 (Ubuntu 22.04 to 26.04, Debian 12 and 13). A run that ends
without any of them, as one that only downloads does, says nothing. The log belongs to root and group adm.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from agent.errors import FileTrouble
from agent.host import Host

LOG = "/var/log/unattended-upgrades/unattended-upgrades.log"
STAMP = "/var/lib/apt/periodic/unattended-upgrades-stamp"
"""Touched at the end of every run that got as far as installing, failed ones included."""
LOG_LIMIT = 16 << 20
"""It is rotated monthly."""
_LINE = re.compile(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),\d{3} [A-Z]+ (.*)$")
_START = "Starting unattended upgrades script"
_DRY = "Option --dry-run given"
_DONE = ("All upgrades installed", "No packages found that can be upgraded unattended")
INSTALLING = "installing failed (see /var/log/unattended-upgrades/unattended-upgrades-dpkg.log)"
_FAILED = {
    "Installing the upgrades failed!": INSTALLING,
    "Cache has broken packages, exiting": "installed packages do not fit together (sudo apt --fix-broken install)",
    "Apt returned an error, exiting": "apt cannot read its sources or lists (sudo apt update)",
}
_ONCE_IS_NOTHING = {
    "The URI ": "a package could not be downloaded",
    "Download finished, but file ": "a package could not be downloaded",
    "Lock could not be acquired": "another program was changing packages",
}
_OTHERWISE = {"An error occurred: ": "it ended with an error of its own"}


@dataclass(frozen=True, slots=True)
class UnattendedRun:
    """One run. at: when it began, in the host's local time, "2026-11-20 06:12:33". failed: why, "" for a good end.

    passing: what failed is known to pass by itself, so that one such run says nothing.
    """

    at: str
    failed: str
    passing: bool = False


def runs(host: Host) -> tuple[UnattendedRun, ...]:
    """Every run that ended and said how, oldest first; empty without a log. Raises FileTrouble."""
    try:
        return ended(host.files.read_text(LOG, LOG_LIMIT))
    except FileTrouble as trouble:
        if trouble.kind == "missing":
            return ()
        raise


def ended(log: str) -> tuple[UnattendedRun, ...]:
    """The runs that this log tells of, where it says how they ended. Pure."""
    found: list[UnattendedRun] = []
    at = ""
    said: list[str] = []
    for line in log.splitlines():
        matched = _LINE.match(line)
        if matched is None:
            continue
        if matched[2].startswith(_START):
            found += _run(at, said)
            at, said = matched[1], []
        else:
            said.append(matched[2])
    return (*found, *_run(at, said))


def failure(found: tuple[UnattendedRun, ...]) -> UnattendedRun | None:
    """The run that shows that upgrades do not come in; None where the last one was good or may have been bad luck."""
    if not found or not found[-1].failed:
        return None
    alone = len(found) < 2 or not found[-2].failed
    return None if found[-1].passing and alone else found[-1]


def _run(at: str, said: list[str]) -> list[UnattendedRun]:
    """The run that said this, if it said how it ended."""
    if not at or any(each.startswith(_DRY) for each in said):
        return []
    for known, passing in ((_FAILED, False), (_ONCE_IS_NOTHING, True), (_OTHERWISE, False)):
        for words, why in known.items():
            if any(each.startswith(words) for each in said):
                return [UnattendedRun(at, why, passing)]
    return [UnattendedRun(at, "")] if any(each.startswith(_DONE) for each in said) else []
