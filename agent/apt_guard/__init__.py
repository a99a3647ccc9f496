"""The apt guard: apt asks it before every transaction, and it refuses one that would move the locked driver.

It runs as root inside every apt run, between the download and dpkg. So it stands alone on `host`, `errors` and `model`,
uses nothing but the standard library, and whatever goes wrong with it lets apt go on with a warning: exit 77 is its
only veto, anything else passes (/etc/apt/apt.conf.d/80holdfast).
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from agent.apt_guard import box, judge, transaction
from agent.apt_guard.judge import Judgement, Reason
from agent.apt_guard.transaction import Transaction
from agent.errors import FileTrouble, HoldfastError
from agent.host import Host, changes, driver, syslog, vetoes
from agent.host.changes import Change
from agent.host.debs import Described
from agent.host.real import real_host
from agent.host.vetoes import Veto

VETO = 77
TAG = "holdfast-apt-guard"
LOGGED = 10
"""How many reasons of one refusal the system's log is told."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the guard says: whether apt may go on, the lines for the terminal, and what the system's log is told."""

    passes: bool
    lines: tuple[str, ...] = ()
    log: tuple[str, ...] = ()


def main() -> int:
    """Read apt's words from stdin and answer with the exit code: 77 refuses, 0 lets go on. Never raises."""
    answer = Answer(passes=True)
    try:
        said = _read()
        answer = ask(real_host(), said)
    except Exception as error:  # noqa: BLE001 - a guard that fails must not stand in the way of a security update
        answer = _unsure(f"{type(error).__name__}: {error}")
    with contextlib.suppress(Exception):  # a terminal that is gone changes nothing about the answer
        for line in answer.log:
            syslog.warn(TAG, line)
        for line in answer.lines:
            sys.stderr.write(f"holdfast: {line}\n")
        sys.stderr.flush()
    return 0 if answer.passes else VETO


def ask(host: Host, said: bytes) -> Answer:
    """Whether this transaction may go on. Records a veto for the daemon. Never raises."""
    try:
        lock = driver.read_lock(host)
        if lock.problem == "absent":
            return Answer(passes=True)
        wanted = transaction.parse(said)
        if not box.concerned(wanted):
            return Answer(passes=True)
        if lock.version is None:
            return _unsure(f"{lock.problem}: {lock.detail}")
        return _judged(host, wanted, lock.version)
    except HoldfastError as error:
        return _unsure(error.message)
    except Exception as error:  # noqa: BLE001 - see main
        return _unsure(f"{type(error).__name__}: {error}")


def _judged(host: Host, wanted: Transaction, locked: str) -> Answer:
    """The answer to a transaction that touches the driver or a kernel. Raises HostError."""
    notes: tuple[str, ...] = ()
    change = None
    try:
        change = changes.read(host)
    except FileTrouble as error:  # a change that cannot be read permits nothing
        notes = (error.message,)
    seen = box.look(host, wanted)
    found = judge.judge(locked, change, seen.moves, seen.kernels, seen.staying)
    notes = (*notes, *seen.notes, *found.notes)
    late = _late(host, change) if change else ""
    if found.reasons:
        who = wanted.command or "a transaction"
        log = (f"refused {who}: {each.package}: {each.words}" for each in found.reasons[:LOGGED])
        trouble = _record(host, wanted, locked, found)
        return Answer(False, _words(locked, change, late, found), (*log, *([trouble] if trouble else [])))
    lines = [f"note: {note}" for note in notes]
    if change and any(_comes(move.after, change.to) for move in seen.moves):
        lines.append(f"let through by the planned change: {change.words}")
    if late:
        lines.append(late)
    return Answer(True, tuple(lines), notes)


def _words(locked: str, change: Change | None, late: str, found: Judgement) -> tuple[str, ...]:
    """The refusal for a terminal: at most six lines, one fact each."""
    lines = [f"refused, and nothing was changed: driver {locked} is locked ({driver.LOCK_FILE})"]
    about_kernels = [reason for reason in found.reasons if _about_kernel(reason)]
    for group in ([each for each in found.reasons if not _about_kernel(each)], about_kernels):
        if group:
            more = f" (and {len(group) - 1} more)" if len(group) > 1 else ""
            lines.append(f"{group[0].package}: {group[0].words}{more}")
    if change:
        lines.append(f"the planned change that is open is another one: {change.words}{f'; {late}' if late else ''}")
    lines.append(_way(found.reasons, change))
    lines.append("to leave it as it is: sudo holdfast hold, so that apt no longer offers it")
    return tuple(lines)


def _way(reasons: Sequence[Reason], change: Change | None) -> str:
    """How to do all the same what was refused."""
    leads = next((reason.leads for reason in reasons if reason.leads), "")
    way = next((reason.way for reason in reasons if reason.way), "")
    if not leads and way:
        return way
    first = "" if change is None else "finish or abort that change (sudo holdfast change status), then "
    to = f"--to {leads}" if leads else "--to VERSION"
    return f'to do it: {first}sudo holdfast change begin {to} --reason "…", then repeat'


def _about_kernel(reason: Reason) -> bool:
    return reason.words.startswith("kernel ")


def _comes(after: Described | None, version: str) -> bool:
    return after is not None and after.driver_version == version


def _late(host: Host, change: Change) -> str:
    over_s = change.overdue_s(host.clock.now())
    return f"this change is {over_s / 3600:.1f} h past its window: sudo holdfast change status" if over_s > 0 else ""


def _record(host: Host, wanted: Transaction, locked: str, found: Judgement) -> str:
    """Leave the refusal for the daemon; why that failed, "" when it did not."""
    first = found.reasons[0]
    reason = f"{first.words}; the lock says {locked}"
    try:
        now = host.clock.now()
        vetoes.record(host, Veto(now.wall, now.boot_id, wanted.command, wanted.unattended, first.package, reason))
    except HoldfastError as error:
        return error.message
    return ""


def _unsure(why: str) -> Answer:
    """Let through what the guard cannot judge, and say so."""
    words = f"apt guard: cannot tell what this does to the driver, so it goes on: {' '.join(why.split())[:300]}"
    return Answer(True, (words,), (words,))


def _read() -> bytes:
    """What apt says, read to its end, so that apt never writes to nobody. Raises ValueError above the limit."""
    said = sys.stdin.buffer.read(transaction.LIMIT)
    if sys.stdin.buffer.read(1):
        while sys.stdin.buffer.read(1 << 20):
            pass
        raise ValueError(f"apt said more than {transaction.LIMIT} bytes")
    return said
