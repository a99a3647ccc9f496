"""`holdfast unhold`: release the holds that are ours."""

from __future__ import annotations

from typing import Annotated

import typer

from agent.cli._common import need_root
from agent.cli._result import Live, Result, plain
from agent.cli._session import current
from agent.cli._verb import Verb


def unhold(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show every step with its real values and do nothing.")
    ] = False,
    because: Annotated[str, typer.Option("--because", help="Why, for the record.")] = "",
) -> Result | Live:
    """Release exactly what Holdfast holds; what somebody else holds stays.

    From then on the driver moves with every upgrade again. Waits up to ten minutes for whoever is changing packages.
    """
    from agent.cli.run import run
    from agent.host import drop_ins, holds

    session = current()
    need_root(session, "holdfast unhold")
    files = session.host.files
    if not any(files.exists(path) for path in (holds.FILE, drop_ins.UNATTENDED, drop_ins.NEEDRESTART)):
        text = "nothing here is held by Holdfast (apt-mark showhold lists what somebody else holds)"
        return Result("nothing-held", {"released": []}, plain(text))
    return run("release-driver", subject="host", dry_run=dry_run, because=because)


VERB = Verb(commands=(unhold,))
