"""Rehearses by itself in the quiet hours, where nothing else goes on, and says why not where it did not.

One at a time, and only beside a host at rest: a rehearsal disturbs nobody, but compiling for minutes beside a full
queue or an open incident helps nobody either. What was left out is tried again all through the quiet hours, and in the
next night.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence

from agent import ledger, rehearsals
from agent.config import Config
from agent.errors import HostError
from agent.host import Host, build_unit, changes
from agent.ledger import Record
from agent.model import CheckResult, Incident, Moment, Outcome, Phase, Urgency, Verdict
from agent.protocol import Request
from agent.rehearsals import Known
from agent.runbook import Runbook, Runbooks
from agent.views import rehearsed, texts

log = logging.getLogger(__name__)

LOOK_S = 60.0
"""How often it is looked whether something is due; nothing is begun in the first minute after a start either."""
MEMORY_FREE_MIB = 2048
"""With less memory available, nothing is begun that may take some: one compiler needs up to 2 GiB for CUDA."""


class Rehearser:
    """Decides when to rehearse what. `tick` is called often, from one thread; it reads the clock's moments it is given.

    lines: what is said of each rehearsal that is possible here, for the status page; None before the first look.
    proven: when each last succeeded (Unix seconds) and how long it took (seconds), by (runbook, subject).
    trouble: what did not work when it was rehearsed last, "" when everything did.
    """

    def __init__(self, host: Host, new_id: Callable[[], str], began: Moment) -> None:
        self.lines: tuple[str, ...] | None = None
        self.trouble = ""
        self.proven: dict[tuple[str, str], tuple[float, float | None]] = {}
        self._host = host
        self._new_id = new_id
        self._looked = began
        self._skipped: dict[tuple[str, str], tuple[Moment, str]] = {}

    def tick(
        self,
        now: Moment,
        config: Config,
        books: Runbooks,
        records: Sequence[Record],
        results: Iterable[CheckResult],
        incidents: Iterable[Incident],
    ) -> Request | None:
        """The rehearsal to ask the runner for now, None for none."""
        if now.since(self._looked) < LOOK_S:
            return None
        self._looked = now
        wanted = self._wanted(now, config, books, records, tuple(results), tuple(incidents))
        seen = [
            (book, subject, rehearsals.known(records, book.id, subject))
            for book, subject in rehearsals.possible(config, books)
        ]
        self.lines = tuple(self._line(book, subject, known, now) for book, subject, known in seen)
        self.trouble = "; ".join(filter(None, (_failure(*each) for each in seen)))
        self.proven = {
            (book.id, subject): (known.proven.at.wall, known.took_s)
            for book, subject, known in seen
            if known.proven is not None
        }
        if wanted is None:
            return None
        book, subject = wanted
        log.info("rehearsing %s on %s", book.id, subject)
        return Request(do="rehearse", id=self._new_id(), runbook=book.id, subject=subject, because="it was due")

    def _wanted(
        self,
        now: Moment,
        config: Config,
        books: Runbooks,
        records: Sequence[Record],
        results: Sequence[CheckResult],
        incidents: Sequence[Incident],
    ) -> tuple[Runbook, str] | None:
        if not config.rehearsal.by_itself or not rehearsals.quiet(config.rehearsal.quiet, now.wall):
            return None
        for book, subject in rehearsals.possible(config, books):
            if not rehearsals.due(records, book, subject, now):
                continue
            why = self._busy(now, records) or at_work(results, incidents)
            if not why:
                self._skipped.pop((book.id, subject), None)
                return book, subject
            if self._skipped.get((book.id, subject), (now, ""))[1] != why:
                log.info("%s on %s is not rehearsed now: %s", book.id, subject, why)
            self._skipped[book.id, subject] = (now, why)
        return None

    def _busy(self, now: Moment, records: Sequence[Record]) -> str:
        """What a person or a run is at, or what the host lacks; "" when nothing is in the way."""
        if ledger.paused(records, now) is not None:
            return "a person paused all acting"
        change = changes.in_words(self._host)
        if change:
            return f"a planned change is open: {change}"
        if ledger.open_attempts(records, now):
            return "a run is in flight"
        try:
            _, free = build_unit.memory_mib(self._host)
        except HostError as error:
            return f"nobody can tell how much memory is free: {error.message}"
        return f"only {free} MiB of memory are free" if free < MEMORY_FREE_MIB else ""

    def _line(self, book: Runbook, subject: str, known: Known, now: Moment) -> str:
        line = rehearsed.words(book, subject, known, now)
        skipped = self._skipped.get((book.id, subject))
        if skipped is None or (known.last is not None and known.last.at.wall > skipped[0].wall):
            return line
        return f"{line}; not rehearsed {texts.clock(skipped[0].wall, now.wall)}: {skipped[1]}"


def at_work(results: Iterable[CheckResult], incidents: Iterable[Incident]) -> str:
    """Why this is no time for a rehearsal, as the checks and the incidents tell it; "" when it is."""
    for incident in incidents:
        told = incident.phase not in (Phase.PENDING, Phase.RESOLVED) and incident.urgency is not Urgency.INFO
        # A mere warning about the host may stand for weeks, and has nothing to do with it.
        if told and (incident.urgency is Urgency.CRITICAL or incident.subject != "host"):
            return f"an incident is open: {incident.finding} on {incident.subject}"
    for result in results:
        if result.check != "engine.progress":
            continue
        name = result.subject.removeprefix("engine:")
        if result.verdict is Verdict.LOADING:
            return f"{name} is loading"
        if result.value("free_slots") == 0 and result.value("pending"):
            return f"{name} has no free slot"
    return ""


def _failure(book: Runbook, subject: str, known: Known) -> str:
    """What went wrong the last time, "" when it went well, never was tried, or had to make room."""
    if known.last is None or known.last.outcome not in (Outcome.FAILED, Outcome.REFUSED):
        return ""
    return f"{rehearsed.noun(book, subject)} did not work when it was rehearsed: {known.said}"
