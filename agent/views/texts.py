"""Pages of plain text for a terminal or a phone: pure functions from plain data and a width in columns.

Every page starts with what is wrong. Lines are wrapped at words, labels stand on the left, and a command is never
broken across lines, so that it can be copied.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from textwrap import wrap

from agent.model import Phase, Status, Urgency, Verdict

LABEL = 9
"""Columns of the labels on the left."""
NARROW = 60
"""Below this many columns a table becomes one block per row."""


@dataclass(frozen=True, slots=True)
class IncidentLine:
    """One open incident as the status page shows it. `since` is Unix seconds."""

    id: str
    finding: str
    subject: str
    phase: Phase
    urgency: Urgency
    summary: str
    evidence: str
    since: float
    acknowledged_by: str = ""
    tried: tuple[str, ...] = ()
    left: str = ""
    command: str = ""
    decision: str = ""
    folded: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EngineLine:
    """One engine: its verdict, why, and when (Unix seconds) it last proved that it generates tokens."""

    name: str
    verdict: Verdict
    reason: str
    at: float | None = None
    last_token_at: float | None = None


@dataclass(frozen=True, slots=True)
class CheckLine:
    """One check's latest result."""

    check: str
    subject: str
    status: Status
    summary: str
    at: float


@dataclass(frozen=True, slots=True)
class ReceiverLine:
    """One receiver: when it last took an alert (Unix seconds), how many wait, and why the last attempt failed."""

    name: str
    delivered_at: float | None = None
    waiting: int = 0
    failing: str = ""


@dataclass(frozen=True, slots=True)
class RunLine:
    """One run of a runbook; `outcome` is "" while it runs."""

    id: str
    runbook: str
    subject: str
    started_at: float
    outcome: str = ""
    summary: str = ""


@dataclass(frozen=True, slots=True)
class InFlightLine:
    """One run that has no outcome yet. `started_at` is Unix seconds, `percent` is of the step, 0 to 100.

    step: 1 for the first, 0 before it; steps: how many there are, 0 when that is not known. name: the step's own, or
    what the run does besides steps. text: what it said last. elapsed_s: of the step. remaining_s: of the step, None
    when nobody can tell. rehearsal: nothing that serves is touched.
    """

    id: str
    runbook: str
    subject: str
    started_at: float
    step: int = 0
    steps: int = 0
    name: str = ""
    text: str = ""
    percent: float | None = None
    elapsed_s: float | None = None
    remaining_s: float | None = None
    rehearsal: bool = False


@dataclass(frozen=True, slots=True)
class DriverLine:
    """The driver that is loaded and the one the lock demands; `problem` says why one of them is not known."""

    loaded: str | None = None
    locked: str | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Pause:
    """Acting is paused until `until` (Unix seconds)."""

    until: float
    by: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ChangeLine:
    """The planned change that is open: `left_s` of its window, negative beyond it; `problem` when it cannot be read."""

    words: str = ""
    by: str = ""
    left_s: float = 0.0
    problem: str = ""


@dataclass(frozen=True, slots=True)
class StatusPage:
    """Everything `holdfast status` says. `data_at` is when the daemon last wrote, None when it never did.

    holds: what is held back and what waits for it, "" where nobody asked for holds. rehearsals: a line for each that is
    possible here: whether it worked, how long it took, why it was left out.
    """

    host: str
    at: float
    status: Status
    headline: str
    daemon: str
    data_at: float | None
    mode: str | None = None
    pause: Pause | None = None
    change: ChangeLine | None = None
    incidents: tuple[IncidentLine, ...] = ()
    engines: tuple[EngineLine, ...] = ()
    checks: tuple[CheckLine, ...] = ()
    driver: DriverLine | None = None
    holds: str = ""
    outbox_depth: int = 0
    receivers: tuple[ReceiverLine, ...] = ()
    runs: tuple[RunLine, ...] = ()
    in_flight: tuple[InFlightLine, ...] = ()
    rehearsals: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


# --- pieces ---------------------------------------------------------------------------------------------------


def duration(seconds: float) -> str:
    """A duration in its two largest units: "42 s", "4 min 10 s", "3 h 5 min", "2 d 4 h"."""
    whole = max(0, round(seconds))
    for size, unit, smaller, smaller_unit in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size} {unit}" + (f" {rest} {smaller_unit}" if rest else "")
    return f"{whole} s"


def about(seconds: float) -> str:
    """A duration that is only guessed, in its largest unit: "40 s", "12 min", "3 h"."""
    if seconds < 90:
        return f"{max(10, round(seconds / 10) * 10)} s"
    return f"{round(seconds / 60)} min" if seconds < 2 * 3600 else f"{round(seconds / 3600)} h"


def bar(percent: float, width: int = 20) -> str:
    """A bar of so many columns that is filled to this percentage."""
    full = round(max(0.0, min(100.0, percent)) * width / 100)
    return "█" * full + "░" * (width - full)


