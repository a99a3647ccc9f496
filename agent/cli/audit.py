"""`holdfast audit`: what was done on this host, by whom, and whether the record is whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from agent.cli._common import as_root_hint
from agent.cli._result import Result, plain, rfc3339
from agent.cli._session import current
from agent.cli._verb import Verb
from agent.errors import FileTrouble, PermissionRefused, UsageError
from agent.model import Json, Status

if TYPE_CHECKING:
    from agent.ledger import Contents, Record


def show(
    run: Annotated[str | None, typer.Argument(metavar="RUN", help="Only this run, with everything it did.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=100000, help="At most so many records, the latest.")] = 50,
) -> Result:
    """Show what was done, asked, refused, approved and paused; with a run's id, everything it did."""
    from agent.views import texts

    if run is not None:
        return _transcript(run)
    records = _ledger().records[-limit:]
    rows = [(rfc3339(each.at.wall) or "", each.kind.value, each.run, words(each)) for each in records]
    data = {"records": [as_json(each) for each in records]}
    return Result(
        "audit",
        data,
        lambda w: "\n".join(texts.table(("AT", "WHAT", "RUN", "DETAILS"), rows, w)) or "nothing was ever done",
    )


def verify() -> Result:
    """Check the chain of hashes: whether any record was changed or lost."""
    from agent import ledger

    contents = _ledger()
    problems = ledger.verify(contents)
    if not problems:
        text = f"OK - {len(contents.records)} records, the chain is whole"
        return Result("audit-verify", {"whole": True, "records": len(contents.records), "problems": []}, plain(text))
    text = "\n".join([f"CRITICAL - the record of {ledger.FILE} is not whole", *(f"  {each}" for each in problems)])
    data = {"whole": False, "records": len(contents.records), "problems": list(problems)}
    return Result("audit-verify", data, plain(text), exit_code=Status.CRITICAL.exit_code)


def _ledger() -> Contents:
    from agent import ledger

    try:
        return ledger.read(current().host)
    except FileTrouble as error:
        raise _denied(error) from error


def _denied(error: FileTrouble) -> Exception:
    return PermissionRefused(error.message, hint=as_root_hint(), where=error.where) if error.kind == "denied" else error


def _transcript(run: str) -> Result:
    import re

    from agent import transcript
    from agent.cli._follow import step_line
    from agent.protocol import ULID
    from agent.views import texts

    wanted = run.upper()
    if not re.fullmatch(ULID, wanted):
        raise UsageError(f"{run!r} is no run's id", hint="holdfast audit show")
    try:
        events = transcript.events(current().host, wanted)
    except FileTrouble as error:
        if error.kind == "missing":
            raise UsageError(f"there is no run {wanted}", hint="holdfast audit show", code="unknown-run") from error
        raise _denied(error) from error

    def page(width: int) -> str:
        lines: list[str] = []
        for event in events:
            data = event.data
            text = step_line(data) if event.event == "step_ended" else _plain(data)
            lines += texts.labelled(
                f"{texts.clock(event.at, event.at)[:8]} {event.event}", text or "-", width, label_width=23
            )
        return "\n".join(lines)

    found = [{"at": rfc3339(event.at), "event": event.event, "data": event.data} for event in events]
    return Result("transcript", {"run": wanted, "events": found}, page)


def _plain(data: dict[str, Json]) -> str:
    keys = ("name", "text", "check", "reason", "outcome", "summary", "runbook", "subject", "because")
    lines = data.get("lines")
    shown = [str(data[key]) for key in keys if data.get(key)]
    return ", ".join(shown) + ("\n" + "\n".join(map(str, lines)) if isinstance(lines, list) else "")


def words(record: Record) -> str:
    """One record for a person."""
    shown = ("runbook", "subject", "outcome", "code", "reason", "summary", "because", "incident", "for_s", "count")
    parts = [
        f"{record.data[key]}" if key not in ("for_s", "count") else f"{key}={record.data[key]}"
        for key in shown
        if record.data.get(key)
    ]
    inputs = record.data.get("inputs")
    given = dict(inputs) if isinstance(inputs, dict) else {}
    by = given.pop("by", None)
    parts += [f"{name} {value}" for name, value in given.items() if value and value != record.data.get("because")]
    uid = record.data.get("uid")
    who = [f"by {by}"] if by else [f"by uid {uid}"] if uid is not None else []
    return ", ".join([*parts, *who])


def as_json(record: Record) -> dict[str, Json]:
    """One record as JSON values."""
    return {
        "seq": record.seq,
        "at": rfc3339(record.at.wall),
        "kind": record.kind.value,
        "run": record.run or None,
        "data": dict(record.data),
        "hash": record.hash,
    }


VERB = Verb(commands=(show, verify), help="Show and verify the record of every action.", group=True)
