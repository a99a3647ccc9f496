"""The transcript of a run, `runs/ID.jsonl`: the truth about what was done. The stream a client sees is its tail."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from pydantic import ValidationError

from agent import ledger
from agent.errors import FileTrouble
from agent.host import Host
from agent.model import Json
from agent.protocol import Event, EventName, line

SIZE_LIMIT = 16 << 20
"""A transcript is bounded by its steps; above this it is not read."""
TAIL_S = 0.2
"""How often a followed transcript is looked at."""


def path(run: str) -> str:
    """Where the transcript of this run lies. `run` is a validated ULID."""
    return f"{ledger.DIRECTORY}/runs/{run}.jsonl"


def events(host: Host, run: str) -> tuple[Event, ...]:
    """Every whole event of a run; a line that a crash tore off is left out. Raises FileTrouble."""
    found = []
    for text in host.files.read_text(path(run), SIZE_LIMIT).splitlines():
        try:
            found.append(Event.model_validate_json(text))
        except ValidationError:
            continue
    return tuple(found)


def exists(host: Host, run: str) -> bool:
    """Whether this run ever began."""
    return host.files.exists(path(run))


def ended(found: tuple[Event, ...]) -> Event | None:
    """The event that ends a run, None while it has none."""
    return next((event for event in reversed(found) if event.event == "ended"), None)


@dataclass
class Transcript:
    """Writes the events of one run, each on disk before it is told to anyone.

    tell: hands an event to whoever is connected; it must not raise, and whether it arrives does not matter.
    """

    host: Host
    run: str
    tell: Callable[[Event], None] = lambda _: None
    _next: int = field(default=-1)

    def write(self, name: EventName, /, **data: Json) -> Event:
        """Write one event and fsync. Raises FileTrouble: a run that cannot be written down stops."""
        if self._next < 0:
            self._next = 0
            if exists(self.host, self.run):
                self._next = max((event.seq for event in events(self.host, self.run)), default=-1) + 1
        event = Event(id=self.run, seq=self._next, at=self.host.clock.now().wall, event=name, data=data)
        text = line(event).decode().rstrip("\n")
        self.host.files.append_durable(path(self.run), text, 0o640, group=ledger.group(self.host))
        self._next += 1
        self.tell(event)
        return event


def tail(host: Host, run: str, alive: Callable[[], bool]) -> Iterator[Event]:
    """The events of a run as they come, until it ends or nobody is left who could end it."""
    told, size = -1, -1
    found: tuple[Event, ...] = ()
    while True:
        living = alive()
        try:
            # A build tells for hours how far it is: what has not grown is not read again.
            if size != (size := host.files.stat(path(run)).size):
                found = events(host, run)
        except FileTrouble:
            found = ()
        for event in found:
            if event.seq > told:
                told = event.seq
                yield event
        if ended(found) is not None or not living:
            return
        host.clock.sleep(TAIL_S)
