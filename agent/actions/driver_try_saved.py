"""Try the saved driver in a scratch root: the set alone, without a network, must give the locked driver.

An overlay over the host's file systems, in namespaces of its own, with few rights and no systemd: there the driver is
taken away and put back with the repair's own commands. What came of it goes into the manifest. A host on which no such
root can be made is told so; nothing is proven there, and nothing is wrong.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from agent.errors import FileTrouble, HostError
from agent.host import Host, saved_driver, saving
from agent.host.saved_driver import FOLDER, MANIFEST, Saved, Trial
from agent.model import Risk
from agent.plugin import Action, Command, Noop, Parameters, Plan, Read, Target, WriteFile

TRIAL_S = 900.0
"""DKMS builds the modules in it."""
ROOM_FACTOR = 3
"""What unpacking takes, against the size of the set."""
WORK = f"{FOLDER}/.trial"
RESULT = f"{WORK}/result.json"
PROGRAM = Path(saved_driver.__file__).with_name("saved_trial.py")


class DriverTrySavedParameters(Parameters):
    """Whether what is proven is tried again."""

    again: bool = True
    """Try it although the very same packages were proven before."""


def plan(host: Host, target: Target, params: Any) -> Plan:
    """The trial, or why there is none."""
    saved = saving.locked_set(host)
    if isinstance(saved, str):
        return Plan((Noop(f"not tried: {saved}"),))
    if saved.manifest.tried is not None and saved.manifest.tried.proven and not params.again:
        return Plan((Noop("the very same packages were proven before"),))
    needed = saved.manifest.size * ROOM_FACTOR
    free = host.files.space(FOLDER).bytes_free
    if free < needed:
        return Plan((Noop(f"not tried: it takes about {needed >> 20} MiB, and {free >> 20} MiB are free"),))
    clear = Command(("rm", "--recursive", "--force", "--one-file-system", "--", WORK), 120.0)
    paths = (entry for entry in sys.path if entry)
    argv = (
        "nice", "unshare", "--mount", "--net", "--ipc", "--uts", "--pid", "--fork", "--kill-child",
        sys.executable, "-IS", str(PROGRAM), saved.folder, WORK, RESULT, *paths,
    )  # fmt: skip
    return Plan(
        (
            clear,
            Command(("install", "--directory", "--mode=0700", "--", WORK), 30.0),
            Command(argv, TRIAL_S, accept=tuple(range(256)), words="trying the saved driver in a scratch root"),
            WriteFile(f"{saved.folder}/{MANIFEST}", lambda host: _noted(host, saved), 0o640),
            clear,
            Read("how the trial ended", lambda host: _summary(host, saved), sums_up=True),
        )
    )


def _noted(host: Host, saved: Saved) -> str:
    """The manifest with the trial's outcome. Raises HostError."""
    now = host.clock.now().wall
    try:
        said = json.loads(host.files.read_text(RESULT))
        trial = Trial(bool(said["proven"]), str(said["words"]), now, float(said["took_s"]))
    except (FileTrouble, ValueError, KeyError, TypeError):
        trial = Trial(False, "not tried: the trial ended without a result", now, 0.0)
    return saved_driver.text(saved_driver.tried(saved_driver.read(host, saved.folder), trial))


def _summary(host: Host, saved: Saved) -> str:
    """How it ended. Raises HostError, so that the step fails, where putting back did not work."""
    trial = saved_driver.read(host, saved.folder).tried
    if trial is None or not (trial.proven or trial.words.startswith("not tried")):
        raise HostError(f"the saved set does not put the driver back: {trial.words if trial else 'no result'}")
    return f"{trial.words} ({trial.took_s:.0f} s)"


ACTION = Action(id="driver.try_saved", params=DriverTrySavedParameters, risk=Risk.NONE, plan=plan)
