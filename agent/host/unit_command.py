"""With which arguments and environment a unit runs its server: from the process, or from the unit while none runs.

Both may hold secrets. They are for handing to the same program again, never for a plan, a log or a page.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from agent.errors import FileTrouble
from agent.host import Host, process, systemd
from agent.model import Json

TIMEOUT_S = 5.0
_OWN = re.compile(
    r"^(INVOCATION_ID|JOURNAL_STREAM|NOTIFY_SOCKET|WATCHDOG_\w+|LISTEN_\w+|MAINPID|MANAGERPID|SYSTEMD_\w+)$"
)
"""What systemd gives to one process alone (systemd.exec(5))."""
_VARIABLE = re.compile(r"\$(?:\$|\{(\w+)\}|(\w+))")


@dataclass(frozen=True, slots=True)
class UnitCommand:
    """How a unit starts its server. arguments: without the program; secrets in them are hidden.

    environment: without what names a secret. folder: the working directory. user: "" for root.
    source: "process" or "unit".
    """

    program: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    folder: str
    user: str
    source: str


def read(host: Host, unit: str, server: str) -> UnitCommand | None:
    """How the unit starts this server; None where only a wrapper knows. Raises HostError."""
    state = systemd.unit_state(host, unit)
    names = {server, _real(host, server)}
    for pid in process.cgroup_pids(host, state.control_group) if state.control_group else ():
        try:
            if host.files.readlink(f"/proc/{pid}/exe").removesuffix(" (deleted)") in names:
                return _of_process(host, pid, state.user)
        except FileTrouble:
            continue  # it ended meanwhile
    return _of_unit(host, unit, state.user, names)


def _of_process(host: Host, pid: int, user: str) -> UnitCommand:
    argv = process.command_line(host, pid)
    pairs = (entry.partition("=") for entry in host.files.read_text(f"/proc/{pid}/environ").split("\0"))
    environment = {name: value for name, equals, value in pairs if equals}
    folder = host.files.readlink(f"/proc/{pid}/cwd")
    return _told(argv[:1], argv[1:], environment, folder, user, "process")


def _of_unit(host: Host, unit: str, user: str, names: set[str]) -> UnitCommand | None:
    path = "/org/freedesktop/systemd1/unit/" + _escaped(unit)
    wanted = ("ExecStart", "Environment", "EnvironmentFiles", "WorkingDirectory")
    argv = ("busctl", "--json=short", "get-property", "org.freedesktop.systemd1", path)
    answer = host.run((*argv, "org.freedesktop.systemd1.Service", *wanted), timeout_s=TIMEOUT_S)
    try:
        said: list[Json] = [json.loads(line)["data"] for line in answer.stdout.splitlines()]
        commands, assignments, files, folder = said
        program, words = str(commands[0][0]), [str(word) for word in commands[0][1]]
        environment = dict(str(each).split("=", 1) for each in assignments)
        for file, _ in files:
            environment.update(_environment_file(host, str(file)))
    except (ValueError, KeyError, IndexError, TypeError):
        return None
    if not {program, _real(host, program)} & names:
        return None
    arguments = [part for word in words[1:] for part in _expanded(word, environment)]
    return _told(
        (program,), tuple(arguments), environment, str(folder).lstrip("!-").replace("~", "") or "/", user, "unit"
    )


def _told(
    program: tuple[str, ...],
    arguments: tuple[str, ...],
    environment: Mapping[str, str],
    folder: str,
    user: str,
    source: str,
) -> UnitCommand:
    clean = {
        name: value
        for name, value in environment.items()
        if not _OWN.match(name) and process.redact_argv([f"{name}={value}"]) == (f"{name}={value}",)
    }
    name = "" if user in ("", "root", "0") else user
    return UnitCommand((*program, "")[0], process.redact_argv(arguments), clean, folder, name, source)


def _expanded(word: str, environment: Mapping[str, str]) -> list[str]:
    """One word of ExecStart as systemd passes it on (systemd.service(5), "Command lines")."""
    whole = re.fullmatch(r"\$(\w+)", word)
    if whole:
        try:
            return shlex.split(environment.get(whole[1], ""))
        except ValueError:
            return environment.get(whole[1], "").split()

    def value(found: re.Match[str]) -> str:
        if found[0] == "$$":
            return "$"
        return environment.get(found[1], "") if found[1] else found[0]

    return [_VARIABLE.sub(value, word)]


def _environment_file(host: Host, path: str) -> dict[str, str]:
    try:
        lines = host.files.read_text(path).splitlines()
    except FileTrouble:
        return {}
    found: dict[str, str] = {}
    for line in lines:
        name, equals, value = line.strip().partition("=")
        if not equals or name.startswith(("#", ";")):
            continue
        try:
            found[name.strip()] = " ".join(shlex.split(value))
        except ValueError:
            found[name.strip()] = value.strip()
    return found


def _escaped(unit: str) -> str:
    """A unit's name in an object path: sd_bus_path_encode(3)."""
    return "".join(
        each if each.isascii() and each.isalnum() and not (index == 0 and each.isdigit()) else f"_{ord(each):02x}"
        for index, each in enumerate(unit)
    )


def _real(host: Host, path: str) -> str:
    try:
        return host.files.realpath(path)
    except FileTrouble:
        return path
