"""The processes of a unit's control group that serve, and whether the machine lets them run.

A unit may also hold a shell that started the server, and the debugger that `ggml_abort` starts; neither serves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agent.errors import FileTrouble, HostError
from agent.host import Host, driver, nvml, process

# Above these the kernel itself says that tasks stall for want of a resource (PSI of the unit's control group, average
# over 10 s, percent; serving shows single digits): a thread that does not run may simply not be let run.
MEMORY_FULL_PERCENT = 30.0
IO_FULL_PERCENT = 40.0
CPU_SOME_PERCENT = 60.0

NVML_DEADLINE_S = 3.0

_WRAPPERS = frozenset(
    (
        *("sh", "bash", "dash", "zsh", "env", "sudo", "su", "runuser", "tee", "tini", "dumb-init", "catatonit"),
        *("docker", "docker-compose", "podman", "podman-compose", "conmon", "nerdctl", "ctr", "crun", "runc"),
        *("containerd-shim-runc-v2", "systemd-nspawn", "systemd-run", "lxc-start", "apptainer", "singularity"),
    )
)
"""They wait for a server in another process, often in another control group: their stillness says nothing of it."""
_DEBUGGERS = frozenset(("gdb", "lldb"))
"""`ggml_abort` starts one of these to print a backtrace, and waits for it (ggml/src/ggml.c)."""

Reading = tuple[int, int, int, int, int]
"""Thread id, run time in ns, major faults, voluntary switches, block IO ticks: what changes when a thread runs."""


@dataclass(frozen=True, slots=True)
class Process:
    """One process that serves, and how its threads stood. `started_s` is on the boot clock.

    words: its arguments, and what stands behind their equals signs; not to be stored. runnable: whether one of those
        threads is on a CPU or waits for one; one that is and gets nowhere is not let run, by a quota or by its rivals.
    """

    pid: int
    started_s: float
    words: frozenset[str]
    threads: tuple[Reading, ...]
    runnable: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """What lives in a unit's control group.

    alive: whether anything does that serves; None when that cannot be seen from here: only wrappers do (the server is
        in a container of its own), or the processes are hidden (/proc mounted with hidepid).
    debugged: a debugger runs there too.
    """

    name: str = ""
    alive: bool | None = None
    processes: tuple[Process, ...] = ()
    debugged: bool = False


def look_into(host: Host, name: str, main_pid: int, *, port: str, only_main: bool) -> Group:
    """The processes of a control group. What ends while it is looked at is left out.

    The one that names the port comes first, else the oldest: a server, then what it started. main_pid: what systemd
    calls the main process, used where the group cannot be read; 0 when there is none. only_main: read only the main
    threads.
    """
    found: list[Process] = []
    names: list[str] = []
    pids = _pids(host, name) or ((main_pid,) if main_pid else ())
    unseen = 0
    for pid in pids:
        program, each = _process(host, pid, only_main)
        unseen += program is None
        names += [program] if program else []
        found += [each] if each is not None else []
    found.sort(key=lambda each: (port not in each.words, each.started_s, each.pid))
    elsewhere = any(program in _WRAPPERS for program in names) or (pids and unseen == len(pids))
    alive = True if found else None if elsewhere else False
    return Group(name, alive, tuple(found), any(program in _DEBUGGERS for program in names))


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


def nvidia_loaded(host: Host) -> bool:
    """Whether an NVIDIA driver is loaded, and so NVML worth asking."""
    try:
        return driver.loaded_version(host) is not None
    except FileTrouble:
        return True  # loaded, and does not say its version


def gpu_busy_percent(host: Host, watched: Process | None) -> float | None:
    """The use of the GPUs that a process is on, else of the busiest; None when NVML is silent or does not know."""
    try:
        answer = nvml.ask(host, NVML_DEADLINE_S)
    except HostError:
        return None
    if answer is None:
        return None
    ours = [gpu for gpu in answer.gpus if watched and any(pid == watched.pid for pid, _ in gpu.pids)]
    known = [gpu.utilisation_percent for gpu in ours or answer.gpus if gpu.utilisation_percent is not None]
    return float(max(known)) if known else None


def _pids(host: Host, group: str) -> Sequence[int]:
    if not group:
        return ()
    try:
        return process.cgroup_pids(host, group)
    except FileTrouble:
        return ()


def _process(host: Host, pid: int, only_main: bool) -> tuple[str | None, Process | None]:
    """The program's name (None when it cannot be seen), and the process when it serves."""
    try:
        argv = process.command_line(host, pid)
        name = argv[0].rsplit("/", 1)[-1] if argv else ""
        if not name or name in _WRAPPERS or name in _DEBUGGERS:
            return name, None
        threads = process.threads(host, pid, only_main)
        readings = tuple(
            (each.tid, each.cpu_ns, each.major_faults, each.voluntary_switches, each.blkio_ticks) for each in threads
        )
        words = frozenset(argv) | {word.split("=", 1)[1] for word in argv if "=" in word}
        runnable = any(each.state == "R" for each in threads)
        return name, Process(pid, process.started_boot_s(host, pid), words, readings, runnable)
    except FileTrouble:
        return None, None  # it ended while we looked, or it is hidden from us
