"""The planned change that is open: a root-owned file that the runner writes; apt guard, checks and `decide` read it.

One change at a time. The file is there from `change begin` to `change finish` or `change abort`; the ledger is its
history. A change that has passed its window stays open, and is told: closing it is a person's.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from agent.errors import FileTrouble
from agent.host import Host
from agent.model import Json, Moment

FILE = "/var/lib/holdfast-runner/change.json"


@dataclass(frozen=True, slots=True)
class Change:
    """One planned change. to: the driver version it leads to, the locked one when only the kernel changes.

    kernel: the kernel release it leads to, "" for any. since, window_s: when it began and how long it may take.
    by: who began it. locked: what the lock said when it began, "" for no lock.
    """

    id: str
    to: str
    kernel: str
    reason: str
    since: Moment
    window_s: float
    by: str
    locked: str

    @property
    def words(self) -> str:
        """What it is, in one line."""
        kernel = f"kernel {self.kernel}" if self.kernel else ""
        driver = f"driver {self.to}" if self.to != self.locked or not kernel else ""
        return f"{' and '.join(each for each in (driver, kernel) if each)} ({self.reason})"

    def overdue_s(self, now: Moment) -> float:
        """For how long it has been open beyond its window, seconds; negative while it is within."""
        return now.since(self.since) - self.window_s


def text(change: Change) -> str:
    """The file's text."""
    since = change.since
    return json.dumps(
        {
            "id": change.id,
            "to": change.to,
            "kernel": change.kernel,
            "reason": change.reason,
            "at": since.wall,
            "boot_s": since.boot_s,
            "boot_id": since.boot_id,
            "window_s": change.window_s,
            "by": change.by,
            "locked": change.locked,
        }
    )


def read(host: Host) -> Change | None:
    """The change that is open, None when none is. Raises FileTrouble, kind other, when the file is not a change."""
    try:
        said: Json = json.loads(host.files.read_text(FILE, 64 << 10))
        since = Moment(float(said["at"]), float(said["boot_s"]), str(said["boot_id"]))
        words = {name: str(said[name]) for name in ("id", "to", "kernel", "reason", "by", "locked")}
        return Change(since=since, window_s=float(said["window_s"]), **words)
    except FileTrouble as error:
        if error.kind == "missing":
            return None
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise FileTrouble(f"{FILE} is no planned change: {error}", kind="other", where=FILE) from error


def in_words(host: Host) -> str:
    """The planned change that is open, in words, "" for none; one that cannot be read counts as open."""
    try:
        change = read(host)
    except FileTrouble as error:
        return error.message
    return "" if change is None else change.words
