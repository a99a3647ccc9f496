"""`holdfast explain`: what a name means and what to do about it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from agent.cli._common import unknown
from agent.cli._result import Result
from agent.cli._session import current
from agent.cli._verb import Verb

if TYPE_CHECKING:
    from agent.cli._catalogue import Entry


def _names(incomplete: str) -> list[tuple[str, str]]:
    from agent.cli._catalogue import entries
    from agent.errors import HoldfastError
    from agent.runbook import load

    try:
        return [
            (entry.id, entry.title)
            for entry in entries(load(current().host.files).by_id)
            if entry.id.startswith(incomplete)
        ]
    except HoldfastError:
        return []


def explain(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="A cause, check, action, runbook, engine or receiver.", autocompletion=_names
        ),
    ],
) -> Result:
    """Say what a cause, check, action or runbook means, and what to do."""
    from agent.cli._catalogue import entries
    from agent.runbook import load

    found: dict[str, Entry] = {}
    for entry in entries(load(current().host.files).by_id):
        found.setdefault(entry.id, entry)
    if name not in found:
        unknown("name", name, found)
    entry = found[name]
    return Result("explain", asdict(entry), lambda width: page(entry, width))


def page(entry: Entry, width: int) -> str:
    """One entry as text."""
    from agent.views import texts

    lines = [*texts.paragraph(f"{entry.id} ({entry.kind}): {entry.title}", width)]
    for part in entry.text.split("\n\n"):
        lines += ["", *texts.paragraph(part, width)] if part else []
    if entry.facts:
        lines.append("")
    for label, words in entry.facts:
        lines += texts.labelled(label, words, width, label_width=13)
    if entry.parameters:
        lines += ["", "settings"]
        rows = []
        for each in entry.parameters:
            default = "must be given" if each.default is None else f"default {each.default}"
            rows.append(
                (each.name, f"{each.text or each.type} ({default})" if each.text else f"{each.type} ({default})")
            )
        lines += texts.table(("NAME", "MEANING"), rows, width)
    if entry.commands:
        lines.append("")
    for command in entry.commands:
        lines += texts.command("next", command, width)
    return "\n".join(lines)


VERB = Verb(commands=(explain,))
