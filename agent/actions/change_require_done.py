"""Make sure that an open planned change is complete; everything that is missing is said at once.

Compared with what was planned: the packages, the libraries on disk, the module of the kernel that boots next, the
loaded module, and the kernel. What cannot be told counts as missing. A refusal changes nothing, so it may be asked as
often as wanted.
"""

from __future__ import annotations

from typing import Any

from agent.errors import FileTrouble
from agent.host import Host, changes, planned
from agent.model import Risk
from agent.plugin import Action, Noop, NoParameters, Plan, Read, Refuse, Target


def plan(host: Host, target: Target, params: Any) -> Plan:
    """A reasoned no-op, or a refusal that lists what is missing."""
    try:
        change = changes.read(host)
    except FileTrouble as error:
        return Plan((Refuse(error.message, "change-unreadable"),))
    if change is None:
        return Plan((Refuse("no planned change is open", "no-change"),))
    found = planned.truths(change, planned.look(host))
    seen = Read("what is true", lambda _: {each.name: each.words for each in found}, ("holdfast", "change", "status"))
    missing = planned.missing(found)
    if missing:
        return Plan((seen, Refuse(f"not complete yet: {'; '.join(missing)}", "change-incomplete")))
    return Plan((seen, Noop(f"complete: {change.words}")))


ACTION = Action(id="change.require_done", params=NoParameters, risk=Risk.NONE, plan=plan)
