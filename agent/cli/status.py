"""`holdfast status`: what is wrong, since when, why, what was done, what to do next."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from agent.cli._memory import LedgerView, ledger_view, memory
from agent.cli._result import Problem, Result, rfc3339
from agent.cli._session import current
from agent.cli._verb import Verb
from agent.errors import FileTrouble
from agent.model import CheckResult, Incident, Moment, Phase, Run, Status, Urgency, Verdict, worst
from agent.views import texts
from agent.views.note import NOTE, REHEARSALS, TOKENS, DaemonNote, daemon_note

if TYPE_CHECKING:
    from agent.host import Host
    from agent.store import ReadOnlyStore

RUN_SHOWN_S = 86400.0
"""Runs of the last day are worth a line."""

RESULTS_S = 150.0
"""Without a note of its own, a daemon whose newest result is younger than this is taken to live."""


@dataclass(frozen=True, slots=True)
class Remembered:
    """What the store holds that the page needs."""

    note: DaemonNote
    results: Mapping[tuple[str, str], CheckResult]
    incidents: tuple[Incident, ...]
    runs: tuple[Run, ...]
    depth: Mapping[str, int]
    receivers: Mapping[str, texts.ReceiverLine]
    degraded: str = ""
    tokens: Mapping[str, float] = field(default_factory=dict)
    rehearsals: tuple[str, ...] = ()


def status() -> Result:
    """Show what is wrong, since when, why, what was done and what to do next.

    Reads what the daemon remembers, also while the daemon is down; then it says so and how old it is. The exit code is
    0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN.
    """
    session = current()
    now = session.host.clock.now()
    with memory() as store:
        remembered = remember(store)
    ledger = ledger_view(session.host)
    change = change_line(session.host, now)
    going = runs_in_flight(session.host, ledger, now)
    page, errors = compose(os.uname().nodename, now, remembered, ledger, driver_line(session.host), change, going)
    return Result(
        "status",
        as_json(page),
        lambda width: texts.status_page(page, width),
        exit_code=page.status.exit_code,
        errors=errors,
        told=True,
    )


def remember(store: ReadOnlyStore) -> Remembered:
    """Everything the page needs of the store."""
    depth = store.depth()
    note = daemon_note(store.get(NOTE))
    health = store.receivers()
    names = [
        *note.receivers,
        *(name for name in (*health, *depth) if name not in note.receivers and not note.receivers),
    ]
    lines = {}
    for name in dict.fromkeys(names):
        known = health.get(name)
        failing = known is not None and known.failing_since is not None
        lines[name] = texts.ReceiverLine(
            name,
            known.last_sent.wall if known and known.last_sent else None,
            depth.get(name, 0),
            (known.reason or "no answer") if known and failing else "",
        )
    return Remembered(
        note=note,
        results=store.load_results(),
        incidents=tuple(store.load_incidents()),
        runs=tuple(store.runs(limit=5)),
        depth=depth,
        receivers=lines,
        degraded=store.degraded,
        tokens=store.get(TOKENS, {}),
        rehearsals=tuple(str(each) for each in store.get(REHEARSALS, [])),
    )


def driver_line(host: Host) -> texts.DriverLine:
    """The driver and its lock as they are now; cheap file reads."""
    from agent.host import driver

    try:
        loaded = driver.loaded_version(host)
    except FileTrouble as error:
        return texts.DriverLine(problem=f"cannot tell which driver is loaded: {error.message}")
    lock = driver.read_lock(host)
    if lock.version is None and lock.problem != "absent":
        return texts.DriverLine(loaded, None, f"{loaded or 'no driver'} loaded; {lock.detail}")
    return texts.DriverLine(loaded, lock.version)


def runs_in_flight(host: Host, ledger: LedgerView, now: Moment) -> tuple[texts.InFlightLine, ...]:
    """How far every run in flight is, also one that a person began."""
    from agent.ledger import open_attempts

    if not open_attempts(ledger.records, now):
        return ()
    from agent.views.in_flight import in_flight

    return in_flight(host, ledger.records, now)


def change_line(host: Host, now: Moment) -> texts.ChangeLine | None:
    """The planned change that is open; None for none, and for one that the caller may not see."""
    from agent.host import changes

    try:
        change = changes.read(host)
    except FileTrouble as error:
        return None if error.kind == "denied" else texts.ChangeLine(problem=error.message)
    return None if change is None else texts.ChangeLine(change.words, change.by, -change.overdue_s(now))


# --- the page (pure) ------------------------------------------------------------------------------------------


def compose(
    host: str,
    now: Moment,
    known: Remembered,
    ledger: LedgerView,
    driver: texts.DriverLine,
    change: texts.ChangeLine | None = None,
    in_flight: tuple[texts.InFlightLine, ...] = (),
) -> tuple[texts.StatusPage, tuple[Problem, ...]]:
    """The page from everything that is known, and what was missing."""
    alive = lives(known, now)
    data_at = max(
        [r.at.wall for r in known.results.values()] + ([known.note.at] if known.note.at else []), default=None
    )
    incidents = tuple(incident_line(each) for each in known.incidents if each.phase is not Phase.PENDING)
    results = tuple(known.results.values())
    engines = engine_lines(results, known.tokens)
    told = {each.subject for each in incidents}
    checks = tuple(
        texts.CheckLine(r.check, r.subject, r.status, r.summary, r.at.wall)
        for r in sorted(results, key=lambda r: (r.check, r.subject))
        if r.status is not Status.OK and r.subject not in told
    )
    status = worst([*(r.status for r in results), *(urgency_status(each.urgency) for each in incidents)])
    if not alive:
        status = worst([status, Status.CRITICAL if known.note.configured else Status.UNKNOWN])
    pause = _pause(ledger, now)
    page = texts.StatusPage(
        host=host,
        at=now.wall,
        status=status,
        headline=_headline(alive, known, incidents, checks),
        daemon=_daemon(alive, known, data_at, now),
        data_at=data_at,
        mode=known.note.mode,
        pause=pause,
        change=change,
        incidents=tuple(sorted(incidents, key=lambda each: (-URGENCIES.index(each.urgency), each.since))),
        engines=engines,
        checks=checks,
        driver=driver,
        holds=_holds(results),
        outbox_depth=sum(known.depth.values()),
        receivers=tuple(known.receivers.values()),
        runs=tuple(run_line(run) for run in known.runs if now.wall - run.started_at < RUN_SHOWN_S),
        in_flight=in_flight,
        rehearsals=known.rehearsals,
        notes=_notes(known, ledger),
    )
    return page, _errors(alive, known, ledger, page)


def _holds(results: Iterable[CheckResult]) -> str:
    """Why upgrades leave the driver alone: the holds that somebody asked for, and the security updates that wait."""
    seen = {result.check: result for result in results}
    held, updates = seen.get("driver.holds"), seen.get("driver.updates")
    if held is None or held.status is not Status.OK or not held.value("asked"):
        return ""
    return "; ".join([held.summary] + ([updates.summary] if updates is not None and updates.value("pending") else []))


def lives(known: Remembered, now: Moment) -> bool:
    """Whether the daemon lives: by its note, and where there is none yet by results that keep coming."""
    if known.note.at is not None:
        return known.note.alive(now)
    return any(r.at.boot_id == now.boot_id and now.since(r.at) < RESULTS_S for r in known.results.values())


URGENCIES = (Urgency.INFO, Urgency.WARNING, Urgency.CRITICAL)


def urgency_status(urgency: Urgency) -> Status:
    """An incident's urgency as a status; what is only told quietly does not spoil it."""
    return {Urgency.CRITICAL: Status.CRITICAL, Urgency.WARNING: Status.WARNING}.get(urgency, Status.OK)


