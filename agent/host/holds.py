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
    at: Unix seconds. by: who asked for them.
    """

    packages: tuple[str, ...]
    driver: str
    kernel: str
    at: float
    by: str


def text(owned: Owned) -> str:
    """The file's text."""
    return json.dumps(
        {
            "packages": list(owned.packages),
            "driver": owned.driver,
            "kernel": owned.kernel,
            "at": owned.at,
            "by": owned.by,
        },
        indent=1,
    )


def owned(host: Host) -> Owned | None:
    """Our holds, None where nobody has asked for any. Raises FileTrouble, kind other, when the file is no record."""
    try:
        said: Json = json.loads(host.files.read_text(FILE, 1 << 20))
        names = tuple(str(name) for name in said["packages"])
        return Owned(names, str(said["driver"]), str(said["kernel"]), float(said["at"]), str(said["by"]))
    except FileTrouble as error:
        if error.kind == "missing":
            return None
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise FileTrouble(f"{FILE} is no record of holds: {error}", kind="other", where=FILE) from error
