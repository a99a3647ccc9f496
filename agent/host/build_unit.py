"""The walls around a build, and how much it may take: a transient unit, as a user that may write one folder.

A build script is somebody else's program. It gets no network unless configured, no home, no devices, nothing writable
but its work, a limit on memory without swap, and the last place in every queue: the engine that serves comes first.
What all builds have in common is a drop-in of the package; what differs comes with the command. A unit that is told
apart by its name outlives a killed runner and can be stopped by whoever finishes for it; it ends with a power cut.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from agent.errors import CommandFailed, FileTrouble, HostError
from agent.host import Host, build_log, builds, process, systemd
from agent.host.recipe import BUILD_USER, Recipe
from agent.host.systemd import UnitState

PER_JOB_MIB = 1536
"""What the largest of llama.cpp's C++ files takes to compile, with room: about 1.2 GiB with gcc 12."""
PER_CUDA_JOB_MIB = 3072
"""The same for its CUDA kernels."""
RESERVE_MIB = 1024
"""What stays free for the host whatever is built, at least; a sixteenth of the memory on large ones."""
LEAST_MIB = 1024
"""With less than this no compiler comes through."""
ASK_AGAIN_S = 5.0
"""How often systemd is asked about a unit that still has processes: asking costs more than looking at those."""
SILENT_S = 120.0
"""How long systemd may fail to answer before that counts as a failure of the build."""
TAIL_BYTES = 65536
LOG_LIMIT = 64 << 20
WALLS = "/usr/lib/systemd/system/holdfast-build-.service.d/walls.conf"
"""What every build unit gets besides: the package's, or an administrator's over it (packaging/deb/units)."""
TRIAL_WALLS = "/usr/lib/systemd/system/holdfast-prove-.service.d/walls.conf"
"""The same for the unit in which a new program is tried (agent/actions/_trial.py)."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a build may take: compilers at once, and MiB of memory for all of them."""

    jobs: int
    memory_mib: int

    @property
    def enough(self) -> bool:
        """Whether a compiler comes through with that."""
        return self.memory_mib >= LEAST_MIB


