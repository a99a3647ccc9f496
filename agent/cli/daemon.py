"""`holdfast daemon`: what holdfast.service runs."""

from __future__ import annotations

from agent.cli._result import Result, plain
from agent.cli._verb import Verb


def daemon() -> Result:
    """Run the daemon in the foreground (holdfast.service does)."""
    from agent.daemon import run

    code = run()
    return Result("daemon", {"exit_code": code}, plain(""), exit_code=code)


VERB = Verb(commands=(daemon,))
