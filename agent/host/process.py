"""What /proc and the control groups say of processes: who they are, whether each thread moves, what holds them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from agent.errors import FileTrouble
from agent.host import Host

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
# Indexes into /proc/PID/stat after the command name, from proc(5): field 3 (state) is 0.
_STATE, _MAJOR_FAULTS, _USER_TICKS, _SYSTEM_TICKS, _START_TICKS, _BLKIO_TICKS = 0, 9, 11, 12, 19, 39
_CGROUPS = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")


@dataclass(frozen=True, slots=True)
class ThreadReading:
    """One thread at one moment; all counters only ever grow.

    state: the kernel's letter. cpu_ns: time on a CPU. blkio_ticks: clock ticks waited for block devices, always 0
    where the kernel does not account delays (kernel.task_delayacct, off since Linux 5.14).
    """

    tid: int
    name: str
    state: str
    cpu_ns: int
    major_faults: int
    voluntary_switches: int
    blkio_ticks: int


@dataclass(frozen=True, slots=True)
class KernelWait:
    """Where one thread waits in the kernel; `wchan` is "" when it runs, None when we may not know."""

    tid: int
    name: str
    state: str
    wchan: str | None


@dataclass(frozen=True, slots=True)
class Pressure:
    """Pressure of a control group over the last 10 seconds, in percent of time; None where it is not measured."""

    cpu_some: float | None
    memory_full: float | None
    io_full: float | None


def threads(host: Host, pid: int, only_main: bool) -> tuple[ThreadReading, ...]:
    """The threads of a process, or only its main one. Threads that end meanwhile are left out.

    Raises FileTrouble(missing) when the process is gone.
    """
    found = []
    for tid in _tids(host, pid, only_main):
        try:
            found.append(_thread(host, pid, tid))
        except FileTrouble as trouble:
            if only_main or trouble.kind != "missing":
                raise
    if not found:
        raise FileTrouble(f"process {pid} is gone", kind="missing", where=f"/proc/{pid}")
    return tuple(found)


def started_boot_s(host: Host, pid: int) -> float:
    """When a process started, on the boot clock. With the pid it names a process for good. Raises FileTrouble."""
    _, fields = _stat(host, f"/proc/{pid}/stat")
    return int(fields[_START_TICKS]) / _TICKS_PER_S


def unit_of(host: Host, pid: int) -> str:
    """The systemd unit (service or scope) whose control group a process is in, "" for none. Raises FileTrouble."""
    text = host.files.read_text(f"/proc/{pid}/cgroup")
    groups = dict(line.split(":", 2)[1:] for line in text.splitlines() if line.count(":") >= 2)
    path = groups.get("") if groups.get("", "/") != "/" else groups.get("name=systemd", "")
    return next((part for part in reversed((path or "").split("/")) if part.endswith((".service", ".scope"))), "")


def command_line(host: Host, pid: int) -> tuple[str, ...]:
    """A process's arguments, empty for a kernel thread or a zombie. They may hold secrets: `redact_argv` before
    anything is stored, logged or sent. Raises FileTrouble.
    """
    text = host.files.read_text(f"/proc/{pid}/cmdline")
    return tuple(text.rstrip("\0").split("\0")) if text.rstrip("\0") else ()


def core_dumping(host: Host, pid: int) -> bool:
    """Whether the kernel is writing the process's core. Raises FileTrouble."""
    return _field(host.files.read_text(f"/proc/{pid}/status"), "CoreDumping") == "1"


def kernel_wait(host: Host, pid: int) -> tuple[KernelWait, ...]:
    """Where each thread waits in the kernel; for another user's process only root may know. Raises FileTrouble."""
    found = []
    for tid in _tids(host, pid, only_main=False):
        folder = f"/proc/{pid}/task/{tid}"
        try:
            name, fields = _stat(host, f"{folder}/stat")
        except FileTrouble as trouble:
            if trouble.kind == "missing":
                continue
            raise
        found.append(KernelWait(tid, name, fields[_STATE], _wchan(host, folder)))
    return tuple(found)


def cgroup_pids(host: Host, control_group: str) -> tuple[int, ...]:
    """Every process in a control group ("/system.slice/x.service") and below it; empty when the group is gone.

    Raises FileTrouble, also when no cgroup v2 tree is mounted: an unseen group is not an empty one.
    """
    found: set[int] = set()
    for folder in _below(host, _cgroup(host, control_group)):
        try:
            found.update(int(word) for word in host.files.read_text(f"{folder}/cgroup.procs").split())
        except FileTrouble as trouble:
            if trouble.kind != "missing":
                raise
    return tuple(sorted(found))


def cgroup_frozen(host: Host, control_group: str) -> bool:
    """Whether a control group, or one above it, is frozen (`systemctl freeze`); False when it is gone."""
    try:
        events = host.files.read_text(f"{_cgroup(host, control_group)}/cgroup.events")
    except FileTrouble as trouble:
        if trouble.kind == "missing":
            return False
        raise
    return re.search(r"^frozen 1$", events, re.MULTILINE) is not None


def pressure(host: Host, control_group: str) -> Pressure:
    """How hard a control group is held up for lack of CPU, memory and IO (PSI); each None where not measured."""
    folder = _cgroup(host, control_group)
    return Pressure(
        cpu_some=_avg10(host, f"{folder}/cpu.pressure", "some"),
        memory_full=_avg10(host, f"{folder}/memory.pressure", "full"),
        io_full=_avg10(host, f"{folder}/io.pressure", "full"),
    )


