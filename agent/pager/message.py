"""The words of a page: a stored transition of an incident becomes alerts. Pure.

Nothing but the fields of the incident and its transition enters, so nothing that was not already redacted can. A
page says the cause, since when, the evidence in one line, what was tried, what is left and the command to type;
its reader looks at a phone.

Keys: the incident's own, and three beside it for what must ring although the first was acknowledged: `/critical`
(it got worse, or a run did not help), `/escalated` (a person is needed) and `/approval`. All of them are
acknowledged and resolved together; the outbox drops what a receiver was never told.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timezone, tzinfo

from agent.model import Alert, Incident, Phase, Transition, Urgency

TITLE_LENGTH = 120
BODY_LENGTH = 900
"""What a phone shows without scrolling far, characters."""
LINE_LENGTH = 60
COMMAND_LENGTH = 300
DETAIL_LENGTH = 500

CRITICAL = "/critical"
ESCALATED = "/escalated"
APPROVAL = "/approval"
_BESIDE = (CRITICAL, ESCALATED, APPROVAL)

_PREFIX = {
    "raised": "Critical: ",
    "escalated": "Needs you: ",
    "needs-approval": "Approve? ",
    "acting": "Repairing: ",
    "progress": "Still repairing: ",
    "verified": "Repaired: ",
    "acknowledged": "Acknowledged: ",
    "resolved": "Resolved: ",
    "over": "Already over: ",
}
_OWN_KEY = {"raised": CRITICAL, "escalated": ESCALATED, "needs-approval": APPROVAL}
_LEFT = {
    Phase.OPEN: "nothing yet; Holdfast keeps looking",
    Phase.ACTING: "the run in progress, then its proof",
    Phase.VERIFYING: "fresh checks must agree",
    Phase.ESCALATED: "a person: nothing more is tried",
    Phase.RESOLVED: "nothing",
}


@dataclass(frozen=True, slots=True)
class Origin:
    """Who is telling: the host's name, and its time zone (None: the one this process runs in)."""

    name: str
    zone: tzinfo | None = None


def alerts(incident: Incident, transition: Transition, origin: Origin) -> tuple[Alert, ...]:
    """The alerts that one transition becomes; `incident` is as it is after it.

    That a run takes long is one event. A quiet incident (urgency info) is one event when it opens and one when it
    escalates; its repair and its end stay silent. Ids follow from the transition, so that building them again yields
    the same alerts.
    """
    kind = transition.kind
    quiet = incident.urgency is Urgency.INFO
    if kind == "over" or (quiet and kind in ("opened", "raised", "escalated", "needs-approval")):
        return (replace(_alert(incident, transition, origin, "event"), urgency=Urgency.INFO),)
    if kind == "resolved":
        return _everywhere(incident, transition, origin, "resolve")
    if kind == "acknowledged":
        return _everywhere(incident, transition, origin, "acknowledge")
    if quiet:
        return ()
    if kind == "progress":
        return (replace(_alert(incident, transition, origin, "event"), urgency=Urgency.INFO),)
    if kind == "raised" and incident.urgency is not Urgency.CRITICAL:
        return (_alert(incident, transition, origin, "trigger"),)
    told = (_alert(incident, transition, origin, "trigger", _OWN_KEY.get(kind, "")),)
    if kind in ("acting", "escalated"):
        return (*told, _alert(incident, transition, origin, "resolve", APPROVAL))
    return told


def keys(incident: Incident) -> tuple[str, ...]:
    """Every key under which something about this incident may have been told."""
    return tuple(incident.key + beside for beside in ("", *_BESIDE))


def over_before_told(trigger: Alert | None, resolve: Alert) -> Alert:
    """One event in place of a trigger that was never told and its resolve, with the original times."""
    before = trigger or resolve
    times = [f"began {utc(before.since)}"]
    if trigger is not None:
        times.append(f"reported {utc(trigger.at)}")
    times.append(f"over {utc(resolve.at)}")
    told = f"Over before it could be delivered:\n{', '.join(times)}\n"
    room = BODY_LENGTH - len(told)
    return replace(
        before,
        id=f"{resolve.id}:event",
        action="event",
        urgency=Urgency.INFO,
        title=_clip(f"Over: {before.title}", TITLE_LENGTH),
        body=told + (before.body if len(before.body) <= room else before.body[: room - 1] + "…"),
        at=resolve.at,
        details=(
            *(pair for pair in before.details if pair[0] not in ("began", "reported", "over")),
            ("began", iso(before.since)),
            ("reported", iso(before.at if trigger is not None else before.since)),
            ("over", iso(resolve.at)),
        ),
    )


def notice(
    key: str, action: str, urgency: Urgency, title: str, lines: Iterable[str], origin: Origin, at: float
) -> Alert:
    """An alert about Holdfast itself (a test page, a dead daemon); `key` is the whole dedup key."""
    _, _, finding, subject = (*key.split("/", 3), "", "", "")[:4]
    return Alert(
        id=f"{key}:{action}:{at:.3f}",
        key=key,
        action=action,
        urgency=urgency,
        title=_clip(f"{title} on {origin.name}", TITLE_LENGTH),
        body="\n".join(line for each in lines for line in _wrap(each)),
        source=origin.name,
        subject=subject,
        finding=finding,
        at=at,
        since=at,
    )


