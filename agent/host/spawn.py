"""Starting the runner as a child of the command line, where no systemd listens for it."""

from __future__ import annotations

import os
import subprocess
import sys

from agent.errors import CommandFailed
from agent.host.clock import BOOT_ID_VARIABLE
from agent.host.commands import PATH
from agent.host.ipc import Lines, pair

_PROGRAM = "import sys; sys.path[:0] = sys.argv.pop().split(':'); from agent.runner import main; sys.exit(main())"


def runner() -> Lines:
    """A runner of our own with the connection on its fd 0, as systemd would start it. Raises CommandFailed.

    It gets a session of its own, so that Ctrl-C at the terminal leaves the run going, and an environment as clean as
    systemd's: what a person's shell exports is not for root's programs.
    """
    ours, theirs = pair()
    isolated = ("-IS",) if sys.flags.isolated else ()
    kept = {BOOT_ID_VARIABLE: os.environ[BOOT_ID_VARIABLE]} if BOOT_ID_VARIABLE in os.environ else {}
    try:
        subprocess.Popen(
            [sys.executable, *isolated, "-c", _PROGRAM, ":".join(path or os.getcwd() for path in sys.path)],
            env={"PATH": PATH, "LC_ALL": "C.UTF-8", **kept},
            stdin=theirs.fileno(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        ours.close()
        raise CommandFailed(f"the runner cannot be started: {error.strerror}", where=sys.executable) from error
    finally:
        theirs.close()
    return ours
