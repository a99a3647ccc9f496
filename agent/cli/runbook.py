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
    from agent.config import Config
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
    runbook: Annotated[
        str | None, typer.Argument(metavar="RUNBOOK", help="The runbook's id.", autocompletion=_ids)
    ] = None,
    subject: Annotated[str | None, typer.Option("--subject", help="What to run it on: host, engine:NAME.")] = None,
    engine: Annotated[str | None, typer.Option("--engine", help="The engine to run it on.")] = None,
    inputs: Annotated[
        list[str] | None, typer.Option("--input", metavar="NAME=VALUE", help="One of the runbook's inputs.")
    ] = None,
    form: Annotated[
        str, typer.Option("--format", metavar="FORMAT", help="text, md, html or pdf (one A4 page each).")
    ] = "text",
    output: Annotated[str | None, typer.Option("--output", metavar="FILE", help="Write it to this file.")] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Every runbook that fits this host, for the binder.")
    ] = False,
) -> Result:
    """Print a runbook for hands, on one page: the commands it would run now, to type one by one, and their proof.

    The same plan that `holdfast run` carries out, from fresh facts, without the daemon; what only root can see may be
    missing without sudo. An engine that cannot be rebuilt here gets a page of what to do instead. Print the binder
    while all is well: sudo holdfast runbook print --all --format pdf --output binder.pdf
    """
    from agent.cli import _sheets
    from agent.cli.run import typed
    from agent.runbook import load

    if form not in _sheets.FORMATS:
        raise UsageError(f"{form!r} is no format", hint=f"one of: {', '.join(_sheets.FORMATS)}")
    if subject and engine:
        raise UsageError(
            "--subject and --engine exclude each other", hint="holdfast runbook print RUNBOOK --engine NAME"
        )
    settings = configuration()
    if everything:
        if runbook or subject or engine or inputs:
            raise UsageError("--all prints every runbook on every subject", hint="holdfast runbook print --all")
        sheets = _sheets.binder(settings, load(current().host.files).by_id.values())
        data: dict[str, Json] = {"pages": [{"runbook": each.name, "subject": each.subject} for each in sheets]}
    else:
        if runbook is None:
            raise UsageError("no runbook was given", hint="holdfast runbook list, or --all for every one")
        book = _find(runbook)
        about = _subject(settings, book, f"engine:{engine}" if engine else subject)
        page, steps = _sheets.sheet(settings, book, about, book.resolved_inputs(typed(inputs or (), book)))
        check = f"holdfast check {book.verify.check} --subject {about}" if book.verify and steps else None
        sheets, data = [page], {"runbook": book.id, "subject": about, "steps": steps, "verify": check}
    text, raw = _sheets.rendered(sheets, form)
    if output is None:
        return Result("printed-runbook", data, text, raw=raw)
    _write(output, raw if raw is not None else f"{text(0)}\n".encode())
    count = f"{len(sheets)} page{'s' if len(sheets) != 1 else ''}"
    return Result("printed-runbook", {**data, "file": output}, lambda _width: f"{count} in {output}")


def _find(runbook: str) -> Runbook:
    from agent.cli.run import find

    return find(runbook)


def _subject(settings: Config, book: Runbook, given: str | None) -> str:
    """The subject to print for; an engine that the runbook does not fit only where its page says what to do instead."""
    from agent.cli._sheets import rebuilds
    from agent.cli.run import choose_subject

    if given is not None and rebuilds(book) and given.startswith("engine:") and given in settings.subjects():
        return given
    return choose_subject(settings, book, given)


def _write(path: str, content: bytes) -> None:
    """A file of the caller's own, where she said. Raises UsageError."""
    from pathlib import Path

    try:
        Path(path).write_bytes(content)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}", hint="--output FILE") from error


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