def clock(at: float, now: float) -> str:
    """A moment as people say it, in UTC: the time today, with the date on other days."""
    moment, today = datetime.fromtimestamp(at, timezone.utc), datetime.fromtimestamp(now, timezone.utc)
    return moment.strftime("%H:%M:%S UTC" if moment.date() == today.date() else "%Y-%m-%d %H:%M UTC")


def ago(at: float, now: float) -> str:
    """How long ago a moment was."""
    return f"{duration(now - at)} ago"


def paragraph(text: str, width: int) -> list[str]:
    """A text as lines of at most `width` columns; words are never broken."""
    return wrap(" ".join(text.split()), width, break_long_words=False, break_on_hyphens=False)


def labelled(label: str, text: str, width: int, *, label_width: int = LABEL) -> list[str]:
    """A label and its text, wrapped with a hanging indent; nothing for an empty text."""
    lines: list[str] = []
    for part in text.splitlines():
        lines += paragraph(part, max(16, width - label_width))
    return [f"{label if index == 0 else '':<{label_width}}{line}" for index, line in enumerate(lines)]


def command(label: str, text: str, width: int) -> list[str]:
    """A command to type: on the label's line where it fits, else alone on the next, never broken."""
    if not text:
        return []
    if LABEL + len(text) <= width:
        return [f"{label:<{LABEL}}{text}"]
    return [label, text]


def table(head: Sequence[str], rows: Iterable[Sequence[str]], width: int) -> list[str]:
    """Rows under a head where they fit, one block of labelled lines per row where they do not."""
    cells = [tuple(row) for row in rows]
    if not cells:
        return []
    sizes = [max(len(row[i]) for row in [tuple(head), *cells]) for i in range(len(head))]
    left = sum(sizes[:-1]) + 2 * (len(head) - 1)
    if width >= NARROW and left + 16 <= width:
        lines: list[str] = []
        for row in [tuple(head), *cells]:
            start = "  ".join(f"{cell:<{size}}" for cell, size in zip(row[:-1], sizes, strict=False))
            last = paragraph(row[-1], max(16, width - left)) or [""]
            lines += [(f"{start}  {part}" if i == 0 else " " * left + part).rstrip() for i, part in enumerate(last)]
        return lines
    blocks: list[str] = []
    for row in cells:
        blocks += paragraph(" ".join(cell for cell in row[:-1] if cell), width)
        blocks += ["  " + line for line in paragraph(row[-1], max(16, width - 2))]
    return blocks


# --- pages ----------------------------------------------------------------------------------------------------


def status_page(page: StatusPage, width: int) -> str:
    """The status page: what is wrong, since when, why, what was done, what to do next; then how the rest is."""
    lines = paragraph(f"{page.status} {page.host}: {page.headline}", width)
    for incident in page.incidents:
        lines += ["", *_incident(incident, page.at, width)]
    for run in page.in_flight:
        lines += ["", *labelled("at work", in_flight_words(run), width)]
        lines += command("follow", f"sudo holdfast run --follow {run.id}", width)
    if page.checks:
        lines += ["", *_checks(page.checks, page.at, width)]
    if page.engines:
        lines += ["", *_engines(page.engines, page.at, width)]
    lines += ["", *_foot(page, width)]
    return "\n".join(line.rstrip() for line in lines)


def _incident(incident: IncidentLine, now: float, width: int) -> list[str]:
    lines = paragraph(f"{incident.finding} {incident.subject} {incident.phase.value.upper()}", width)
    lines += labelled("what", incident.summary, width)
    lines += labelled("since", f"{clock(incident.since, now)} ({duration(now - incident.since)})", width)
    lines += labelled("why", incident.evidence, width)
    lines += labelled("with it", ", ".join(incident.folded), width)
    lines += labelled("done", "; ".join(incident.tried) or "nothing yet", width)
    lines += labelled("left", incident.left, width)
    if incident.decision != incident.left:
        lines += labelled("plan", incident.decision, width)
    lines += labelled("seen by", incident.acknowledged_by, width)
    lines += command("next", incident.command or f"holdfast explain {incident.finding}", width)
    return lines


def _checks(checks: Sequence[CheckLine], now: float, width: int) -> list[str]:
    lines: list[str] = []
    for check in checks:
        lines += labelled(
            check.status.value, f"{check.check} {check.subject}: {check.summary} ({ago(check.at, now)})", width
        )
    return lines


def _engines(engines: Sequence[EngineLine], now: float, width: int) -> list[str]:
    rows = []
    for engine in engines:
        proof = f"last token {ago(engine.last_token_at, now)}" if engine.last_token_at is not None else ""
        rows.append((engine.name, engine.verdict.value, "; ".join(part for part in (engine.reason, proof) if part)))
    return table(("ENGINE", "VERDICT", "WHY"), rows, width)


