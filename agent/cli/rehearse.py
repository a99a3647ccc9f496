"""`holdfast rehearse`: do of a runbook what disturbs nobody, beside what serves, and clear up again."""

from __future__ import annotations

from typing import Annotated

import typer

from agent.cli._common import configuration, need_root
from agent.cli._result import Live, Result
from agent.cli._session import current
from agent.cli._verb import Verb
from agent.cli.run import asking, choose_subject, find, runbooks, typed
from agent.errors import UsageError


def rehearse(
    runbook: Annotated[
        str, typer.Argument(metavar="RUNBOOK", help="The runbook's id: holdfast runbook list.", autocompletion=runbooks)
    ],
    subject: Annotated[str | None, typer.Option("--subject", help="What to rehearse it on: engine:NAME, host.")] = None,
    engine: Annotated[
        str | None, typer.Option("--engine", help="The engine to rehearse it on; short for --subject engine:NAME.")
    ] = None,
    inputs: Annotated[
        list[str] | None, typer.Option("--input", metavar="NAME=VALUE", help="One of the runbook's inputs.")
    ] = None,
    because: Annotated[str, typer.Option("--because", help="Why, for the record.")] = "",
) -> Result | Live:
    """Rehearse a runbook beside what serves: every step that disturbs nobody is done, and then undone.

    What it took is kept, and doctor tells it. It spends no budget, and whatever repair is needed meanwhile ends it. The
    exit code is 0 when every step worked, 1 when it was stopped, 2 when one failed, 77 when it was refused. Ctrl-C
    leaves it going on.
    """
    from agent.cli import _follow
    from agent.cli._sockets import new_id

    session = current()
    if subject and engine:
        raise UsageError("--subject and --engine exclude each other", hint=f"holdfast rehearse {runbook} --engine NAME")
    need_root(session, f"holdfast rehearse {runbook}")
    settings, book = configuration(), find(runbook)
    about = choose_subject(settings, book, f"engine:{engine}" if engine else subject)
    request = asking(
        do="rehearse",
        id=new_id(),
        runbook=book.id,
        subject=about,
        args=typed(inputs or (), book),
        because=because[:500],
    )
    return _follow.run(session, request, total=len(book.steps))


VERB = Verb(commands=(rehearse,))
