"""What the apt guard refused last: a root-owned record that it writes, so that the daemon can tell it.

It stands until the next refusal replaces it; how long it still matters, its reader judges.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from agent.errors import FileTrouble
from agent.host import Host
from agent.model import Json

FILE = "/var/lib/holdfast-runner/veto.json"
FOLDER = "/var/lib/holdfast-runner"


@dataclass(frozen=True, slots=True)
class Veto:
    """One refusal. at: Unix seconds. boot: the boot it happened in.

    command: the program and its verb ("apt-get dist-upgrade"), "" when unknown; never its further words.
    unattended: nobody sat in front of it. package: the one that was refused first. reason: why, in one line.
    """

    at: float
    boot: str
    command: str
    unattended: bool
    package: str
    reason: str


def text(veto: Veto) -> str:
    """The file's text."""
    return json.dumps(
        {
            "at": veto.at,
            "boot": veto.boot,
            "command": veto.command,
            "unattended": veto.unattended,
            "package": veto.package,
            "reason": veto.reason,
        }
    )


def last(host: Host) -> Veto | None:
    """The last refusal, None when there was none. Raises FileTrouble, kind other, when the file is no record."""
    try:
        said: Json = json.loads(host.files.read_text(FILE, 64 << 10))
        words = {name: str(said[name]) for name in ("boot", "command", "package", "reason")}
        return Veto(at=float(said["at"]), unattended=bool(said["unattended"]), **words)
    except FileTrouble as error:
        if error.kind == "missing":
            return None
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise FileTrouble(f"{FILE} is no record of a refusal: {error}", kind="other", where=FILE) from error


def record(host: Host, veto: Veto) -> None:
    """Keep a refusal. Where the runner's folder is not there, nothing is kept. Raises FileTrouble."""
    if host.files.exists(FOLDER):
        host.files.write_atomic(FILE, text(veto), 0o640, group="holdfast")
