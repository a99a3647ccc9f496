"""The processes of a unit's control group that serve, and whether the machine lets them run.

A unit may also hold a shell that started the server, and the debugger that `ggml_abort` starts; neither serves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agent.errors import FileTrouble
from agent.host import Host, process

# Above these the kernel itself says that tasks stall for want of a resource (PSI of the unit's control group, average
# over 10 s, percent; serving shows single digits): a thread that does not run may simply not be let run.
MEMORY_FULL_PERCENT = 30.0
IO_FULL_PERCENT = 40.0
CPU_SOME_PERCENT = 60.0

_WRAPPERS = frozenset(
    ("sh", "bash", "dash", "zsh", "env", "sudo", "tee", "tini", "dumb-init", "catatonit", "conmon", "podman", "docker")
)
_DEBUGGERS = frozenset(("gdb", "lldb"))
"""`ggml_abort` starts one of these to print a backtrace, and waits for it (ggml/src/ggml.c)."""

Reading = tuple[int, int, int, int, int]
"""Thread id, run time in ns, major faults, voluntary switches, block IO ticks: what changes when a thread runs."""


@dataclass(frozen=True, slots=True)
class Process:
    """One process that serves, and how its threads stood. `started_s` is on the boot clock.

    words: its arguments, and what stands behind their equals signs; not to be stored.
    """

    pid: int
    started_s: float
    words: frozenset[str]
    threads: tuple[Reading, ...]


def processes(host: Host, group: str, *, port: str, only_main: bool) -> tuple[tuple[Process, ...], bool]:
    """The serving processes of a control group, and whether a debugger runs beside them.

    The one that names the port comes first, else the oldest: a server, then what it started. only_main: read only
    their main threads. What ends while it is looked at is left out; a group that cannot be read has none.
    """
    found: list[Process] = []
    debugged = False
    for pid in _pids(host, group):
        name, each = _process(host, pid, only_main)
        debugged = debugged or name in _DEBUGGERS
        if each is not None:
            found.append(each)
    found.sort(key=lambda each: (port not in each.words, each.started_s, each.pid))
    return tuple(found), debugged


def held_up(host: Host, group: str, pids: Sequence[int]) -> tuple[str, str]:
    """Why threads of this control group may not be let run now: a kind, and the same in words.

    The kinds are "frozen", "core", "memory", "io" and "cpu". Both empty when nothing is known to hold them up.
    """
    try:
        if process.cgroup_frozen(host, group):
            return "frozen", "its control group is frozen"
        if any(process.core_dumping(host, pid) for pid in pids):
            return "core", "it is writing a core dump"
        pressure = process.pressure(host, group)
    except FileTrouble:
        return "", ""
    limits = (
        ("memory", "memory", pressure.memory_full, MEMORY_FULL_PERCENT),
        ("io", "disk IO", pressure.io_full, IO_FULL_PERCENT),
        ("cpu", "CPU time", pressure.cpu_some, CPU_SOME_PERCENT),
    )
    for kind, words, percent, limit in limits:
        if percent is not None and percent > limit:
            return kind, f"it waits for {words} {percent:.0f} % of the time"
    return "", ""


def _pids(host: Host, group: str) -> Sequence[int]:
    if not group:
        return ()
    try:
        return process.cgroup_pids(host, group)
    except FileTrouble:
        return ()


def _process(host: Host, pid: int, only_main: bool) -> tuple[str, Process | None]:
    """The program's name, and the process when it serves."""
    try:
        argv = process.command_line(host, pid)
        name = argv[0].rsplit("/", 1)[-1] if argv else ""
        if not name or name in _WRAPPERS or name in _DEBUGGERS:
            return name, None
        readings = tuple(
            (each.tid, each.cpu_ns, each.major_faults, each.voluntary_switches, each.blkio_ticks)
            for each in process.threads(host, pid, only_main)
        )
        words = frozenset(argv) | {word.split("=", 1)[1] for word in argv if "=" in word}
        return name, Process(pid, process.started_boot_s(host, pid), words, readings)
    except FileTrouble:
        return "", None  # it ended while we looked
