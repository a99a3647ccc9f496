"""Who is at the other end of the runner's socket, and what they may ask.

The kernel says who connected (SO_PEERCRED). Root is an operator, through sudo. The daemon's uid may ask for runs and
never for what only a person may decide. Whoever else got through the socket's permissions is a member of group
holdfast, and reads. Without root (a demo) the runner's own uid stands for root.
"""

from __future__ import annotations

import os
from enum import Enum

from agent.errors import FileTrouble
from agent.host import Host, Peer

DAEMON_USER = "holdfast"
OPERATORS_ONLY = frozenset({"approve", "resume"})
"""What the daemon may never ask, or it could permit itself everything."""


class Role(str, Enum):
    """What a peer is to us."""

    OPERATOR = "operator"
    DAEMON = "daemon"
    READER = "reader"


def own_uid() -> int:
    """The uid that stands for root: 0, or our own when we do not run as root."""
    return os.geteuid()


def role(host: Host, peer: Peer) -> Role:
    """What this peer is to us. Never raises: who cannot be told is a reader."""
    if peer.uid == own_uid():
        return Role.OPERATOR
    return Role.DAEMON if peer.uid == daemon_uid(host) else Role.READER


def daemon_uid(host: Host) -> int | None:
    """The uid of user holdfast, None where there is none. It is a system user, so /etc/passwd has it."""
    try:
        lines = host.files.read_text("/etc/passwd").splitlines()
    except FileTrouble:
        return None
    for fields in (line.split(":") for line in lines):
        if fields[0] == DAEMON_USER and len(fields) > 2 and fields[2].isdigit():
            return int(fields[2])
    return None


def refusal(who: Role, verb: str, *, force: bool) -> tuple[str, str] | None:
    """Why this peer may not ask this, as (code, reason); None when it may."""
    if who is Role.READER and verb != "follow":
        return "permission", "members of group holdfast only read: use sudo"
    if who is not Role.OPERATOR and verb in OPERATORS_ONLY:
        return "operators-only", f"{verb} is for a person: only root may ask it"
    if who is not Role.OPERATOR and force:
        return "operators-only", "force is for a person: only root may use it"
    return None
