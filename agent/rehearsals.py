"""When a runbook is rehearsed, and what is known of its rehearsals: pure questions over the ledger.

A rehearsal disturbs nobody, so it needs no permission of the autonomy and spends no budget. Two things bound it: the
daemon may not ask for the same one again within a day, and by itself it only asks in the configured quiet hours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

from agent import facts, ledger
from agent.config import Config
from agent.decide import Attempt
from agent.ledger import Kind, Record
from agent.model import Decision, Json, Moment, Outcome
from agent.runbook import Runbook, Runbooks

AGAIN_S = 20 * 3600.0
"""The daemon asks for the same rehearsal once a day at most, and tries again in the next night what did not work."""
SLACK_S = 12 * 3600.0
"""A weekly rehearsal is due again in the night a week later, not an hour of the night after it."""


@dataclass(frozen=True, slots=True)
class Known:
    """The latest rehearsals of one runbook on one subject.

    last: the latest that has ended. proven: the latest that succeeded. took_s: how long that one's steps took.
    said: what the latest ended with. gave_way_to: the run that it had to make room for, "" when it ended by itself.
    """

    last: Attempt | None = None
    proven: Attempt | None = None
    took_s: float | None = None
    said: str = ""
    gave_way_to: str = ""


def known(records: Sequence[Record], runbook: str, subject: str) -> Known:
    """What the ledger knows of the rehearsals of this runbook on this subject."""
    ours = [each for each in ledger.rehearsals(records) if (each.runbook, each.subject) == (runbook, subject)]
    ended = [each for each in ours if each.outcome is not None]
    proven = [each for each in ended if each.outcome is Outcome.SUCCEEDED]
    last = ended[-1] if ended else None
    took = None if not proven else _said(records, proven[-1].run).get("took_s")
    return Known(
        last=last,
        proven=proven[-1] if proven else None,
        took_s=float(took) if isinstance(took, (int, float)) else None,
        said="" if last is None else str(_said(records, last.run).get("summary", "")),
        gave_way_to="" if last is None else _gave_way_to(records, last.run),
    )


def possible(config: Config, books: Runbooks) -> Iterator[tuple[Runbook, str]]:
    """Every runbook that can be rehearsed here, with each subject that it has something to do on."""
    for book in books.by_id.values():
        if book.rehearsal_every_s is None:
            continue
        for subject in config.subjects():
            if facts.has_subject(config, book, subject) and not facts.unfit(config, book, subject):
                yield book, subject


def due(records: Sequence[Record], book: Runbook, subject: str, now: Moment) -> bool:
    """Whether it should be rehearsed by itself in the next quiet hour."""
    every_s = book.rehearsal_every_s or 0.0
    ours = [each for each in ledger.rehearsals(records) if (each.runbook, each.subject) == (book.id, subject)]
    if not every_s:
        return False
    if not ours:
        return True
    last = ours[-1]
    wait_s = every_s - min(SLACK_S, every_s / 2) if last.outcome is Outcome.SUCCEEDED else min(AGAIN_S, every_s)
    return now.since(last.at) >= wait_s


def refusal(config: Config, book: Runbook, subject: str) -> Decision | None:
    """Why this cannot be rehearsed at all, None when it can."""
    if book.rehearsal_every_s is None:
        return _no("no-rehearsal", f"{book.id} has no rehearsal: use a dry run")
    if not facts.has_subject(config, book, subject):
        return _no("unknown-subject", f"{book.id} has nothing to act on at {subject}")
    unfit = facts.unfit(config, book, subject)
    return _no("nothing-to-rehearse", f"{subject}: {unfit}") if unfit else None


def too_soon(
    records: Sequence[Record], book: Runbook, subject: str, now: Moment, *, paused: float | None, change: str
) -> Decision | None:
    """Why the daemon may not rehearse this now, which only a person may; None when it may.

    paused: until when acting is paused (Unix seconds). change: the planned change that is open, in words.
    """
    if paused is not None:
        return _no("paused", "a person paused all acting", paused)
    if change:
        return _no("change-open", f"a planned change is open: {change}")
    ours = [each for each in ledger.rehearsals(records) if (each.runbook, each.subject) == (book.id, subject)]
    wait_s = min(AGAIN_S, book.rehearsal_every_s or AGAIN_S)
    if ours and now.since(ours[-1].at) < wait_s:
        words = f"it was rehearsed less than {wait_s / 3600:.0f} h ago"
        return _no("rehearsed-lately", words, now.wall + wait_s - now.since(ours[-1].at))
    return None


def quiet(hours: str, wall: float) -> bool:
    """Whether a moment (Unix seconds) lies in these quiet hours ("02:00-05:00", in this host's local time)."""
    begin, end = (int(text[:2]) * 60 + int(text[3:]) for text in hours.split("-"))
    local = datetime.fromtimestamp(wall, timezone.utc).astimezone()
    minute = local.hour * 60 + local.minute
    return begin <= minute < end if begin < end else minute >= begin or minute < end


def _no(code: str, reason: str, not_before: float | None = None) -> Decision:
    return Decision(False, reason, code, False, not_before)


def _said(records: Sequence[Record], run: str) -> dict[str, Json]:
    return dict(ledger.outcome_of(records, run) or {})


def _gave_way_to(records: Sequence[Record], run: str) -> str:
    stops = (each for each in records if each.kind is Kind.STOP and each.run == run)
    return next((str(each.data["run"]) for each in stops if each.data.get("run")), "")
