"""Unit tests touch nothing: a real program, a socket, or a write outside the checkout and the temporary folder fails.

Python reports such acts to audit hooks; ours objects while a unit test runs, and the test fails at its end even when
the code under test swallowed the objection.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_TREES = tuple(
    os.path.realpath(place) + "/" for place in (Path(__file__).resolve().parents[2], tempfile.gettempdir(), "/dev/null")
)
_FORBIDDEN = {
    "subprocess.Popen": "starts a program",
    "os.system": "starts a program",
    "os.exec": "starts a program",
    "os.posix_spawn": "starts a program",
    "os.fork": "forks",
    "os.forkpty": "forks",
    "socket.connect": "connects a socket",
    "socket.bind": "binds a socket",
    "socket.sendto": "sends from a socket",
    "socket.getaddrinfo": "looks up a name",
    "socket.gethostbyname": "looks up a name",
}
_CHANGES = {
    "os.mkdir",
    "os.remove",
    "os.rmdir",
    "os.rename",
    "os.link",
    "os.symlink",
    "os.chmod",
    "os.chown",
    "os.truncate",
}
_TWO_PATHS = ("os.link", "os.symlink", "os.rename")  # the second is where it happens
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Guard:
    """What a unit test did that it must not do."""

    def __init__(self) -> None:
        self.on = False
        self.objections: list[str] = []

    def hook(self, event: str, arguments: tuple[object, ...]) -> None:
        """Called by Python for every audited act."""
        if not self.on:
            return
        if event in _FORBIDDEN:
            self._object(f"a unit test {_FORBIDDEN[event]}: {event}")
        elif (event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING) or event in _CHANGES:
            self._place(event, arguments[1 if event in _TWO_PATHS else 0])

    def _place(self, event: str, path: object) -> None:
        if isinstance(path, (str, bytes)):
            place = os.path.realpath(os.fsdecode(path))
            if not f"{place}/".startswith(_TREES):
                self._object(f"a unit test writes outside the checkout: {event} {place}")

    def _object(self, words: str) -> None:
        self.objections.append(words)
        raise AssertionError(words)


_guard = Guard()
sys.addaudithook(_guard.hook)


@pytest.fixture(autouse=True)
def machine_guard() -> Iterator[Guard]:
    """Objects to whatever touches the machine; a test about the guard itself clears `objections`."""
    _guard.objections.clear()
    _guard.on = True
    yield _guard
    _guard.on = False
    assert not _guard.objections, _guard.objections
