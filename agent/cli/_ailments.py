"""What `holdfast doctor` looks for: everything that would make the next bad night worse, each with its fix.

One function per area, from facts gathered once; it yields what is wrong and nothing where all is well. What cannot be
told is UNKNOWN, never OK.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.cli import lock
from agent.cli._memory import LedgerView
from agent.cli._result import rfc3339
from agent.cli.status import Remembered, lives
from agent.errors import FileTrouble, HoldfastError, HostError
from agent.model import Moment, Status

if TYPE_CHECKING:
    from agent.config import Config
    from agent.errors import ConfigurationError
    from agent.host import Host
    from agent.runbook import Runbook

UNTESTED_S = 30 * 86400.0
"""A receiver that took nothing for this long may have lost its key without anyone noticing."""
REFUSED_WITHIN_S = 86400.0
SLOW_STOP_S = 60.0
"""A stop that may take longer than this is what a person waits for when she restarts by hand."""
SECRETS = "/etc/holdfast/secrets"
SUSPICIOUS = frozenset({"operators-only", "permission", "request-invalid", "request-too-large", "unknown-runbook"})
"""Refusals that no honest client asks for."""


@dataclass(frozen=True, slots=True)
class Ailment:
    """One thing that is not as it should be. OK is a note: no fault, but good to know."""

    id: str
    status: Status
    what: str
    fix: str


@dataclass(frozen=True, slots=True)
class Facts:
    """What the functions below look at. `broken`: the mistakes of a configuration that cannot be used."""

    host: Host
    now: Moment
    config: Config | None
    broken: ConfigurationError | None
    remembered: Remembered | None
    unread: str
    ledger: LedgerView
    root: bool


def _daemon(facts: Facts) -> Iterator[Ailment]:
    """Whether the daemon lives and remembers."""
    start = "sudo systemctl enable --now holdfast; journalctl -u holdfast"
    if facts.remembered is None:
        yield Ailment("daemon", Status.CRITICAL, facts.unread or "the daemon has never run here", start)
        return
    note = facts.remembered.note
    if not lives(facts.remembered, facts.now):
        yield Ailment("daemon", Status.CRITICAL, "the daemon is down: nothing is watched", start)
    if note.problem:
        yield Ailment("daemon-problem", Status.WARNING, note.problem, "holdfast check --config; journalctl -u holdfast")
    if facts.remembered.degraded:
        yield Ailment(
            "store", Status.CRITICAL, facts.remembered.degraded, "make room or repair the disk below /var/lib/holdfast"
        )
    for (check, _), result in facts.remembered.results.items():
        if check.startswith("holdfast.") and check != "holdfast.rehearsal" and result.status is not Status.OK:
            yield Ailment(check, result.status, result.summary, f"holdfast explain {check}; journalctl -u holdfast")


def _units(facts: Facts) -> Iterator[Ailment]:
    """Whether our own sockets listen, and whether they had to turn anyone away."""
    from agent.host import systemd

    for unit, why in (
        ("holdfast-runner.socket", "nothing can be repaired"),
        ("holdfast-inspect.socket", "checks that need root cannot be made"),
    ):
        state = systemd.unit_state(facts.host, unit)
        if state.load_state != "loaded":
            yield Ailment(
                unit,
                Status.CRITICAL,
                f"{unit} is not installed: {why}",
                "reinstall: sudo apt install --reinstall holdfast",
            )
        elif state.active_state != "active":
            words = f"{unit} is {state.active_state} ({state.result or 'no result'}): {why}"
            yield Ailment(
                unit, Status.CRITICAL, words, f"sudo systemctl reset-failed {unit}; sudo systemctl start {unit}"
            )
        turned_away = _property(facts.host, unit, "NRefused")
        if turned_away.isdigit() and int(turned_away):
            words = f"{unit} refused {turned_away} connections: something floods it"
            yield Ailment(f"{unit}-refused", Status.WARNING, words, f"journalctl -u {unit}; holdfast audit show")
    recover = systemd.unit_state(facts.host, "holdfast-recover.service")
    if recover.active_state == "failed":
        fix = "journalctl -u holdfast-recover; sudo systemctl restart holdfast-recover"
        yield Ailment("recover", Status.CRITICAL, "a run that was cut off could not be finished or undone", fix)


def _ledger(facts: Facts) -> Iterator[Ailment]:
    """Whether the record of actions is whole, and whether anyone asked for what they may not."""
    from agent import ledger

    if facts.ledger.unread is not None:
        yield Ailment("ledger", Status.UNKNOWN, facts.ledger.unread.message, facts.ledger.unread.hint)
        return
    for problem in facts.ledger.problems[:3]:
        yield Ailment(
            "ledger", Status.CRITICAL, f"the record of actions is not whole: {problem}", "holdfast audit verify"
        )
    odd = [
        r
        for r in ledger.refusals(facts.ledger.records, facts.now, REFUSED_WITHIN_S)
        if r.data.get("code") in SUSPICIOUS
    ]
    if odd:
        count = sum(int(each.data.get("count") or 1) for each in odd)
        who = ", ".join(sorted({f"uid {each.data.get('uid')}" for each in odd}))
        words = f"{count} requests that nobody honest makes were refused within a day, from {who}"
        yield Ailment("refused-requests", Status.WARNING, words, "holdfast audit show")
    paused = ledger.paused(facts.ledger.records, facts.now)
    if paused is not None:
        words = f"acting is paused: {paused.reason or 'no reason given'}"
        yield Ailment("paused", Status.WARNING, words, "sudo holdfast resume")


def _configuration(facts: Facts) -> Iterator[Ailment]:
    """Whether the configuration can be used, and what it leaves undone."""
    if facts.broken is not None:
        for mistake in facts.broken.mistakes:
            yield Ailment("configuration", Status.CRITICAL, str(mistake), "correct it; holdfast check --config")
    if facts.config is None:
        return
    if not facts.config.engines:
        yield Ailment("no-engine", Status.WARNING, "no engine is configured: nothing is watched", "sudo holdfast init")
    if facts.config.autonomy.mode.value == "observe":
        words = "autonomy is observe: Holdfast says what it would do, and repairs nothing"
        yield Ailment(
            "autonomy", Status.WARNING, words, 'set [autonomy] mode = "act" in /etc/holdfast/holdfast.toml and reload'
        )
    if facts.config.heartbeat is None:
        words = "no heartbeat: nobody notices when this host goes silent"
        yield Ailment("no-heartbeat", Status.WARNING, words, "add [heartbeat] url = … (healthchecks.io or your own)")


def _pager(facts: Facts) -> Iterator[Ailment]:
    """Whether a page would arrive."""
    if facts.config is None:
        return
    if not facts.config.receivers:
        fix = "sudo holdfast init --print --pagerduty-key-file FILE shows what to add"
        yield Ailment("no-receiver", Status.CRITICAL, "no receiver is configured: nobody is paged", fix)
    known = facts.remembered.receivers if facts.remembered else {}
    for receiver in facts.config.receivers:
        test = f"holdfast pager test {receiver.name}"
        line = known.get(receiver.name)
        if line is not None and line.failing:
            yield Ailment("receiver-failing", Status.CRITICAL, f"{receiver.name} fails: {line.failing}", test)
        elif line is None or line.delivered_at is None:
            yield Ailment("receiver-untested", Status.WARNING, f"{receiver.name} has never taken anything", test)
        elif facts.now.wall - line.delivered_at > UNTESTED_S:
            days = int((facts.now.wall - line.delivered_at) // 86400)
            yield Ailment(
                "receiver-untested", Status.WARNING, f"{receiver.name} has taken nothing for {days} days", test
            )


def _driver(facts: Facts) -> Iterator[Ailment]:
    """Whether driver, libraries and lock agree."""
    status, words = lock.judge(lock.versions(facts.host))
    if status is not Status.OK:
        yield Ailment("driver", status, words, "holdfast lock show; holdfast explain driver.lock")


def _way_back(facts: Facts) -> Iterator[Ailment]:
    """Whether the locked driver could be put back today; nothing where none is locked."""
    from agent.host import driver, saved_driver, saving

    if driver.read_lock(facts.host).version is None:
        return
    save, verify = "sudo holdfast run save-driver", "every checksum: sudo holdfast run restore-driver --dry-run"
    saved_driver.sets(facts.host)  # raises where it may not be looked at, which is no answer
    saved = saving.locked_set(facts.host)
    if isinstance(saved, str):
        yield Ailment("way-back", Status.WARNING, f"the way back would not work: {saved}", save)
        return
    wrong = saved_driver.changed(facts.host, saved)
    tried, free = saved.manifest.tried, facts.host.files.space(saved_driver.FOLDER).bytes_free
    if wrong:
        yield Ailment("way-back", Status.WARNING, f"the way back would not work: {'; '.join(wrong[:3])}", save)
    elif free < saved.manifest.size:
        words = f"the way back has no room: it unpacks {saved.manifest.size >> 20} MiB, {free >> 20} MiB are free"
        yield Ailment("way-back", Status.WARNING, words, "make room on the disk")
    elif tried is not None and not tried.proven and not tried.words.startswith("not tried"):
        yield Ailment("way-back", Status.WARNING, f"the way back did not work when it was tried: {tried.words}", save)
    else:
        when = f"tried {rfc3339(tried.at)}" if tried is not None and tried.proven else "never proven by a trial"
        what = f"driver {saved.manifest.driver} for kernel {saved.manifest.kernel}"
        words = f"the way back is there: {what}, {saved.manifest.size >> 20} MiB, {when}, {free >> 20} MiB free"
        yield Ailment("way-back", Status.OK, words, verify)


def _engines(facts: Facts) -> Iterator[Ailment]:
    """Whether systemd would help or hinder each engine."""
    from agent.host import systemd

    for engine in facts.config.engines if facts.config else ():
        if engine.unit is None:
            fix = "run it as a systemd service and name it: unit = …"
            yield Ailment(
                "engine-without-unit",
                Status.WARNING,
                f"{engine.name} has no unit: it is watched and never restarted",
                fix,
            )
            continue
        state = systemd.unit_state(facts.host, engine.unit)
        if state.load_state != "loaded":
            fix = "correct unit = … in the configuration; systemctl list-units --type=service"
            yield Ailment("engine-unit", Status.CRITICAL, f"{engine.name}: {engine.unit} is {state.load_state}", fix)
            continue
        edit = f"sudo systemctl edit {engine.unit}"
        if state.restart in ("", "no"):
            words = (
                f"{engine.unit} has Restart=no: while Holdfast observes or is down, nothing restarts it after a crash"
            )
            yield Ailment("engine-restart", Status.OK, words, f"{edit}: [Service] Restart=on-failure")
        if state.timeout_stop_s is None or state.timeout_stop_s > SLOW_STOP_S:
            length = "for ever" if state.timeout_stop_s is None else f"{state.timeout_stop_s:g} s"
            words = f"{engine.unit} may take {length} to stop when it hangs: Holdfast does not wait, a reboot does"
            yield Ailment("engine-stop", Status.OK, words, f"{edit}: [Service] TimeoutStopSec=30")


def _rehearsals(facts: Facts) -> Iterator[Ailment]:
    """Whether what would be done in an emergency was tried on a quiet day, and would work today."""
    from agent import rehearsals, runbook
    from agent.facts import has_subject, unfit
    from agent.views import rehearsed

    if facts.config is None:
        return
    books = runbook.load(facts.host.files)
    for book, subject in rehearsals.possible(facts.config, books):
        missing = _missing(facts, facts.config, book, subject) if facts.root else ""
        again = f"sudo holdfast rehearse {book.id} --subject {subject}"
        if missing:
            words = f"{rehearsed.noun(book, subject)} would not work today: {missing}"
            yield Ailment("rehearsal", Status.WARNING, words, f"put that right, then: {again}")
        if facts.ledger.unread is None:
            known = rehearsals.known(facts.ledger.records, book.id, subject)
            status = Status.WARNING if rehearsed.doubtful(book, known, facts.now) else Status.OK
            yield Ailment("rehearsal", status, rehearsed.words(book, subject, known, facts.now), again)
    for book in (each for each in books.by_id.values() if each.rehearsal_every_s is not None):
        for subject in facts.config.subjects():
            why = unfit(facts.config, book, subject) if has_subject(facts.config, book, subject) else ""
            if why:
                yield Ailment("no-rehearsal", Status.OK, why, f"holdfast explain {book.id}")


def _missing(facts: Facts, config: Config, book: Runbook, subject: str) -> str:
    """Why a rehearsal would not even begin now, from the plans of its steps; "" when nothing is missing."""
    from agent.execution import Work, planned
    from agent.facts import seen_by_templates
    from agent.plugin import Refuse
    from agent.transcript import Transcript

    try:
        inputs = book.resolved_inputs({})
        work = Work(facts.host, config, book, subject, inputs, "-", Transcript(facts.host, "-"))
        known = seen_by_templates(facts.host, config, subject, inputs)
        for step in (each for each in book.steps if each.rehearsed):
            plan = planned(work, step, known)[2]
            for refusal in (each for each in plan.steps if isinstance(each, Refuse)):
                return refusal.reason
    except HoldfastError as error:
        return error.message
    return ""


def _unwatched(facts: Facts) -> Iterator[Ailment]:
    """Engines that run here and are in no configuration."""
    from agent.cli._discover import discover

    if facts.config is None:
        return
    urls = {engine.url.replace("localhost", "127.0.0.1") for engine in facts.config.engines}
    units = {engine.unit for engine in facts.config.engines} - {None}
    for found in discover(facts.host).engines:
        if found.url not in urls and found.unit not in units:
            words = f"{found.kind} at {found.url} ({found.unit or f'pid {found.pid}'}) runs here and is not watched"
            yield Ailment("unwatched-engine", Status.WARNING, words, "holdfast init --print shows its table")


def _files(facts: Facts) -> Iterator[Ailment]:
    """Whether secrets are kept, and whether the runner will accept the configuration."""
    named = set()
    for table in (*facts.config.engines, *facts.config.receivers) if facts.config else ():
        named |= {value for key, value in dict(table).items() if key.endswith("_file") and isinstance(value, str)}
    if facts.host.files.exists(SECRETS):
        named |= {f"{SECRETS}/{name}" for name in facts.host.files.listdir(SECRETS)}
    for path in sorted(named):
        try:
            stat = facts.host.files.stat(facts.host.files.realpath(path))
        except FileTrouble as error:
            if error.kind == "missing":
                yield Ailment(
                    "secret",
                    Status.CRITICAL,
                    f"{path} is configured and not there",
                    f"put it there: sudo install -m 640 -g holdfast FILE {path}",
                )
            continue
        if stat.mode & 0o007:
            yield Ailment(
                "secret-mode",
                Status.CRITICAL,
                f"everyone can read {path} (mode {stat.mode:o})",
                f"sudo chmod 640 {path}; sudo chgrp holdfast {path}; and replace the key",
            )
    if facts.root and facts.config is not None:
        yield from _as_runner_sees(facts)


def _as_runner_sees(facts: Facts) -> Iterator[Ailment]:
    from agent import config, runbook
    from agent.errors import ConfigurationError

    for load in (config.load, runbook.load):
        try:
            load(facts.host.files, owner=0)
        except ConfigurationError as error:
            for mistake in error.mistakes:
                yield Ailment("runner-refuses", Status.CRITICAL, str(mistake), mistake.allowed or "correct it")


def _system(facts: Facts) -> Iterator[Ailment]:
    """What the host itself lacks: a journal that outlives a reboot, a clock that is right."""
    if not facts.host.files.exists("/var/log/journal"):
        fix = "sudo mkdir -p /var/log/journal && sudo systemctl restart systemd-journald"
        yield Ailment("journal", Status.WARNING, "the journal is lost at a reboot, and with it the evidence", fix)
    said = facts.host.run(("timedatectl", "show", "--property=NTPSynchronized", "--value"), timeout_s=5.0)
    if said.rc == 0 and said.stdout.strip() == "no":
        words = "the clock is not synchronised: times in pages and limits may be wrong"
        yield Ailment("clock", Status.WARNING, words, "sudo timedatectl set-ntp true; timedatectl timesync-status")


def _property(host: Host, unit: str, name: str) -> str:
    said = host.run(("systemctl", "show", f"--property={name}", "--value", unit), timeout_s=5.0)
    return said.stdout.strip() if said.rc == 0 else ""


AREAS: tuple[tuple[str, Callable[[Facts], Iterator[Ailment]]], ...] = (
    ("daemon", _daemon),
    ("units", _units),
    ("ledger", _ledger),
    ("configuration", _configuration),
    ("pager", _pager),
    ("driver", _driver),
    ("way-back", _way_back),
    ("engines", _engines),
    ("rehearsals", _rehearsals),
    ("unwatched", _unwatched),
    ("files", _files),
    ("system", _system),
)


def examine(facts: Facts) -> list[Ailment]:
    """Everything that is wrong, in the order of the areas. An area that cannot be looked at is UNKNOWN."""
    found: list[Ailment] = []
    for name, look in AREAS:
        try:
            found += look(facts)
        except (HoldfastError, HostError) as error:
            found.append(
                Ailment(
                    name,
                    Status.UNKNOWN,
                    f"cannot tell: {error.message}",
                    error.hint or ("holdfast status" if facts.root else "run it with sudo"),
                )
            )
    return found
