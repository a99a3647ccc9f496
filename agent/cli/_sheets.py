"""Making printed pages: one runbook on one subject, or the binder with all that fit this host."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from agent.cli._session import current
from agent.errors import ConfigurationError, HoldfastError, UsageError
from agent.model import Json

if TYPE_CHECKING:
    from agent.config import Config
    from agent.plugin import EngineSettings
    from agent.runbook import Runbook
    from agent.views.sheet import Place, Sheet

FORMATS = ("text", "md", "html", "pdf")


def sheet(
    settings: Config, book: Runbook, subject: str, inputs: dict[str, Json]
) -> tuple[Sheet, list[dict[str, Json]]]:
    """One page and the steps on it; of an engine that this runbook cannot rebuild, what to do instead and no steps.

    Raises what the plan raises.
    """
    from agent import execution
    from agent.facts import engine_of, has_subject
    from agent.transcript import Transcript
    from agent.views import sheet as sheets

    host = current().host
    engine = engine_of(settings, subject)
    place = _place(engine)
    if engine is not None and rebuilds(book) and getattr(engine, "rebuild", None) is None:
        return sheets.of_unbuildable(book.id, subject, place, _fitting(settings, subject, book)), []
    if not has_subject(settings, book, subject):
        raise UsageError(f"{book.id} has nothing to act on at {subject}", hint=f"holdfast runbook show {book.id}")
    work = execution.Work(host, settings, book, subject, inputs, "", Transcript(host, ""))
    steps = execution.rehearsed(work, contents=True)
    return sheets.of_runbook(book, subject, steps, place, execution.plan_hash(book, subject, steps)), steps


def rebuilds(book: Runbook) -> bool:
    """Whether a runbook builds an engine anew, so that it needs to be told how."""
    return any(step.use == "build.compile" for step in book.steps)


def binder(settings: Config, books: Iterable[Runbook]) -> list[Sheet]:
    """A page for every runbook on every subject of this host; one whose plan cannot be made now says why.

    What needs an input that nobody gave is a command of its own (holdfast hold, change, lock) and left out.
    """
    from agent.facts import engine_of, has_subject
    from agent.views import sheet as sheets

    found = []
    for book in books:
        try:
            inputs = book.resolved_inputs({})
        except ConfigurationError:
            continue
        for subject in settings.subjects():
            engine = engine_of(settings, subject)
            if not has_subject(settings, book, subject) and not (engine is not None and rebuilds(book)):
                continue
            if subject == "host" and book.needs_engine:
                continue
            if subject != "host" and not book.needs_engine:
                continue
            try:
                found.append(sheet(settings, book, subject, inputs)[0])
            except HoldfastError as error:
                found.append(sheets.of_trouble(book.id, book.title, subject, _place(engine), error.message))
    return found


def rendered(sheets: list[Sheet], form: str) -> tuple[Callable[[int], str], bytes | None]:
    """The pages in one of the FORMATS: as text, and as bytes where the format is none."""
    from agent.views import sheet as views
    from agent.views.sheet_html import as_html
    from agent.views.sheet_pdf import as_pdf

    if form == "pdf":
        return (lambda _width: ""), as_pdf(sheets)
    if form == "html":
        page = as_html(sheets)
    elif form == "md":
        page = "\n\n---\n\n".join(views.as_markdown(each) for each in sheets)
    else:
        page = "\n\n\n".join(views.as_text(each) for each in sheets)
    return (lambda _width: page), None


def _place(engine: EngineSettings | None) -> Place:
    from agent import __version__
    from agent.views.sheet import Place

    now = current().host.clock.now()
    kind, unit = (engine.kind, engine.unit or "") if engine is not None else ("", "")
    return Place(os.uname().nodename, kind, unit, now.wall, __version__)


def _fitting(settings: Config, subject: str, but: Runbook) -> list[str]:
    """The other runbooks for this engine."""
    from agent.facts import has_subject
    from agent.runbook import load

    books = load(current().host.files).by_id.values()
    return [
        each.id
        for each in books
        if each.id != but.id and each.needs_engine and not rebuilds(each) and has_subject(settings, each, subject)
    ]
