"""`holdfast stop`: abort a run in flight, with its undo."""

from __future__ import annotations

from typing import Annotated

import typer

from agent.cli._common import need_root
from agent.cli._result import Live, Progress, Result, plain
from agent.cli._session import current
from agent.cli._verb import Verb
from agent.errors import UsageError
from agent.model import Status


def stop(
    run: Annotated[
        str | None, typer.Argument(metavar="RUN", help="The run's id; may be left out where only one is in flight.")
    ] = None,
) -> Live:
    """Stop a run or a rehearsal in flight: it undoes what it began, and the reason is recorded."""
    session = current()
    need_root(session, "holdfast stop")
    return _stop(run)


def _stop(run: str | None) -> Live:
    from agent import ledger
    from agent.cli import _follow
    from agent.cli._sockets import events
    from agent.protocol import Request

    session = current()
    open_runs = [each.run for each in ledger.open_attempts(ledger.read(session.host).records, session.host.clock.now())]
    if run is None:
        if len(open_runs) != 1:
            words = "no run is in flight" if not open_runs else f"{len(open_runs)} runs are in flight: say which"
            raise UsageError(words, hint="holdfast audit show" if not open_runs else ", ".join(open_runs))
        run = open_runs[0]
    elif run not in open_runs:
        raise UsageError(
            f"run {run} is not in flight", hint=f"in flight: {', '.join(open_runs) or 'none'}", code="unknown-run"
        )
    for event in events(session, Request(do="stop", id=run)):
        if event.event == "refused":
            raise _follow.refused(event, session.host.clock.now().wall)
        if event.event == "ended":
            outcome = str(event.data.get("outcome"))
            code = Status.OK if outcome in ("stopped", "undone", "succeeded") else Status.CRITICAL
            text = f"{outcome.upper()}: {event.data.get('summary', '')}"
            return Result("stop", {"id": run, "outcome": outcome}, plain(text), exit_code=code.exit_code)
        if event.event in ("undone", "progress"):
            yield Progress(
                f"{event.event}: {event.data.get('text') or event.data.get('summary') or ''}", transient=True
            )
    return Result(
        "stop", {"id": run, "outcome": None}, plain(f"asked {run} to stop\nnext     sudo holdfast run --follow {run}")
    )


VERB = Verb(commands=(stop,))
