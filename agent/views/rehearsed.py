"""What is said of the rehearsals of a runbook: "a rebuild of chat takes 11 min 42 s, last proven Tuesday 03:10 UTC"."""

from __future__ import annotations

from datetime import datetime, timezone

from agent.model import Moment, Outcome
from agent.rehearsals import Known
from agent.runbook import Runbook
from agent.views import texts

WEEKDAYS_S = 6 * 86400.0
"""Within so many seconds the day of the week says which day is meant."""
LATE = 3.0
"""What was not proven for so many times its cadence is not known to work any more."""


def noun(book: Runbook, subject: str) -> str:
    """What is rehearsed: "a rebuild of chat", "some-runbook on host"."""
    name = subject.removeprefix("engine:")
    return f"a rebuild of {name}" if book.replaces_program else f"{book.id} on {name}"


def words(book: Runbook, subject: str, known: Known, now: Moment) -> str:
    """Whether it works, how long it takes, and what went wrong the last time, if anything did."""
    what = noun(book, subject)
    last, proven = known.last, known.proven
    if proven is None:
        text = f"{what} has never been proven by a rehearsal"
    else:
        took = "was" if known.took_s is None else f"takes {texts.duration(known.took_s)},"
        text = f"{what} {took} last proven {when(proven.at, now)}"
    if last is None or last is proven:
        return text
    if last.outcome is Outcome.STOPPED and known.gave_way_to:
        return f"{text}; the last rehearsal, {when(last.at, now)}, made room for a run that was needed"
    how = _HOW.get(last.outcome or Outcome.INTERRUPTED, "ended")
    return f"{text}; the last rehearsal, {when(last.at, now)}, {how}: {known.said}"


def doubtful(book: Runbook, known: Known, now: Moment) -> bool:
    """Whether nobody can rely on it: never or long not proven, or it failed or could not begin the last time."""
    if known.proven is None or known.last is None or known.last.outcome in (Outcome.FAILED, Outcome.REFUSED):
        return True
    every_s = book.rehearsal_every_s or 0.0
    return bool(every_s) and now.since(known.proven.at) > LATE * every_s


def when(at: Moment, now: Moment) -> str:
    """A moment of the last days by its weekday ("Tuesday 03:10 UTC"), an older one by its date."""
    day = "%A" if now.since(at) < WEEKDAYS_S else "%Y-%m-%d"
    return f"{datetime.fromtimestamp(at.wall, timezone.utc):{day} %H:%M} UTC"


_HOW = {
    Outcome.FAILED: "failed",
    Outcome.REFUSED: "could not begin",
    Outcome.STOPPED: "was stopped",
    Outcome.INTERRUPTED: "was cut off",
}
