"""What a llama-server says of itself: its version, the devices it sees, whether it understands a unit's arguments.

Only what is parsed here is kept of what it prints: an error may quote an argument's value, so that never is.
"""

from __future__ import annotations

import os
import posixpath
import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass

from agent.errors import FileTrouble, HostError
from agent.host import Completed, Host
from agent.host.unit_command import UnitCommand

VERSION_S = 30.0
"""Printing a version takes milliseconds; a CUDA build loads its libraries first, on a cold disk."""
DEVICES_S = 90.0
"""Initialising CUDA takes seconds; a driver that hangs takes for ever."""
PARSE_S = 20.0
_VERSION = re.compile(
    r"version:\s+(?:(?P<sem>\d+\.\d+\.\d+\S*)\s+\(build\s+)?(?P<build>\d+)[,\s]+\(?(?:commit\s+)?"
    r"(?P<commit>[0-9a-f]{7,40}|unknown)"
)
_DEVICE = re.compile(r"^\s+([A-Z][A-Za-z]+\d+): ([^\n(]{1,80})", re.MULTILINE)
_UNKNOWN_ARGUMENT = re.compile(r"invalid argument: (--?[A-Za-z0-9][A-Za-z0-9-]{0,60})")
_BAD_VALUE = re.compile(r'error while handling argument "(--?[A-Za-z0-9][A-Za-z0-9-]{0,60})"')
_BAD_VARIABLE = re.compile(r'error while handling environment variable "([A-Z0-9_]{1,60})"')
_UNREADABLE = re.compile(r"failed to open|No such file|Permission denied|unable to (?:open|read)")
_MISSING_LIBRARY = re.compile(r"error while loading shared libraries: ([A-Za-z0-9._+-]{1,80})")


@dataclass(frozen=True, slots=True)
class Version:
    """What `--version` says: "0.5.0-dev" ("" in older builds), the build number, the commit ("unknown" is possible)."""

    semantic: str
    build: int
    commit: str

    def is_of(self, commit: str) -> bool | None:
        """Whether it is a build of this commit (full hash); None when it does not say of which."""
        return None if self.commit == "unknown" else commit.startswith(self.commit)


def version(host: Host, server: str, user: str | None) -> Version:
    """What the server's `--version` says. Raises HostError with the reason when it says nothing."""
    done = host.run((server, "--version"), timeout_s=VERSION_S, user=user, cwd="/")
    found = _VERSION.search(done.stdout + done.stderr)
    if done.rc != 0 or found is None:
        raise HostError(f"the new llama-server does not say its version: {ending(done)}", code="binary-broken")
    return Version(found["sem"] or "", int(found["build"]), found["commit"])


def devices(host: Host, server: str, user: str | None) -> tuple[tuple[str, str], ...] | None:
    """The GPUs that the server sees, as (CUDA0, name); None for a build that cannot say. Raises HostError."""
    done = host.run((server, "--list-devices"), timeout_s=DEVICES_S, user=user, cwd="/")
    if _UNKNOWN_ARGUMENT.search(done.stderr):
        return None
    if done.rc != 0:
        raise HostError(f"the new llama-server cannot list its devices: {ending(done)}", code="binary-broken")
    return tuple((name, words.strip()) for name, words in _DEVICE.findall(done.stdout))


def misunderstood(host: Host, server: str, command: UnitCommand, user: str | None) -> tuple[str, bool]:
    """What the server does not understand of a unit's arguments and environment, "" when it understands all.

    The second is False where that is no proof: a file that only the unit's own user may read. llama.cpp parses in
    order, so that `--version` at the end is reached only by arguments that are all understood.
    """
    own = user == (command.user or None)
    argv = (server, *command.arguments, "--version")
    folder = command.folder if host.files.exists(command.folder) else "/"
    try:
        done = host.run(argv, timeout_s=PARSE_S, user=user, cwd=folder, env=command.environment)
    except HostError as error:
        # With its own words it would quote the command, and so the arguments.
        return f"it could not be asked ({error.code})", error.code == "command-timeout"
    said = done.stdout + done.stderr
    if done.rc == 0 and _VERSION.search(said):
        return "", True
    for pattern, words in (
        (_UNKNOWN_ARGUMENT, "it does not know the argument {}"),
        (_BAD_VALUE, "it does not accept what the unit says for {}"),
        (_BAD_VARIABLE, "it does not accept the environment variable {}"),
    ):
        found = pattern.search(said)
        if found:
            return words.format(found[1]), own or not _UNREADABLE.search(said)
    return ending(done), True


def ending(done: Completed) -> str:
    """How a program ended, in words that quote nothing of it but a library's name."""
    library = _MISSING_LIBRARY.search(done.stderr)
    if library:
        return f"the library {library[1]} is missing"
    if done.rc < 0:
        try:
            return f"killed by {signal.Signals(-done.rc).name}"
        except ValueError:
            return f"killed by signal {-done.rc}"
    return f"exit {done.rc}"


def known_user(host: Host, name: str) -> bool:
    """Whether /etc/passwd has this user, and it is not root by another name."""
    try:
        rows = [line.split(":") for line in host.files.read_text("/etc/passwd").splitlines()]
    except FileTrouble:
        return False
    return any(row[0] == name and row[2] != "0" for row in rows if len(row) > 2)


def model(configured: str) -> str:
    """The small model to try a build with: the configured one, or the one that comes with Holdfast."""
    return configured or posixpath.join(_DATA, "tiny.gguf")


_DATA = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "data")


def shown(found: Sequence[tuple[str, str]]) -> str:
    """Devices in words."""
    return ", ".join(f"{name} {words}" for name, words in found)