# --- redaction -----------------------------------------------------------------------------------------------

REDACTED = "[redacted]"
_SECRET = re.compile(
    r"(?:^|[-_.])(?:api[-_]?keys?|token|secrets?|passwords?|passwd|pwd|credentials?|auth|authorization|"
    r"private[-_]?key|access[-_]?key|routing[-_]?key|integration[-_]?key|keys?)$",
    re.IGNORECASE,
)
_PROMPT = re.compile(r"^-{1,2}(?:p|prompt|system-prompt|sys|in-prefix|in-suffix|chat-template|grammar)$")
_PUBLIC = re.compile(r"(?:-file|-path|_file|_path)$")
_USERINFO = re.compile(r"(?<=://)[^/@\s]+@")
_KNOWN = re.compile(r"\b(?:sk-|hf_|ghp_|xox[abp]-|glpat-|AKIA)[A-Za-z0-9_-]{8,}|\bBearer\s+\S+", re.IGNORECASE)


def redact_argv(argv: Iterable[str]) -> tuple[str, ...]:
    """Arguments without secrets and prompts: the values of options and NAME=VALUE words that say they are secret,
    passwords in addresses, and words that look like well-known tokens.
    """
    clean: list[str] = []
    hide = False
    for word in argv:
        if hide and not _is_option(word):
            clean.append(REDACTED)
            hide = False
            continue
        name, equals, _ = word.partition("=")
        hide = _says_secret(name) and not equals and word.startswith("-")
        if equals and _says_secret(name):
            clean.append(f"{name}={REDACTED}")
        else:
            clean.append(_KNOWN.sub(REDACTED, _USERINFO.sub(f"{REDACTED}@", word)))
    return tuple(clean)


def _is_option(word: str) -> bool:
    return re.match(r"--[a-z]", word) is not None


def _says_secret(name: str) -> bool:
    if _PUBLIC.search(name):
        return False
    return _SECRET.search(name.lstrip("-")) is not None or _PROMPT.match(name) is not None


# --- reading -------------------------------------------------------------------------------------------------


def _tids(host: Host, pid: int, only_main: bool) -> list[int]:
    return [pid] if only_main else sorted(int(name) for name in host.files.listdir(f"/proc/{pid}/task"))


def _thread(host: Host, pid: int, tid: int) -> ThreadReading:
    folder = f"/proc/{pid}/task/{tid}"
    name, fields = _stat(host, f"{folder}/stat")
    return ThreadReading(
        tid=tid,
        name=name,
        state=fields[_STATE],
        cpu_ns=_cpu_ns(host, folder, fields),
        major_faults=int(fields[_MAJOR_FAULTS]),
        voluntary_switches=int(_field(host.files.read_text(f"{folder}/status"), "voluntary_ctxt_switches") or 0),
        blkio_ticks=int(fields[_BLKIO_TICKS]),
    )


def _cpu_ns(host: Host, folder: str, fields: list[str]) -> int:
    """Nanoseconds on a CPU; from whole clock ticks on a kernel without scheduler statistics."""
    try:
        return int(host.files.read_text(f"{folder}/schedstat").split()[0])
    except (FileTrouble, IndexError, ValueError):
        return (int(fields[_USER_TICKS]) + int(fields[_SYSTEM_TICKS])) * 1_000_000_000 // _TICKS_PER_S


def _stat(host: Host, path: str) -> tuple[str, list[str]]:
    """The command name and the fields after it. The name may hold spaces and parentheses: its end is the last ")"."""
    before, _, after = host.files.read_text(path).rpartition(")")
    fields = after.split()
    if len(fields) <= _BLKIO_TICKS:
        raise FileTrouble(f"{path} is not understood", kind="malformed", where=path)
    return before.partition("(")[2], fields


def _field(text: str, name: str) -> str:
    found = re.search(rf"^{name}:\s*(\S*)", text, re.MULTILINE)
    return found[1] if found else ""


def _wchan(host: Host, folder: str) -> str | None:
    try:
        name = host.files.read_text(f"{folder}/wchan").strip()
    except FileTrouble:
        return None
    return "" if name == "0" else name


def _cgroup(host: Host, control_group: str) -> str:
    """Where the cgroup v2 tree shows this group: at the top, or beside v1 as on hybrid hosts."""
    if not control_group.startswith("/") or ".." in control_group.split("/"):
        raise FileTrouble(f"{control_group!r} is not a control group", kind="malformed", where=control_group)
    for top in _CGROUPS:
        if host.files.exists(f"{top}/cgroup.controllers"):
            return top + control_group.rstrip("/")
    raise FileTrouble("no cgroup v2 tree is mounted", kind="other", where=_CGROUPS[0])


def _below(host: Host, folder: str) -> Iterator[str]:
    """The group and every group below it."""
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        yield here
        try:
            names = host.files.listdir(here)
        except FileTrouble as trouble:
            if trouble.kind == "missing":
                continue
            raise
        for name in names:
            try:
                if host.files.stat(f"{here}/{name}").is_dir:
                    waiting.append(f"{here}/{name}")
            except FileTrouble as trouble:
                if trouble.kind != "missing":
                    raise


def _avg10(host: Host, path: str, row: str) -> float | None:
    try:
        found = re.search(rf"^{row} avg10=([\d.]+)", host.files.read_text(path), re.MULTILINE)
    except FileTrouble:  # switched off: no file, or one that cannot be read
        return None
    return float(found[1]) if found else None
