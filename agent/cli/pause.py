"""`holdfast pause`: stop acting for a while; watching and paging go on."""

from __future__ import annotations

from typing import Annotated

import typer

from agent.cli._common import need_root, seconds
from agent.cli._result import Result, plain, rfc3339
from agent.cli._session import current
from agent.cli._verb import Verb


def pause(
    duration: Annotated[str, typer.Argument(metavar="DURATION", help="For how long: 30m, 2h, 1d12h.")],
    reason: Annotated[str, typer.Option("--reason", help="Why, for whoever looks at the status.")],
) -> Result:
    """Stop acting for a while; watching and paging go on.

    No runbook starts until the time is over or somebody resumes. A run in flight is not stopped.
    """
    from agent.cli._sockets import ask, new_id
    from agent.protocol import Request
    from agent.views import texts

    session = current()
    for_s = seconds(duration)
    need_root(session, f"holdfast pause {duration} --reason '…'")
    ask(session, Request(do="pause", id=new_id(), args={"for_s": for_s}, because=reason[:500]), "paused")
    now = session.host.clock.now().wall
    until = texts.clock(now + for_s, now)
    text = f"PAUSED for {texts.duration(for_s)}, until {until}: {reason}\nnext     sudo holdfast resume"
    return Result("paused", {"until": rfc3339(now + for_s), "for_s": for_s, "reason": reason}, plain(text))


VERB = Verb(commands=(pause,))