def _foot(page: StatusPage, width: int) -> list[str]:
    lines: list[str] = []
    if page.driver is not None:
        lines += labelled("driver", _driver(page.driver), width)
    if page.holds:
        lines += labelled("holds", f"{page.holds} (holdfast hold --explain)", width)
    for run in page.runs:
        how = run.outcome or "is running"
        lines += labelled(
            "run", f"{run.runbook} on {run.subject}: {how}, {ago(run.started_at, page.at)}. {run.summary}", width
        )
    for rehearsal in page.rehearsals:
        lines += labelled("rehearse", rehearsal, width)
    if page.mode is not None:
        lines += labelled("mode", _MODES.get(page.mode, page.mode), width)
    if page.pause is not None:
        lines += labelled("pause", _pause(page.pause, page.at), width)
    if page.change is not None:
        lines += labelled("change", change_words(page.change), width)
    lines += labelled("pager", _pager(page), width)
    lines += labelled("daemon", page.daemon, width)
    for note in page.notes:
        lines += labelled("note", note, width)
    return lines


def in_flight_words(run: InFlightLine) -> str:
    """How far a run is, in one line: "rebuild on engine:chat, step 3/9: Build, 42 %, for 5 min, about 7 min left"."""
    place = f", step {run.step}{f'/{run.steps}' if run.steps else ''}" if run.step else ""
    what = f"rehearsal of {run.runbook}" if run.rehearsal else run.runbook
    words = [f"{what} on {run.subject}{place}{f': {run.name}' if run.name else ''}"]
    words += [f"{run.text}{'' if run.percent is None else f' {run.percent:.0f} %'}".strip()]
    words += [f"for {duration(run.elapsed_s)}"] if run.elapsed_s is not None else []
    words += [f"about {about(run.remaining_s)} left"] if run.remaining_s is not None else []
    return ", ".join(each for each in words if each)


_MODES = {
    "observe": "observe: says what it would do, does nothing",
    "ask": "ask: pages with the command that approves",
    "act": "act: repairs by itself, within its limits",
}


def _driver(driver: DriverLine) -> str:
    if driver.problem:
        return driver.problem
    if driver.loaded is None:
        return f"none loaded; the lock demands {driver.locked}" if driver.locked else "none on this host"
    if driver.locked is None:
        return f"{driver.loaded} loaded, not locked (sudo holdfast lock write)"
    if driver.loaded == driver.locked:
        return f"{driver.loaded} loaded, as locked"
    return f"{driver.loaded} loaded, but the lock demands {driver.locked}"


def _pause(pause: Pause, now: float) -> str:
    words = f"PAUSED for another {duration(pause.until - now)}, until {clock(pause.until, now)}"
    if pause.by:
        words += f", by {pause.by}"
    return words + (f": {pause.reason}" if pause.reason else "")


def change_words(change: ChangeLine) -> str:
    """The open change in one line, with the time it has left."""
    if change.problem:
        return f"counts as open, its record is broken: {change.problem} (sudo holdfast change abort)"
    left = f"{duration(change.left_s)} left" if change.left_s >= 0 else f"OVERDUE for {duration(-change.left_s)}"
    return f"OPEN, {left}: {change.words}, begun by {change.by} (holdfast change status)"


def _pager(page: StatusPage) -> str:
    if not page.receivers:
        return "no receiver is configured: nobody is paged"
    parts = [f"{page.outbox_depth} waiting" if page.outbox_depth else "nothing waits"]
    for receiver in page.receivers:
        if receiver.failing:
            parts.append(f"{receiver.name} FAILING: {receiver.failing}")
        elif receiver.delivered_at is None:
            parts.append(f"{receiver.name} never used (holdfast pager test)")
        else:
            parts.append(f"{receiver.name} OK, last {ago(receiver.delivered_at, page.at)}")
    return "; ".join(parts)


@dataclass(frozen=True, slots=True)
class TransitionLine:
    """One step of an incident's life."""

    at: float
    kind: str
    text: str


def incident_page(incident: IncidentLine, transitions: Sequence[TransitionLine], now: float, width: int) -> str:
    """One incident with its history."""
    lines = [f"incident {incident.id}", *_incident(incident, now, width), ""]
    for transition in transitions:
        lines += labelled(clock(transition.at, transition.at)[:8], f"{transition.kind}: {transition.text}", width)
    return "\n".join(line.rstrip() for line in lines)


def incident_list(incidents: Sequence[IncidentLine], now: float, width: int) -> str:
    """All incidents, newest first."""
    if not incidents:
        return "no incident"
    rows = [
        (i.id, i.phase.value, i.finding, i.subject, f"{i.summary} (since {clock(i.since, now)})") for i in incidents
    ]
    return "\n".join(table(("ID", "PHASE", "CAUSE", "SUBJECT", "WHAT"), rows, width))