def iso(at: float) -> str:
    """Unix seconds as RFC 3339 UTC."""
    return datetime.fromtimestamp(at, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def utc(at: float) -> str:
    """Unix seconds for a person, in UTC."""
    return datetime.fromtimestamp(at, timezone.utc).strftime("%a %d %b %H:%M:%S UTC")


def since_words(at: float, origin: Origin) -> str:
    """Unix seconds for a person, local time first: "Sun 12 Jan 07:42 CET (06:42 UTC)"."""
    universal = datetime.fromtimestamp(at, timezone.utc)
    local = universal.astimezone(origin.zone)
    if local.utcoffset() == universal.utcoffset():
        return universal.strftime("%a %d %b %H:%M UTC")
    return f"{local.strftime('%a %d %b %H:%M %Z')} ({universal.strftime('%H:%M UTC')})"


def _everywhere(incident: Incident, transition: Transition, origin: Origin, action: str) -> tuple[Alert, ...]:
    return tuple(_alert(incident, transition, origin, action, beside) for beside in ("", *_BESIDE))


def _alert(incident: Incident, transition: Transition, origin: Origin, action: str, beside: str = "") -> Alert:
    return Alert(
        id=f"{transition.id}:{action}{beside}",
        key=incident.key + beside,
        action=action,
        urgency=incident.urgency,
        title=_title(incident, transition, origin),
        body=_body(incident, transition, origin),
        source=origin.name,
        subject=incident.subject,
        finding=incident.finding,
        at=transition.at,
        since=incident.since,
        details=_details(incident, transition),
    )


def _title(incident: Incident, transition: Transition, origin: Origin) -> str:
    cause = incident.finding.replace("-", " ")
    subject = incident.subject.partition(":")[2]
    head = f"{_PREFIX.get(transition.kind, '')}{cause}{f': {subject}' if subject else ''} on {origin.name}"
    head = head[0].upper() + head[1:]
    whole = f"{head} – {_one_line(incident.summary)}"
    return whole if incident.summary and len(whole) <= TITLE_LENGTH else _clip(head, TITLE_LENGTH)


def _body(incident: Incident, transition: Transition, origin: Origin) -> str:
    command = _command(incident)
    now = transition.text if transition.text != incident.summary else ""
    left = incident.left or _left(incident, origin)
    parts = [
        ("", incident.summary, 200),
        ("Since ", since_words(incident.since, origin), 60),
        ("Now: ", now, 120),
        ("Evidence: ", incident.evidence, 160),
        ("Tried: ", "; ".join(incident.tried[-3:]) or "nothing yet", 160),
        ("Left: ", left, 120),
        ("Why not: ", incident.decision if incident.decision not in (now, left) else "", 120),
        ("Also: ", ", ".join(incident.folded), 60),
    ]
    room = BODY_LENGTH - len(command) - len("\nType: ")
    lines: list[str] = []
    for label, text, limit in parts:
        if not text:
            continue
        written = _wrap(label + _clip(text, limit))
        needed = sum(len(line) + 1 for line in written)
        if needed > room:
            break
        lines += written
        room -= needed
    return "\n".join([*lines, f"Type: {command}"])


def _left(incident: Incident, origin: Origin) -> str:
    """What remains when nobody has said so: in words, and when it is tried again."""
    if incident.phase is Phase.OPEN and incident.not_before is not None:
        return f"it is decided again at {since_words(incident.not_before, origin)}"
    return _LEFT.get(incident.phase, "")


def _command(incident: Incident) -> str:
    """What to type: never cut, because half a command is worse than none."""
    command = _one_line(incident.command)
    if not command or len(command) > COMMAND_LENGTH:
        return f"sudo holdfast incident show {incident.id}"
    return command


def _details(incident: Incident, transition: Transition) -> tuple[tuple[str, str], ...]:
    pairs = (
        ("incident", incident.id),
        ("change", transition.kind),
        ("began", iso(incident.since)),
        ("evidence", incident.evidence),
        ("tried", "; ".join(incident.tried[-5:])),
        ("left", incident.left),
        ("reason", incident.decision),
        ("command", _command(incident)),
        ("runs", ", ".join(incident.runs[-5:])),
        ("also", ", ".join(incident.folded)),
        ("acknowledged_by", incident.acknowledged_by),
    )
    return tuple((name, _clip(text, DETAIL_LENGTH)) for name, text in pairs if text)


def _one_line(text: str) -> str:
    """The text without line breaks and other control characters."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def _clip(text: str, limit: int) -> str:
    line = _one_line(text)
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(text, LINE_LENGTH, break_long_words=False, break_on_hyphens=False) or [""]
