"""`holdfast explain`: what a name means and what to do about it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from agent.cli._common import unknown
from agent.cli._result import Result
from agent.cli._session import current
from agent.cli._verb import Verb
from agent.errors import UsageError

if TYPE_CHECKING:
    from agent.cli._catalogue import Entry

XID = "xid"


def _names(incomplete: str) -> list[tuple[str, str]]:
    from agent.cli._catalogue import entries
    from agent.errors import HoldfastError
    from agent.runbook import load

    try:
        named = [(entry.id, entry.title) for entry in entries(load(current().host.files).by_id)]
        return [each for each in (*named, (XID, "a code of the NVIDIA driver")) if each[0].startswith(incomplete)]
    except HoldfastError:
        return []


def _codes(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    from agent.host import xid

    if ctx.params.get("name") != XID:
        return []
    return [(each.key, each.name) for each in xid.catalogue().entries.values() if each.key.startswith(incomplete)]


def explain(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="A cause, check, action, runbook, engine or receiver, or xid.", autocompletion=_names
        ),
    ],
    code: Annotated[
        str | None,
        typer.Argument(metavar="[CODE]", help="After xid: the code; all of them without one.", autocompletion=_codes),
    ] = None,
) -> Result:
    """Say what a cause, check, action or runbook means, and what to do; `xid 79`: what the driver's message means."""
    from agent.cli._catalogue import entries
    from agent.runbook import load

    if name == XID:
        return _xids() if code is None else _xid(code)
    if code is not None:
        raise UsageError(f"only {XID} takes a code", hint=f"holdfast explain {name}")
    found: dict[str, Entry] = {}
    for entry in entries(load(current().host.files).by_id):
        found.setdefault(entry.id, entry)
    if name not in found:
        unknown("name", name, found)
    entry = found[name]
    return Result("explain", asdict(entry), lambda width: page(entry, width))


def _xids() -> Result:
    from agent.host import xid
    from agent.views import texts

    known = list(xid.catalogue().entries.values())
    rows = [(each.key, each.severity, each.fault, each.name) for each in known]
    return Result(
        "explain",
        {"kind": "Xid codes", "codes": [asdict(each) for each in known]},
        lambda width: "\n".join(texts.table(("CODE", "FOR THE CARD", "USUALLY", "WHAT"), rows, width)),
    )


def _xid(code: str) -> Result:
    from agent.cli._catalogue import xid_entries

    known = {entry.id: entry for entry in xid_entries()}
    key = code.lstrip("0") if code.isdecimal() else code.lower()
    if key not in known:
        raise UsageError(
            f"{code} is no Xid code that is known here",
            hint="a newer driver may know it: see docs.nvidia.com/deploy/xid-errors; known ones: holdfast explain xid",
            code="unknown-name",
        )
    entry = known[key]
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
