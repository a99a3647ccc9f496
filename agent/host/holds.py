"""Which holds are ours: a root-owned record that the runner writes, so that only those are ever released.

It exists from `holdfast hold` to `holdfast unhold`; where it is not, nobody asked for holds, and none are set again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from agent.errors import FileTrouble
from agent.host import Host
from agent.model import Json

FILE = "/var/lib/holdfast-runner/holds.json"


@dataclass(frozen=True, slots=True)
class Owned:
    """The holds that are ours. packages: as NAME:ARCHITECTURE, only those that nobody else had held before.

    driver: the driver version they hold. kernel: the kernel release whose prebuilt modules they hold, "" for none.
    at: Unix seconds. by: who asked for them. suspended: they are released for a planned change, so that a package on
    hold now was held by somebody else.
    """

    packages: tuple[str, ...]
    driver: str
    kernel: str
    at: float
    by: str
    suspended: bool = False


def text(owned: Owned) -> str:
    """The file's text: the names alone in lines of two spaces, which the package's removal reads without Python."""
    return json.dumps(
        {
            "packages": list(owned.packages),
            "driver": owned.driver,
            "kernel": owned.kernel,
            "at": owned.at,
            "by": owned.by,
            "suspended": owned.suspended,
        },
        indent=1,
    )


def owned(host: Host) -> Owned | None:
    """Our holds, None where nobody has asked for any. Raises FileTrouble, kind other, when the file is no record."""
    try:
        said: Json = json.loads(host.files.read_text(FILE, 1 << 20))
        names = tuple(str(name) for name in said["packages"])
        words = str(said["driver"]), str(said["kernel"]), float(said["at"]), str(said["by"])
        return Owned(names, *words, suspended=said.get("suspended") is True)
    except FileTrouble as error:
        if error.kind == "missing":
            return None
        raise
    except (ValueError, KeyError, TypeError) as error:
        by_hand = "apt-mark showhold lists what is on hold; release what is not yours to keep, then remove the file"
        raise FileTrouble(f"{FILE} is no record of holds ({error}): {by_hand}", kind="other", where=FILE) from error
