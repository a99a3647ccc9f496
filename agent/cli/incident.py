"""`holdfast incident`: list, show, acknowledge, approve."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from agent.cli._memory import memory
from agent.cli._result import Live, Result, plain
from agent.cli._session import current
from agent.cli._verb import Verb
from agent.errors import Refused, UsageError
from agent.model import Incident, Json, Phase

if TYPE_CHECKING:
    from agent.store import ReadOnlyStore


def _ids(incomplete: str) -> list[tuple[str, str]]:
    from agent.errors import HoldfastError

    try:
        with memory() as store:
            return [(each.id, each.finding) for each in store.load_incidents() if each.id.startswith(incomplete)]
    except HoldfastError:
        return []


IncidentId = Annotated[
    str | None,
    typer.Argument(
        metavar="ID",
        help="The incident, or the beginning or end of its id; may be left out where only one is open.",
        autocompletion=_ids,
    ),
]


def list_(
    all_: Annotated[bool, typer.Option("--all", help="Resolved ones too, newest last.")] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="At most so many.")] = 50,
) -> Result:
    """List the open incidents."""
    from agent.cli.status import incident_line
    from agent.views import texts

    now = current().host.clock.now().wall
    with memory() as store:
        found = [i for i in store.load_incidents(open_only=not all_, limit=limit) if i.phase is not Phase.PENDING][
            -limit:
        ]
    lines = tuple(incident_line(each) for each in found)
    empty = "no incident" if all_ else "no incident is open"
    return Result(
        "incidents",
        {"incidents": [_as_json(each) for each in found]},
        lambda width: texts.incident_list(lines, now, width) if lines else empty,
    )


def show(incident: IncidentId = None) -> Result:
    """Show one incident with everything that happened."""
    from agent.cli._result import rfc3339
    from agent.cli.status import incident_line
    from agent.views import texts

    now = current().host.clock.now().wall
    with memory() as store:
        found = pick(store, incident)
        steps = store.transitions(found.id)
    lines = tuple(texts.TransitionLine(each.at, each.kind, each.text) for each in steps)
    data = _as_json(found)
    data["transitions"] = [{"at": rfc3339(each.at), "kind": each.kind, "text": each.text} for each in steps]
    return Result("incident", data, lambda width: texts.incident_page(incident_line(found), lines, now, width))


def ack(incident: IncidentId = None) -> Result:
    """Say that you have seen an incident: its receivers stop calling."""
    from agent.cli._sockets import control

    session = current()
    with memory() as store:
        found = pick(store, incident)
    control(session, "acknowledge", {"incident": found.id, "who": session.caller})
    text = f"acknowledged {found.id}: {found.finding} {found.subject}, by {session.caller}"
    return Result("acknowledged", {"incident": found.id, "by": session.caller}, plain(text))


def approve(
    incident: IncidentId = None,
    because: Annotated[str, typer.Option("--because", help="Why, for the record.")] = "",
) -> Live:
    """Approve the run that an incident waits for, and follow it."""
    from agent.cli import _follow
    from agent.cli._common import need_root
    from agent.config import load
    from agent.facts import engine_of
    from agent.runbook import load as load_runbooks

    session = current()
    need_root(session, "holdfast incident approve")
    with memory() as store:
        found = pick(store, incident)
    settings = load(session.host.files)
    engine = engine_of(settings, found.subject)
    book = load_runbooks(session.host.files).runbook_for(found.finding, engine.kind if engine else None)
    if book is None:
        raise Refused(
            f"no runbook can cure {found.finding}: a person must act",
            hint=f"holdfast explain {found.finding}",
            code="no-runbook",
        )
    return _follow.approve(session, found, book.id, because)


def pick(store: ReadOnlyStore, incident: str | None) -> Incident:
    """The incident meant. Raises UsageError when none or several could be."""
    opened = [each for each in store.load_incidents() if each.phase is not Phase.PENDING]
    if incident is None:
        if len(opened) == 1:
            return opened[0]
        if not opened:
            raise UsageError("no incident is open", hint="holdfast incident list --all")
        raise UsageError(
            f"{len(opened)} incidents are open: say which",
            hint="; ".join(f"{each.id} {each.finding}" for each in opened[:5]),
        )
    wanted = incident.upper()
    exact = store.incident(wanted) or store.incident(incident)
    if exact is not None:
        return exact
    # Ids of one hour begin alike, so the end is what people read out; both are taken.
    fitting = [
        each for each in store.load_incidents(open_only=False) if each.id.startswith(wanted) or each.id.endswith(wanted)
    ]
    if len(fitting) == 1:
        return fitting[0]
    few = f"{len(fitting)} incidents fit {incident!r}" if fitting else f"there is no incident {incident!r}"
    raise UsageError(few, hint="holdfast incident list --all", code="unknown-name")


def _as_json(incident: Incident) -> dict[str, Json]:
    from agent.cli._result import rfc3339

    return {
        "id": incident.id,
        "key": incident.key,
        "finding": incident.finding,
        "subject": incident.subject,
        "phase": incident.phase.value,
        "urgency": incident.urgency.value,
        "summary": incident.summary,
        "evidence": incident.evidence,
        "since": rfc3339(incident.since),
        "opened_at": rfc3339(incident.opened_at.wall) if incident.opened_at else None,
        "changed_at": rfc3339(incident.changed_at.wall),
        "acknowledged_by": incident.acknowledged_by or None,
        "paused": incident.paused,
        "folded": list(incident.folded),
        "tried": list(incident.tried),
        "left": incident.left,
        "command": incident.command or None,
        "runs": list(incident.runs),
        "decision": incident.decision,
    }


VERB = Verb(commands=(list_, show, ack, approve), help="List, show, acknowledge or approve incidents.", group=True)
