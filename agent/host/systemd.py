"""What systemd says of units, through systemctl: only asked, never changed here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from agent.errors import CommandFailed
from agent.host import Completed, Host

TIMEOUT_S = 5.0
"""systemctl answers in milliseconds; a manager that takes longer is itself a fault."""
_PROPERTIES = (
    "Id,LoadState,ActiveState,SubState,Result,UnitFileState,MainPID,ExecMainCode,ExecMainStatus,NRestarts,"
    "InvocationID,ControlGroup,Restart,Job,ActiveEnterTimestampMonotonic,InactiveEnterTimestampMonotonic,"
    "StateChangeTimestampMonotonic,ExecMainStartTimestampMonotonic,ExecMainExitTimestampMonotonic,TimeoutStartUSec,"
    "TimeoutStopUSec,RestartUSec,WatchdogUSec,User,FragmentPath,NeedDaemonReload"
)
_SPAN = re.compile(r"(\d+(?:\.\d+)?)(us|ms|s|min|h|d|w|month|y)\b")
_SPAN_S = {
    "us": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "min": 60.0,
    "h": 3600.0,
    "d": 86400.0,
    "w": 604800.0,
    "month": 2629800.0,
    "y": 31557600.0,
}  # fmt: skip  (systemd.time(7))


@dataclass(frozen=True, slots=True)
class UnitState:
    """One unit as systemd sees it. Words are systemd's own ("active", "failed", "not-found", "on-failure").

    main_pid: 0 when there is none. exec_main_code: si_code of the last main process (1 exited, 2 killed, 3 dumped;
    0 when none has ended), exec_main_status its exit status or signal. job: something is queued for it.
    *_boot_s: seconds on the boot clock, None when it never happened. timeout_*_s, watchdog_s: None is "infinity" or
    unset. unit_file_state: "" for a transient or missing unit.
    """

    unit: str
    load_state: str
    active_state: str
    sub_state: str
    result: str
    unit_file_state: str
    main_pid: int
    exec_main_code: int
    exec_main_status: int
    n_restarts: int
    invocation_id: str
    control_group: str
    restart: str
    job: bool
    active_enter_boot_s: float | None = None
    inactive_enter_boot_s: float | None = None
    state_change_boot_s: float | None = None
    main_start_boot_s: float | None = None
    main_exit_boot_s: float | None = None
    timeout_start_s: float | None = None
    timeout_stop_s: float | None = None
    restart_s: float | None = None
    watchdog_s: float | None = None
    user: str = ""
    fragment_path: str = ""
    need_daemon_reload: bool = False

    @property
    def running(self) -> bool:
        """Whether its main process lives, in whatever phase."""
        return self.main_pid > 0

    @property
    def settled(self) -> bool:
        """Whether systemd itself is not about to do something with it: no job, not between two states.

        `auto-restart` and `auto-restart-queued` (from systemd 254) are sub-states of activating.
        """
        return not self.job and self.active_state in ("active", "inactive", "failed")


def unit_state(host: Host, unit: str) -> UnitState:
    """The state of a unit; a unit that does not exist has load_state "not-found".

    Raises CommandFailed when systemd cannot be asked (not running here, no answer in time).
    """
    answer = _systemctl(host, "show", f"--property={_PROPERTIES}", "--", unit)
    found = dict(line.split("=", 1) for line in answer.stdout.splitlines() if "=" in line)
    if "LoadState" not in found:
        raise CommandFailed(f"systemctl show {unit}: not understood", where=unit, code="systemd-unknown")
    return _state(unit, found, host.clock.suspended_s())


def program(host: Host, unit: str) -> str:
    """The file that a unit's (first) ExecStart runs, "" when it has none. Its arguments, which may hold secrets, are
    not looked at. Raises CommandFailed.
    """
    answer = _systemctl(host, "show", "--property=ExecStart", "--", unit)
    found = re.search(r"^ExecStart=\{ path=(\S+) ;", answer.stdout, re.MULTILINE)
    return found[1] if found else ""


def units(host: Host) -> list[str]:
    """The names of all running service units. Raises CommandFailed."""
    answer = _systemctl(
        host, "list-units", "--type=service", "--state=running", "--plain", "--no-legend", "--no-pager", "--full"
    )
    return [line.split()[0] for line in answer.stdout.splitlines() if line.strip()]


def unit_of_pid(host: Host, pid: int) -> str | None:
    """The system service a process belongs to; None for a scope (a login, a container) or a user's own service.

    Raises FileTrouble(missing) when the process is gone.
    """
    for line in host.files.read_text(f"/proc/{pid}/cgroup").splitlines():
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if (number == "0" and not controllers) or controllers == "name=systemd":
            unit = _unit_in(path)
            if unit is not None:
                return unit
    return None


def _unit_in(path: str) -> str | None:
    """The first part of a control group's path that is no slice, as systemd's own cg_path_get_unit."""
    for part in path.split("/"):
        # ".." : a process outside this cgroup namespace; "_" is systemd's escape for names like "cgroup.service"
        if part in ("", "..") or part.endswith(".slice"):
            continue
        name = part.removeprefix("_")
        if not name.endswith(".service") or re.fullmatch(r"user@\d+\.service", name):
            return None
        return name
    return None


def _systemctl(host: Host, *words: str) -> Completed:
    answer = host.run(["systemctl", *words], timeout_s=TIMEOUT_S, env={"SYSTEMD_COLORS": "0", "SYSTEMD_PAGER": ""})
    if answer.rc != 0:
        reason = answer.stderr.strip().splitlines()
        raise CommandFailed(
            f"systemctl {words[0]} ended with status {answer.rc}: {reason[-1] if reason else 'no reason given'}",
            code="systemd-unknown",
        )
    return answer


def _state(unit: str, found: Mapping[str, str], suspended_s: float) -> UnitState:
    def stamp(name: str) -> float | None:
        """Systemd stamps with the monotonic clock, which stands still in suspend; ours is the boot clock."""
        usec = _number(found.get(f"{name}TimestampMonotonic", ""))
        return usec / 1e6 + suspended_s if usec else None

    return UnitState(
        unit=found.get("Id") or unit,
        load_state=found["LoadState"],
        active_state=found.get("ActiveState", ""),
        sub_state=found.get("SubState", ""),
        result=found.get("Result", ""),
        unit_file_state=found.get("UnitFileState", ""),
        main_pid=_number(found.get("MainPID", "")),
        exec_main_code=_number(found.get("ExecMainCode", "")),
        exec_main_status=_number(found.get("ExecMainStatus", "")),
        n_restarts=_number(found.get("NRestarts", "")),
        invocation_id=found.get("InvocationID", ""),
        control_group=found.get("ControlGroup", ""),
        restart=found.get("Restart", ""),
        job=found.get("Job", "") not in ("", "0"),
        active_enter_boot_s=stamp("ActiveEnter"),
        inactive_enter_boot_s=stamp("InactiveEnter"),
        state_change_boot_s=stamp("StateChange"),
        main_start_boot_s=stamp("ExecMainStart"),
        main_exit_boot_s=stamp("ExecMainExit"),
        timeout_start_s=_span(found.get("TimeoutStartUSec", "")),
        timeout_stop_s=_span(found.get("TimeoutStopUSec", "")),
        restart_s=_span(found.get("RestartUSec", "")),
        watchdog_s=_span(found.get("WatchdogUSec", "")) or None,
        user=found.get("User", ""),
        fragment_path=found.get("FragmentPath", ""),
        need_daemon_reload=found.get("NeedDaemonReload", "") == "yes",
    )


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0


def _span(text: str) -> float | None:
    """Seconds of a time span as systemctl prints it ("1min 30s", "100ms", "0"); None for infinity or nothing."""
    if text == "0":
        return 0.0
    parts = _SPAN.findall(text)
    return sum(float(number) * _SPAN_S[unit] for number, unit in parts) if parts else None