def limits(host: Host, recipe: Recipe) -> Limits:
    """What the recipe says, else what is free now: rounded, so that a plan does not change with every look.

    Raises FileTrouble and CommandFailed where the host does not say what it has.
    """
    total, available = memory_mib(host)
    step = 256 if total < 8192 else 1024 * max(1, total // 16384)
    free = (available - max(RESERVE_MIB, total // 16)) // step * step
    memory = recipe.memory_max_mib or max(0, free)
    cores = int(host.run(["nproc"], timeout_s=5.0).stdout.strip() or 1)
    per_job = PER_CUDA_JOB_MIB if recipe.cuda else PER_JOB_MIB
    return Limits(recipe.jobs or max(1, min(cores, memory // per_job)), memory)


def memory_mib(host: Host) -> tuple[int, int]:
    """All of the memory and what is available without swapping, MiB. Raises FileTrouble."""
    found = dict(re.findall(r"^(\w+):\s+(\d+) kB$", host.files.read_text("/proc/meminfo"), re.MULTILINE))
    if not {"MemTotal", "MemAvailable"} <= set(found):
        raise FileTrouble("/proc/meminfo is not understood", kind="malformed", where="/proc/meminfo")
    return int(found["MemTotal"]) >> 10, int(found["MemAvailable"]) >> 10


def start(recipe: Recipe, log: str, granted: Limits, command: Sequence[str]) -> tuple[str, ...]:
    """The command that begins one part of a build; it returns as soon as the program runs."""
    work = builds.work(recipe)
    properties = (
        f"ReadWritePaths={work}",
        *(() if recipe.network else ("PrivateNetwork=yes",)),
        f"MemoryMax={granted.memory_mib}M",
        f"RuntimeMaxSec={recipe.timeout_s:.0f}",
        f"StandardOutput=append:{log}",
    )
    environment = (
        f"HOME={work}/home",
        f"TMPDIR={work}/tmp",  # noqa: S108 - its own folder
        f"CCACHE_DIR={work}/ccache",
    )
    return (
        "systemd-run",
        "--quiet",
        f"--unit={builds.unit(recipe)}",
        "--service-type=exec",
        "--remain-after-exit",
        f"--uid={BUILD_USER}",
        f"--gid={BUILD_USER}",
        f"--working-directory={work}",
        *(f"--property={each}" for each in properties),
        *(f"--setenv={each}" for each in environment),
        "--",
        *command,
    )


@dataclass
class Watch:
    """One part of a build while it is waited for: whether it has ended, how long it took and how far it is.

    expected_s: how long all that is left took last time, None where nobody knows. after_s: how much of that comes after
    this part. Its methods are what `Wait` and `Progress` ask for.
    """

    unit: str
    log: str
    folder: str
    words: str
    limits: Limits
    expected_s: float | None = None
    after_s: float = 0.0
    took_s: float = 0.0
    _group: str = ""
    _began: float | None = None
    _asked: float | None = None
    _silent: float | None = None

    def ended(self, host: Host) -> bool:
        """Whether it has done its work. Raises HostError with the reason when it has failed or was stopped."""
        now = host.clock.now().boot_s
        if self._began is None:
            self._began = now
        recently = self._asked is not None and now - self._asked < ASK_AGAIN_S
        if recently and (self._silent is not None or self._has_processes(host)):
            return False
        self._asked = now
        try:
            state = systemd.unit_state(host, self.unit)
        except CommandFailed:
            # A build loads the host; that systemd is slow to answer does not end it.
            self._silent = now if self._silent is None else self._silent
            if now - self._silent < SILENT_S:
                return False
            raise
        self._silent = None
        self._group = state.control_group
        if state.active_state == "failed":
            raise HostError(self._why(host, state))
        if state.active_state == "active" and state.sub_state == "exited":
            begun, over = state.main_start_boot_s, state.main_exit_boot_s
            self.took_s = over - begun if begun is not None and over is not None else now - self._began
            return True
        if state.active_state == "inactive" and not state.job:
            raise HostError(f"{self.words} was stopped: {self.unit} is gone")
        return False

    def _has_processes(self, host: Host) -> bool:
        """Whether any of its processes is seen; False where that cannot be told."""
        try:
            return bool(self._group) and bool(process.cgroup_pids(host, self._group))
        except FileTrouble:
            return False

    def how_far(self, host: Host) -> tuple[float | None, float | None]:
        """How far it is, percent, and the seconds left: by its own log, and by how long it took last time."""
        now = host.clock.now().boot_s
        percent = build_log.percent(_tail(host, self.log))
        return percent, remaining_s(percent, now - (self._began or now), self.expected_s, self.after_s)

    def _why(self, host: Host, state: UnitState) -> str:
        quoted = first_error(host, self.log, self.folder)
        if state.result == "oom-kill":
            why = f"{self.words} took more than its {self.limits.memory_mib} MiB of memory: lower jobs"
        elif state.result == "timeout":
            why = f"{self.words} did not end in time ([engine.rebuild] timeout_s)"
        else:
            why = f"{self.words} failed" + ("" if quoted else f" ({state.result} {state.exec_main_status})")
        return f"{why}: {quoted} (log: {self.log})" if quoted else f"{why} (log: {self.log})"


def remaining_s(percent: float | None, spent_s: float, expected_s: float | None, after_s: float) -> float | None:
    """How long it still takes, seconds: by the earlier build at first, ever more by how fast this one is. Pure."""
    by_past = None if expected_s is None else max(0.0, expected_s - spent_s)
    if not percent or percent < 1.0:
        return None if by_past is None else by_past + after_s
    by_speed = spent_s * (100.0 - percent) / percent
    if by_past is None:
        return by_speed + after_s if percent >= 5.0 else None
    return by_past * (1.0 - percent / 100.0) + by_speed * percent / 100.0 + after_s


def first_error(host: Host, log: str, folder: str) -> str:
    """The first error in a build's log, "" when there is none or it cannot be read."""
    try:
        return build_log.first_error(host.files.read_text(log, LOG_LIMIT), folder)
    except FileTrouble:
        return build_log.first_error(_tail(host, log), folder)


def _tail(host: Host, log: str) -> str:
    try:
        return host.run(["tail", f"--bytes={TAIL_BYTES}", "--", log], timeout_s=5.0).stdout
    except CommandFailed:
        return ""
