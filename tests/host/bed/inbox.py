"""A pager's address on 127.0.0.1 of a host, to see what was really sent, and to misbehave as pagers do."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bed.errors import BedError
from bed.host import BootedHost

SCRIPT = Path(__file__).with_name("guest") / "inbox.py"
FOLDER = "/var/lib/bed"


@dataclass(frozen=True, slots=True)
class Event:
    """One request that arrived; header names are in lower case; status is what it was answered with (0: nothing)."""

    n: int
    at: float
    method: str
    path: str
    headers: dict[str, str]
    body: str
    status: int

    def json(self) -> dict[str, object]:
        """Return the body as JSON, which must be an object."""
        parsed = json.loads(self.body)
        if not isinstance(parsed, dict):
            raise BedError(f"not a JSON object: {self.body[:200]}")
        return parsed


class PagerInbox:
    """Records every request to one port; a writable host keeps the records over boots, but ``start`` it again."""

    def __init__(self, host: BootedHost, port: int = 9099) -> None:
        self._host = host
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self._unit = f"bed-inbox-{port}"
        self._records = f"{FOLDER}/inbox-{port}.jsonl"
        self._behaviour = f"{FOLDER}/inbox-{port}.json"
        self.start()

    def start(self) -> None:
        """Listen; also after ``refuse`` or the host's next boot."""
        if not self._host.exists(f"{FOLDER}/inbox.py"):
            self._host.push(SCRIPT, f"{FOLDER}/inbox.py")
        self._host.run(
            "systemd-run", "--quiet", "--collect", f"--unit={self._unit}", "python3", "-IS", f"{FOLDER}/inbox.py",
            str(self.port), self._records, self._behaviour,
        )  # fmt: skip
        self._host.wait_for(self._listening, 15, "the inbox to listen")

    def refuse(self) -> None:
        """Stop listening: connections are refused until ``start``."""
        self._host.run("systemctl", "stop", self._unit)

    def behave(
        self, *replies: int, retry_after: float | None = None, hang_s: float = 0, drop: bool = False, body: str = "{}"
    ) -> None:
        """Set how requests are answered from now on; see guest/inbox.py. Without arguments: 200, at once."""
        plan = {"replies": list(replies), "retry_after": retry_after, "hang_s": hang_s, "drop": drop, "body": body}
        self._host.write(self._behaviour, json.dumps(plan))

    def events(self) -> list[Event]:
        """Return everything that arrived, in order."""
        lines = self._host.run("cat", self._records, check=False).stdout.splitlines()
        return [Event(**json.loads(line)) for line in lines if line.endswith("}")]

    def wait_for(self, predicate: Callable[[Event], bool], timeout: float = 60, since: int = 0) -> Event:
        """Return the first event after number ``since`` that fits. Raises BedError, listing what did arrive."""

        def find() -> Event | None:
            return next((event for event in self.events() if event.n > since and predicate(event)), None)

        try:
            found = self._host.wait_for(find, timeout, "a page", every=0.3)
        except BedError as error:
            seen = "\n".join(f"{e.method} {e.path} {e.body[:300]}" for e in self.events())
            raise BedError(f"{error}; what arrived:\n{seen or 'nothing'}") from error
        if found is None:
            raise BedError("no page")
        return found

    def _listening(self) -> bool:
        # Ask the kernel: a probe would end up among the records.
        row = f" 0100007F:{self.port:04X} 00000000:0000 0A "
        return row in self._host.read("/proc/net/tcp")
