"""Open a planned change: from now on its driver and kernel are what is wanted, and nothing of ours stands in the way.

The apt guard lets exactly this driver and this kernel pass, engines are not restarted, and what the change goes through
is told quietly. Refused while another change is open, without a lock, and on a machine that contradicts itself (unless
forced: then nobody can tell afterwards what the change broke). A pause does not refuse it: both are a person's hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from pydantic import Field

from agent.errors import FileTrouble
from agent.host import Host, boot, changes, driver, driver_truth
from agent.host.changes import Change
from agent.model import Json, Risk
from agent.plugin import Action, Noop, Parameters, Plan, Refuse, RemoveFile, Target, WriteFile

LONGEST_S = 7 * 86400.0
"""A change is for a while; whoever needs longer begins it again."""
BY = r"^[A-Za-z0-9._@+-]{1,64}$"
"""Who asked, in a form that cannot carry anything else into a file."""


class ChangeOpenParameters(Parameters):
    """What the change leads to."""

    to: str = Field(default="", pattern=r"^(\d{3}\.\d{1,4}(\.\d{1,4})?)?$")
    """The driver version it leads to; "" for the locked one, when only the kernel changes."""
    kernel: str = Field(default="", pattern=r"^([0-9][A-Za-z0-9.+~_-]{0,63})?$")
    """The kernel release it leads to; "" for any."""
    reason: str = Field(pattern=r"^[^\x00-\x1f\x7f]{1,200}$")
    """Why, for the record and for everyone who sees it."""
    window_s: float = Field(gt=0, le=LONGEST_S)
    """How long it may take, seconds; afterwards it is told, and stays open."""
    by: str = Field(pattern=BY)
    """Who begins it."""
    force: bool = False
    """Begin although the machine contradicts itself."""


def plan(host: Host, target: Target, params: Any) -> Plan:
    """Write the change down, or say why none may begin now."""
    lock = driver.read_lock(host)
    refusal = _refused(host, lock, params)
    if refusal is not None:
        return Plan((refusal,))
    now = host.clock.now()
    at = datetime.fromtimestamp(now.wall, timezone.utc)
    change = Change(
        id=f"{at:%Y%m%dT%H%M%SZ}",
        to=params.to or lock.version or "",
        kernel=params.kernel,
        reason=params.reason,
        since=now,
        window_s=params.window_s,
        by=params.by,
        locked=lock.version or "",
    )
    text = changes.text(change)
    return Plan((WriteFile(changes.FILE, text, 0o640), Noop(f"open: {change.words}")), {"text": text})


def undo(host: Host, target: Target, params: Any, before: Mapping[str, Json]) -> Plan:
    """Close it again, if it is still the one that was opened."""
    try:
        now = host.files.read_text(changes.FILE)
    except FileTrouble as error:
        if error.kind != "missing":
            raise
        return Plan((Noop("no change was opened", untouched=True),))
    if now != before.get("text"):
        return Plan((Noop("another change is open, and stays so"),))
    return Plan((RemoveFile(changes.FILE),))


def _refused(host: Host, lock: driver.Lock, params: ChangeOpenParameters) -> Refuse | None:
    try:
        already = changes.read(host)
    except FileTrouble as error:
        return Refuse(f"{error.message}; sudo holdfast change abort removes it", "change-unreadable")
    if already is not None:
        words = f"a planned change is open already: {already.words}, begun by {already.by}"
        return Refuse(f"{words}; finish or abort it first", "change-open")
    if lock.version is None:
        why = lock.detail or "no driver is locked"
        return Refuse(f"{why}: a change leads from a locked driver (sudo holdfast lock write)", "no-lock")
    if not params.to and not params.kernel:
        return Refuse("neither a driver nor a kernel is planned", "nothing-planned")
    if params.to in ("", lock.version) and params.kernel in ("", boot.running_release(host)):
        loaded = driver_truth.present(host).loaded.version
        if loaded == lock.version:
            return Refuse(f"driver {loaded} is locked and runs, on that kernel: nothing is to be changed", "no-change")
    wrong = driver_truth.contradictions(driver_truth.present(host), driver_truth.future(host, {}))
    if wrong and not params.force:
        return Refuse("; ".join(wrong), "driver-inconsistent")
    return None


ACTION = Action(id="change.open", params=ChangeOpenParameters, risk=Risk.NONE, plan=plan, undo=undo)