def incident_line(incident: Incident) -> texts.IncidentLine:
    """An incident as the pages show it."""
    return texts.IncidentLine(
        id=incident.id,
        finding=incident.finding,
        subject=incident.subject,
        phase=incident.phase,
        urgency=incident.urgency,
        summary=incident.summary,
        evidence=incident.evidence,
        since=incident.since,
        acknowledged_by=incident.acknowledged_by,
        tried=incident.tried,
        left=incident.left,
        command=incident.command,
        decision=incident.decision,
        folded=incident.folded,
    )


def engine_lines(results: Iterable[CheckResult], tokens: Mapping[str, float]) -> tuple[texts.EngineLine, ...]:
    """One line for each engine: the worst of its checks' latest verdicts, and when a token was last proven."""
    by_engine: dict[str, list[CheckResult]] = {}
    for result in results:
        if result.subject.startswith("engine:"):
            by_engine.setdefault(result.subject.removeprefix("engine:"), []).append(result)
    lines = []
    for name, own in sorted(by_engine.items()):
        judged = [each for each in own if each.verdict is not None]
        leading = max(judged, key=lambda each: (_BADNESS[each.verdict or Verdict.UNKNOWN], each.at.wall), default=None)
        verdict = (leading.verdict if leading else None) or Verdict.UNKNOWN
        lines.append(
            texts.EngineLine(
                name,
                verdict,
                leading.summary if leading else "never asked",
                leading.at.wall if leading else None,
                tokens.get(name),
            )
        )
    return tuple(lines)


