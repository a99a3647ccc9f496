"""`holdfast run`: run one runbook on one subject, as root, and follow it to the end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from agent.cli._common import Force, configuration, need_root, unknown
from agent.cli._result import Live, Result
from agent.cli._session import current
from agent.cli._verb import Verb
from agent.errors import UsageError
from agent.model import Json

if TYPE_CHECKING:
    from agent.cli._session import Session
    from agent.config import Config
    from agent.protocol import Request
    from agent.runbook import Runbook


def runbooks(incomplete: str) -> list[str]:
    """The ids of runbooks that begin like this, for the shell's completion."""
    found = set()
    for directory in ("/usr/share/holdfast/runbooks", "/etc/holdfast/runbooks.d"):
        if current().host.files.exists(directory):
            found |= {name.rpartition(".")[0] for name in current().host.files.listdir(directory)}
    return sorted(name for name in found if name.startswith(incomplete))


def run(  # noqa: PLR0913, PLR0917 - one parameter for each option
    runbook: Annotated[
        str | None,
        typer.Argument(metavar="RUNBOOK", help="The runbook's id: holdfast runbook list.", autocompletion=runbooks),
    ] = None,
    subject: Annotated[str | None, typer.Option("--subject", help="What to run it on: host, engine:NAME.")] = None,
    engine: Annotated[
        str | None, typer.Option("--engine", help="The engine to run it on; short for --subject engine:NAME.")
    ] = None,
    inputs: Annotated[
        list[str] | None, typer.Option("--input", metavar="NAME=VALUE", help="One of the runbook's inputs.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show every step with its real values and do nothing.")
    ] = False,
    force: Force = False,
    because: Annotated[str, typer.Option("--because", help="Why, for the record.")] = "",
    follow: Annotated[
        str | None, typer.Option("--follow", metavar="RUN", help="Follow a run that is already going on.")
    ] = None,
) -> Result | Live:
    """Run a runbook on a subject and follow it to the end.

    The exit code is 0 when it succeeded, 1 when it was stopped, 2 when it failed, 77 when it was refused. Ctrl-C
    leaves the run going on.
    """
    from agent.cli import _follow
    from agent.cli._sockets import new_id

    session = current()
    if follow is not None:
        if runbook is not None:
            raise UsageError("--follow takes a run, not a runbook", hint="holdfast run --follow RUN")
        return _follow.run(session, asking(do="follow", id=follow))
    if runbook is None:
        raise UsageError("no runbook was given", hint="holdfast runbook list")
    if subject and engine:
        raise UsageError("--subject and --engine exclude each other", hint=f"holdfast run {runbook} --engine NAME")
    need_root(session, f"holdfast run {runbook}")
    settings = configuration()
    book = find(runbook)
    about = choose_subject(settings, book, f"engine:{engine}" if engine else subject)
    given = typed(inputs or (), book)
    request = asking(
        do="plan" if dry_run else "run",
        id=new_id(),
        runbook=book.id,
        subject=about,
        args=given,
        because=because[:500],
        force=force,
    )
    if not dry_run:
        return _follow.run(session, request, total=len(book.steps))
    return preview(session, request, book.title)


def preview(session: Session, request: Request, title: str) -> Result:
    """What a request to run would do, from a request for its plan; nothing is done. Raises Refused."""
    from agent.cli import _follow

    planned = _follow.plan(session, request)
    lines = [f"# {request.runbook} on {request.subject}: {title}", *_follow.plan_lines(planned), *_verdict(planned)]
    data = {"runbook": request.runbook, "subject": request.subject, **planned}
    return Result("plan", data, lambda _width: "\n".join(lines))


def _verdict(planned: Mapping[str, Json]) -> list[str]:
    """Whether it would be allowed now, and the proof that would follow."""
    lines = []
    verify, decision = planned.get("verify"), planned.get("decision")
    if isinstance(verify, dict):
        checks = ", ".join([str(verify.get("check")), *map(str, verify.get("also") or ())])
        lines.append(f"# proof: {checks}, within {verify.get('within_s'):g} s")
    if isinstance(decision, dict) and not decision.get("allow"):
        lines.append(f"# it would be refused now: {decision.get('reason')} [{decision.get('code')}]")
    return lines


def asking(**fields: Json) -> Request:
    """A request to the runner. Raises UsageError for what cannot be asked."""
    from pydantic import ValidationError

    from agent.protocol import Request

    try:
        return Request.model_validate(fields)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise UsageError(f"this cannot be asked: {wrong}", hint="holdfast run --help") from None


def find(runbook: str) -> Runbook:
    """The runbook with this id. Raises UsageError, ConfigurationError."""
    from agent.runbook import load

    books = load(current().host.files)
    found = books.get(runbook)
    if found is None:
        unknown("runbook", runbook, books.by_id)
    return found


def choose_subject(settings: Config, book: Runbook, given: str | None) -> str:
    """The subject to run on: the one given, or the only one that fits and is configured for it; else the host.

    Raises UsageError.
    """
    fitting = fitting_subjects(settings, book)
    if given is None:
        from agent.facts import unfit

        fitting = tuple(subject for subject in fitting if not unfit(settings, book, subject)) or fitting
    if given is not None:
        if given not in fitting:
            unknown(f"subject for {book.id}", given, fitting)
        return given
    if len(fitting) == 1:
        return fitting[0]
    if "host" in fitting and not book.needs_engine:
        return "host"
    if not fitting:
        raise UsageError(f"nothing here fits {book.id}", hint="sudo holdfast init")
    raise UsageError(f"{book.id} fits several subjects: say which", hint=f"--subject {' | '.join(fitting)}")


def fitting_subjects(settings: Config, book: Runbook) -> tuple[str, ...]:
    """The subjects that a runbook could run on, as the runner sees it."""
    from agent.facts import has_subject

    return tuple(subject for subject in settings.subjects() if has_subject(settings, book, subject))


def typed(words: Iterable[str], book: Runbook) -> Mapping[str, Json]:
    """The inputs from NAME=VALUE words, typed as the runbook declares. Raises UsageError, ConfigurationError."""
    given: dict[str, Json] = {}
    for word in words:
        name, separator, value = word.partition("=")
        if not separator:
            raise UsageError(
                f"{word!r} is not NAME=VALUE", hint=f"inputs of {book.id}: {', '.join(book.inputs) or 'none'}"
            )
        declared = book.inputs.get(name)
        if declared is None:
            unknown(f"input of {book.id}", name, book.inputs)
        given[name] = _value(declared.type, value, name)
    return given


def _value(kind: str, text: str, name: str) -> Json:
    try:
        if kind == "integer":
            return int(text)
        if kind == "number":
            return float(text)
    except ValueError:
        raise UsageError(f"{name}: {text!r} is no {kind}") from None
    if kind == "boolean":
        if text.lower() not in ("true", "false", "yes", "no"):
            raise UsageError(f"{name}: {text!r} is neither true nor false")
        return text.lower() in ("true", "yes")
    return text


VERB = Verb(commands=(run,))
