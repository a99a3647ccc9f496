"""`holdfast daemon`: what holdfast.service runs."""

from __future__ import annotations

from posixpath import dirname
from typing import TYPE_CHECKING

from agent.cli._memory import STORE
from agent.cli._result import Result, plain
from agent.cli._session import current
from agent.cli._verb import Verb
from agent.errors import FileTrouble, PermissionRefused

if TYPE_CHECKING:
    from agent.cli._session import Session


def daemon() -> Result:
    """Run the daemon in the foreground (holdfast.service does)."""
    from agent.daemon import run

    _not_as_root(current())
    code = run()
    return Result("daemon", {"exit_code": code}, plain(""), exit_code=code)


def _not_as_root(session: Session) -> None:
    """Root writes nothing below a directory that another user owns. Raises PermissionRefused."""
    state = dirname(STORE)
    try:
        owner = session.host.files.stat(state).uid
    except FileTrouble:
        return
    if session.root and owner != 0:
        words = f"{state} belongs to the daemon's user, so root does not write there"
        raise PermissionRefused(words, hint="sudo systemctl start holdfast", where=state)


VERB = Verb(commands=(daemon,))
