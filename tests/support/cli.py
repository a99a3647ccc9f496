"""Runs one command line in this process, on a fake host, and keeps what it said."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from agent.cli import main
from agent.cli._session import Session
from agent.errors import DaemonUnreachable
from agent.host.files import RealFiles
from agent.protocol import Event
from tests.support.fake_host import FakeHost

RUN = "01JD3Z5W8Q0000000000000000"
"""A run's id."""


@dataclass(frozen=True)
class Said:
    """What a command line left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def holdfast(
    *arguments: str,
    host: FakeHost | None = None,
    uid: int = 0,
    width: int = 80,
    environ: Mapping[str, str] | None = None,
    typed: str | None = None,
) -> Said:
    """Run `holdfast ARGUMENTS`. typed: what a person at a terminal answers; None when nobody is there."""
    out = io.StringIO() if typed is None else Terminal()
    err = io.StringIO()
    known = host or FakeHost.build()
    surroundings = {"COLUMNS": str(width), **(environ or {})}
    session = Session(
        make_host=lambda: known,
        stdin=io.StringIO() if typed is None else Terminal(typed),
        stdout=out,
        stderr=err,
        uid=uid,
        environ=surroundings,
        columns=width,
    )
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments, session)
    return Said(code, out.getvalue(), err.getvalue())


def tree(root: Path, files: Mapping[str, str] | None = None, **parts: Any) -> FakeHost:
    """A fake host whose files lie in a real folder, for what opens files by path (the store)."""
    for path, text in (files or {}).items():
        place = root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    return replace(FakeHost.build(**parts), files=RealFiles(root))


@dataclass
class Runner:
    """A runner's socket: remembers what it was asked and answers with events; `gone` hangs up without an end."""

    events: Sequence[tuple[str, Mapping[str, Any]]]
    asked: list[Mapping[str, Any]] = field(default_factory=list)
    interrupt_after: int | None = None
    _told: int = 0

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def close(self) -> None:
        return None

    def send(self, line: bytes) -> bool:
        self.asked.append(json.loads(line))
        return True

    def receive(self, timeout_s: float, limit: int = 0) -> bytes | None:
        if self.interrupt_after is not None and self._told >= self.interrupt_after:
            raise KeyboardInterrupt
        if self._told >= len(self.events):
            return None
        name, data = self.events[self._told]
        self._told += 1
        event = Event(id=RUN, seq=self._told, at=1_800_000_000.0 + self._told, event=name, data=dict(data))  # type: ignore[arg-type]
        return event.model_dump_json().encode()


def absent(path: str) -> DaemonUnreachable:
    """What connecting to a socket that nobody listens on raises."""
    return DaemonUnreachable(f"{path}: No such file or directory", where=path)