_BADNESS = {
    verdict: rank
    for rank, verdict in enumerate(
        (
            Verdict.READY,
            Verdict.SLEEPING,
            Verdict.BUSY,
            Verdict.UNKNOWN,
            Verdict.LOADING,
            Verdict.STOPPED,
            Verdict.DEGRADED,
            Verdict.WEDGED,
            Verdict.DEAD,
        )
    )
}


def run_line(run: Run) -> texts.RunLine:
    """A run as the pages show it."""
    return texts.RunLine(
        run.id, run.runbook, run.subject, run.started_at, run.outcome.value if run.outcome else "", run.summary
    )


def _headline(
    alive: bool, known: Remembered, incidents: tuple[texts.IncidentLine, ...], checks: tuple[texts.CheckLine, ...]
) -> str:
    if incidents:
        count = len(incidents)
        words = f"{count} incident{'s' if count > 1 else ''} open"
    elif checks:
        words = f"{len(checks)} check{'s' if len(checks) > 1 else ''} not OK"
    elif known.note.configured is False:
        words = "not configured: nothing is watched (sudo holdfast init)"
    elif not known.results:
        words = "nothing was checked yet"
    else:
        words = "all is well"
    return words if alive else f"THE DAEMON IS DOWN; last known: {words}"


def _daemon(alive: bool, known: Remembered, data_at: float | None, now: Moment) -> str:
    age = f"last news {texts.ago(data_at, now.wall)}" if data_at is not None else "no news yet"
    if alive:
        return f"running, {age}"
    words = "stopped" if known.note.stopped else "not running"
    return f"{words}, {age}: sudo systemctl start holdfast"


def _pause(ledger: LedgerView, now: Moment) -> texts.Pause | None:
    from agent.ledger import paused

    found = paused(ledger.records, now)
    return texts.Pause(found.until, "root" if found.uid == 0 else f"uid {found.uid}", found.reason) if found else None


def _notes(known: Remembered, ledger: LedgerView) -> tuple[str, ...]:
    notes = [known.note.problem, known.degraded, ledger.unread.message if ledger.unread else ""]
    if ledger.problems:
        notes.append(f"the ledger's chain is broken: {ledger.problems[0]} (sudo holdfast audit verify)")
    return tuple(note for note in notes if note)


def _errors(alive: bool, known: Remembered, ledger: LedgerView, page: texts.StatusPage) -> tuple[Problem, ...]:
    errors: list[Problem] = []
    if not alive:
        errors.append(
            Problem(
                "daemon-unreachable",
                f"the daemon is {page.daemon.split(',')[0]}",
                "sudo systemctl start holdfast; journalctl -u holdfast",
            )
        )
    if known.degraded:
        errors.append(Problem("store", known.degraded, "holdfast doctor"))
    if ledger.unread is not None:
        errors.append(ledger.unread)
    return tuple(errors)


def as_json(page: texts.StatusPage) -> Any:
    """The page as JSON values: times as RFC 3339, everything else as it is."""
    return timed(asdict(page))


def timed(value: Any, name: str = "") -> Any:
    """JSON values with every time ("at", "since", "until", "*_at") as RFC 3339."""
    if isinstance(value, dict):
        return {key: timed(each, key) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [timed(each) for each in value]
    if isinstance(value, float) and (name in ("at", "since", "until") or name.endswith("_at")):
        return rfc3339(value)
    return value


VERB = Verb(commands=(status,))
