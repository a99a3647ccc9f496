"""`holdfast resume`: end a pause."""

from __future__ import annotations

from typing import Annotated

import typer

from agent.cli._common import need_root
from agent.cli._result import Result, plain
from agent.cli._session import current
from agent.cli._verb import Verb


def resume(because: Annotated[str, typer.Option("--because", help="Why, for the record.")] = "") -> Result:
    """End a pause: runbooks may start again."""
    from agent.cli._sockets import ask, new_id
    from agent.protocol import Request

    session = current()
    need_root(session, "holdfast resume")
    ask(session, Request(do="resume", id=new_id(), because=because[:500]), "resumed")
    return Result("resumed", {}, plain("resumed: runbooks may start again"))


VERB = Verb(commands=(resume,))
