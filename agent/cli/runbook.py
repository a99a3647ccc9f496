"""`holdfast runbook`: list, show, print for hands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from agent.cli._common import configuration
from agent.cli._result import Result
from agent.cli._session import current
from agent.cli._verb import Verb
from agent.errors import HoldfastError, UsageError
from agent.model import Json

if TYPE_CHECKING:
    from agent.runbook import Runbook


def _ids(incomplete: str) -> list[str]:
    from agent.runbook import load

    try:
        return [name for name in load(current().host.files).by_id if name.startswith(incomplete)]
    except HoldfastError:
        return []


Name = Annotated[str, typer.Argument(metavar="RUNBOOK", help="The runbook's id.", autocompletion=_ids)]


def list_() -> Result:
    """List all runbooks, shipped and local."""
    from agent.runbook import load
    from agent.views import texts

    books = load(current().host.files).by_id
    rows = [
        (each.id, each.risk.value, ", ".join(each.findings) or "by name only", each.title) for each in books.values()
    ]
    return Result(
        "runbooks",
        {"runbooks": [_as_json(each) for each in books.values()]},
        lambda width: (
            "\n".join(texts.table(("RUNBOOK", "RISK", "FOR", "WHAT"), rows, width)) or "no runbook is installed"
        ),
    )


def show(runbook: Name) -> Result:
    """Show what a runbook is for, its steps and its limits."""
    from agent.cli.run import find
    from agent.views import texts

    book = find(runbook)

    def page(width: int) -> str:
        lines = [*texts.paragraph(f"{book.id}: {book.title}", width), "", *texts.paragraph(book.explain, width), ""]
        for label, words in _facts(book):
            lines += texts.labelled(label, words, width)
        lines += ["", *(f"{number}. {step.name} ({step.use})" for number, step in enumerate(book.steps, start=1))]
        return "\n".join([*lines, "", *texts.command("next", f"holdfast runbook print {book.id}", width)])

    return Result("runbook", _as_json(book), page)


def print_(
    runbook: Name,
    subject: Annotated[str | None, typer.Option("--subject", help="What to run it on: host, engine:NAME.")] = None,
    engine: Annotated[str | None, typer.Option("--engine", help="The engine to run it on.")] = None,
) -> Result:
    """Print a runbook for hands: the commands it would run now, to type one by one.

    The same plan that `holdfast run` carries out, from fresh facts; what only root can see may be missing without sudo.
    """
    from agent import execution
    from agent.cli.run import choose_subject, find
    from agent.transcript import Transcript

    if subject and engine:
        raise UsageError(
            "--subject and --engine exclude each other", hint=f"holdfast runbook print {runbook} --engine NAME"
        )
    host = current().host
    book, settings = find(runbook), configuration()
    about = choose_subject(settings, book, f"engine:{engine}" if engine else subject)
    work = execution.Work(host, settings, book, about, book.resolved_inputs({}), "", Transcript(host, ""))
    steps = execution.rehearsed(work)
    verify = book.verify
    check = f"holdfast check {verify.check} --subject {about}" if verify else ""
    lines = [f"# {book.id} on {about}: {book.title}"]
    for number, step in enumerate(steps, start=1):
        lines += ["", f"# {number}. {step['name']}", *step["lines"]]
    if verify:
        lines += ["", f"# proof, within {verify.within_s:g} s", check]
    data = {"runbook": book.id, "subject": about, "steps": steps, "verify": check or None}
    return Result("printed-runbook", data, lambda _width: "\n".join(lines))


def _facts(book: Runbook) -> list[tuple[str, str]]:
    from agent.cli._catalogue import RISKS
    from agent.views.texts import duration

    limits = book.limits
    proof = f"{book.verify.check} within {duration(book.verify.within_s)}" if book.verify else "none"
    return [
        ("for", ", ".join(book.findings) or "a person, by name"),
        ("engines", ", ".join(book.engines) or "all"),
        ("risk", RISKS[book.risk.value]),
        ("limits", f"{limits.max_runs} runs within {duration(limits.within_s)}, {duration(limits.cooldown_s)} apart"),
        ("inputs", ", ".join(book.inputs) or "none"),
        ("proof", proof),
        ("fails", f"then {book.on_failure}" if book.on_failure else "then a person is paged"),
        ("file", book.file),
    ]


def _as_json(book: Runbook) -> dict[str, Json]:
    steps: list[dict[str, Any]] = [
        {
            "name": s.name,
            "use": s.use,
            "with": dict(s.parameters),
            "timeout_s": s.timeout_s,
            "best_effort": s.best_effort,
        }
        for s in book.steps
    ]
    return {
        "id": book.id,
        "title": book.title,
        "explain": book.explain,
        "for": list(book.findings),
        "engines": list(book.engines),
        "risk": book.risk.value,
        "limits": {
            "cooldown_s": book.limits.cooldown_s,
            "max_runs": book.limits.max_runs,
            "within_s": book.limits.within_s,
        },
        "inputs": {name: each.model_dump(mode="json") for name, each in book.inputs.items()},
        "steps": steps,
        "verify": {"check": book.verify.check, "within_s": book.verify.within_s, "also": list(book.verify.also)}
        if book.verify
        else None,
        "on_failure": book.on_failure or "escalate",
        "hash": book.hash,
        "file": book.file,
    }


VERB = Verb(commands=(list_, show, print_), help="List, show or print runbooks.", group=True)
