"""Close the planned change that is open: the guard is shut again, and engines are looked after as before.

A record of a change that cannot be read is closed too: it counts as open for as long as it is there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agent.errors import FileTrouble
from agent.host import Host, changes, driver, driver_truth
from agent.model import Json, Risk
from agent.plugin import Action, Noop, Parameters, Plan, Refuse, RemoveFile, Target, WriteFile


class ChangeCloseParameters(Parameters):
    """Whether it came to its end."""

    aborted: bool = False
    """It was given up: say whether the machine still is what the lock says."""


def plan(host: Host, target: Target, params: Any) -> Plan:
    """Remove the record of the open change; `before` holds it."""
    try:
        text = host.files.read_text(changes.FILE)
    except FileTrouble as error:
        if error.kind == "missing":
            return Plan((Refuse("no planned change is open", "no-change"),))
        return Plan((RemoveFile(changes.FILE), Noop(f"removed, unread: {error.message}")), {"text": None})
    words = _given_up(host) if params.aborted else "closed"
    return Plan((RemoveFile(changes.FILE), Noop(words)), {"text": text})


def undo(host: Host, target: Target, params: Any, before: Mapping[str, Json]) -> Plan:
    """Open it again, unless another one was opened since."""
    text = before.get("text")
    if host.files.exists(changes.FILE):
        return Plan((Noop("a change is open", untouched=True),))
    if not isinstance(text, str):
        return Plan((Noop("what was there could not be read"),))
    return Plan((WriteFile(changes.FILE, text, 0o640),))


def _given_up(host: Host) -> str:
    """What is left of a change that was given up: the machine against its lock."""
    locked = driver.read_lock(host).version
    now, later = driver_truth.present(host), driver_truth.future(host, {})
    apart = driver_truth.contradictions(now, later)
    if not apart and locked is not None and now.loaded.version == locked:
        return f"closed; this machine is what the lock says, driver {locked}"
    why = "; ".join(apart) or f"driver {now.loaded.version or 'none'} is loaded"
    back = "; the way back: sudo holdfast run restore-driver" if locked is not None else ""
    return f"closed; this machine no longer is what the lock says ({locked or 'nothing is locked'}): {why}{back}"


ACTION = Action(id="change.close", params=ChangeCloseParameters, risk=Risk.NONE, plan=plan, undo=undo)
