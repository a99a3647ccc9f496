"""Whose hand stopped a unit: an operator's, which is left alone, or nobody's, which is a fault.

The runner notes every stop of its own in `/var/lib/holdfast-runner/stops/UNIT.json` as
`{"invocation_id", "at", "run"}`, so that its stop is not taken for an operator's.
"""

from __future__ import annotations

import json
import signal

from agent.errors import HostError
from agent.host import Host
from agent.host.journal import STOPPING, stopped_by_job
from agent.host.systemd import UnitState

OUR_STOPS = "/var/lib/holdfast-runner/stops"
BY_AN_OPERATOR = "stopped by an operator"
"""What `operators_hand` says of a unit that a stop job of somebody else ended."""


def operators_hand(host: Host, state: UnitState, last_invocation: str = "") -> tuple[bool | None, str]:
    """Whether an operator keeps this unit from running, and how; None when that cannot be told.

    (False, "stopped by a run of ours") is neither an operator's hand nor a death.

    last_invocation: the invocation seen running last, for units that systemd has forgotten meanwhile. A unit that
    runs, or is about to, is kept by nobody. Never raises: what cannot be read cannot be told.
    """
    if state.active_state not in ("inactive", "failed") or state.job:
        return False, ""
    if state.load_state == "not-found":
        return None, "there is no such unit"
    for word in ("masked", "disabled"):
        if state.load_state == word or state.unit_file_state.startswith(word):
            return True, f"{word} by an operator"
    return _asked_for(host, state.unit, state.invocation_id or last_invocation)


def _asked_for(host: Host, unit: str, invocation: str) -> tuple[bool | None, str]:
    """Whether an operator asked for the end of this run, as the journal tells it."""
    try:
        stop = stopped_by_job(host, unit, invocation or None)
    except HostError as error:
        return None, f"the journal cannot be read: {error.message}"
    if stop is None:
        return (False, "") if invocation else (None, "nothing is known of its last run")
    if _ours(host, unit, stop.invocation_id or invocation):
        return False, "stopped by a run of ours"
    return True, BY_AN_OPERATOR


def end_was_asked_for(host: Host, unit: str, invocation: str) -> bool:
    """Whether a job began to stop this run of the unit, be it for a restart; what cannot be read was none."""
    argv = ("journalctl", "--quiet", "--no-pager", "--output=json", "--output-fields=JOB_TYPE", "--lines=1")
    words = ("_PID=1", f"UNIT={unit}", f"MESSAGE_ID={STOPPING}", f"INVOCATION_ID={invocation}")
    try:
        return bool(host.run((*argv, *words), timeout_s=JOURNAL_TIMEOUT_S).stdout.strip())
    except HostError:
        return False


def _ours(host: Host, unit: str, invocation: str) -> bool:
    """Whether the runner stopped this very invocation."""
    try:
        note = json.loads(host.files.read_text(f"{OUR_STOPS}/{unit}.json", limit=4096))
    except (HostError, ValueError):
        return False
    return isinstance(note, dict) and note.get("invocation_id") == invocation


def how_it_ended(state: UnitState) -> str:
    """How the unit's last run ended, in a few words for a phone; "" when there is nothing to tell."""
    if state.load_state == "not-found":
        return "there is no such unit"
    code = {"1": "exited", "2": "killed", "3": "dumped"}.get(str(state.exec_main_code), str(state.exec_main_code))
    if code in ("killed", "dumped"):
        return _ended(code, str(state.exec_main_status))
    if state.result in _RESULTS:
        return _RESULTS[state.result]
    if code == "exited":
        return _ended(code, str(state.exec_main_status))
    return "" if state.result in ("success", "") else state.result


def last_exit(host: Host, unit: str, since_wall: float) -> str:
    """How the unit's main process last ended since then (Unix seconds), as systemd noted it; "" when it did not.

    Needed where systemd has started it again since: the unit's own properties then describe the new process.
    """
    argv = ("journalctl", "--quiet", "--output=json", "--output-fields=EXIT_CODE,EXIT_STATUS", "--lines=1")
    try:
        done = host.run(
            (*argv, "_PID=1", f"--since=@{since_wall:.0f}", f"MESSAGE_ID={PROCESS_EXITED}", f"UNIT={unit}"),
            timeout_s=JOURNAL_TIMEOUT_S,
        )
        said = json.loads(done.stdout.strip() or "null")
    except (HostError, ValueError):
        return ""
    if not isinstance(said, dict):
        return ""
    return _ended(str(said.get("EXIT_CODE", "")), str(said.get("EXIT_STATUS", "")))


PROCESS_EXITED = "98e322203f7a4ed290d09fe03c09fe15"
"""sd-messages.h, SD_MESSAGE_UNIT_PROCESS_EXIT: EXIT_CODE is "exited", "killed" or "dumped"; EXIT_STATUS a number
or the signal's name."""
JOURNAL_TIMEOUT_S = 5.0

_RESULTS = {
    "timeout": "did not start or stop in time",
    "watchdog": "its watchdog was not fed",
    "oom-kill": "killed because memory ran out",
    "start-limit-hit": "started too often, systemd gave up",
    "resources": "systemd could not set up what it needs",
    "protocol": "did not behave as its unit type must",
}
_EXITS = {
    126: "the program cannot be executed",
    127: "the program or a library of it is missing",
    200: "its working directory is missing",
    203: "systemd could not execute the program",
    216: "its group does not exist",
    217: "its user does not exist",
}
"""systemd.exec(5), "Process exit codes"."""


def _ended(code: str, status: str) -> str:
    """Say "exit 127 (...)" or "killed by SIGKILL", from systemd's words or numbers."""
    if code in ("killed", "dumped"):
        name = _signal_name(int(status)) if status.isdigit() else f"SIG{status}"
        return f"killed by {name}" + (" and dumped its core" if code == "dumped" else "")
    if code != "exited" or not status.isdigit():
        return ""
    words = _EXITS.get(int(status), "")
    return f"exit {status}" + (f" ({words})" if words else "")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
