"""`holdfast pager test`: send a test event to every receiver and say what each answered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from agent.cli._common import configuration, unknown
from agent.cli._result import Live, Problem, Progress, Result
from agent.cli._session import current
from agent.cli._verb import Verb
from agent.errors import DaemonUnreachable, UsageError
from agent.model import DeliveryState, Status

if TYPE_CHECKING:
    from agent.cli._session import Session
    from agent.plugin import ReceiverSettings


@dataclass(frozen=True, slots=True)
class Answer:
    """What one receiver said to the test event."""

    name: str
    state: str
    reason: str

    @property
    def status(self) -> Status:
        """Whether it would ring."""
        return Status.OK if self.state == DeliveryState.SENT.value else Status.CRITICAL


def test(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Only this receiver.")] = None,  # noqa: PT028 - a verb, no test
) -> Live:
    """Send a test event to every receiver, or to one, and say what each answered.

    The daemon sends it, so that its own way out is tested; without the daemon it is sent from here. A test event opens
    no incident.
    """
    settings = configuration()
    wanted = [each for each in settings.receivers if name in (None, each.name)]
    if not wanted:
        if name is not None:
            unknown("receiver", name, [each.name for each in settings.receivers])
        raise UsageError(
            "no receiver is configured: nobody is paged",
            hint="sudo holdfast init --pagerduty-key-file FILE",
            code="no-receiver",
        )
    return _test(current(), wanted, name)


def _test(session: Session, wanted: list[ReceiverSettings], name: str | None) -> Live:
    yield Progress(f"testing  {', '.join(each.name for each in wanted)} …", transient=True)
    try:
        answers, by = _through_daemon(session, wanted, name or ""), "the daemon"
        errors: tuple[Problem, ...] = ()
    except DaemonUnreachable as error:
        answers, by = _from_here(session, wanted), "this command"
        errors = (
            Problem(error.code, "the daemon did not answer, so the test was sent from here", error.hint, error.where),
        )
    worst = Status.OK if all(each.status is Status.OK for each in answers) else Status.CRITICAL
    data = {"sent_by": by, "receivers": [{"name": a.name, "state": a.state, "reason": a.reason} for a in answers]}
    return Result("pager-test", data, lambda width: _table(answers, width), exit_code=worst.exit_code, errors=errors)


def _through_daemon(session: Session, wanted: list[ReceiverSettings], name: str) -> list[Answer]:
    from agent.cli._sockets import control

    data = control(session, "pager-test", {"receiver": name})
    said = data.get("receivers")
    found = {str(each.get("name")): each for each in said if isinstance(each, dict)} if isinstance(said, list) else {}
    return [
        Answer(each.name, str(found[each.name].get("state")), str(found[each.name].get("reason") or ""))
        if each.name in found
        else Answer(each.name, "unknown", "the daemon has not loaded this receiver: sudo systemctl reload holdfast")
        for each in wanted
    ]


def _from_here(session: Session, wanted: list[ReceiverSettings]) -> list[Answer]:
    from agent.model import Urgency
    from agent.pager import last_words, outbox
    from agent.pager.message import notice
    from agent.store import Attempt

    host = session.host
    lines = (
        "This is a test of Holdfast's pager, sent by holdfast pager test.",
        "Nothing is wrong and nothing is to do.",
    )
    key = f"{last_words.prefix(host)}/pager-test/host"
    alert = notice(key, "event", Urgency.INFO, "Holdfast test", lines, last_words.origin(host), host.clock.now().wall)
    answers = []
    for each in wanted:
        delivery = outbox.attempt(host, (each,), Attempt(0, each.name, alert, 1))
        answers.append(Answer(each.name, delivery.state.value, delivery.reason))
    return answers


def _table(answers: list[Answer], width: int) -> str:
    from agent.views import texts

    words = {"sent": "taken", "retry": "not taken now", "permanent": "refused for good"}
    rows = [
        (a.status.value, a.name, f"{words.get(a.state, a.state)}{': ' + a.reason if a.reason else ''}") for a in answers
    ]
    return "\n".join(texts.table(("STATUS", "RECEIVER", "ANSWER"), rows, width))


VERB = Verb(commands=(test,), help="Test the pager.", group=True)
