"""Wait until nobody changes packages: dpkg takes no hold while it is at work, and what is planned then is stale.

A step of its own, so that whatever comes after it is planned from what that change has left. A dpkg that was
interrupted is not waited for: nobody is at work, and a person must finish it.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from agent.host import Host, packages
from agent.model import Risk
from agent.plugin import Action, Condition, Noop, Parameters, Plan, Refuse, Target, Wait

AGAIN_S = 20.0
"""When to ask again after waiting in vain: unattended-upgrades lets go of dpkg between two packages."""
AFTER_INTERRUPTION_S = 60.0


class PackagesWaitFreeParameters(Parameters):
    """How patient to be."""

    wait_s: float = Field(default=600.0, gt=0, le=600)
    """How long to wait, seconds. The host's repairs wait as long, so a run that the daemon starts waits briefly."""


def plan(host: Host, target: Target, params: Any) -> Plan:
    """A wait that ends in a refusal, or nothing where dpkg is free."""
    busy = packages.transaction(host)
    if busy is None:
        return Plan((Noop("nobody is changing packages"),))
    if not busy.pid:
        return Plan((Refuse(f"{busy.words} first", "packages-interrupted", AFTER_INTERRUPTION_S),))
    free = Condition(f"dpkg is free: {busy.words}", lambda host: packages.transaction(host) is None)
    words = f"waited {params.wait_s:g} s, and packages are still being changed: try again when that is over"
    return Plan((Wait(free, params.wait_s, on_timeout=Refuse(words, "packages-busy", AGAIN_S)), Noop("dpkg is free")))


ACTION = Action(id="packages.wait_free", params=PackagesWaitFreeParameters, risk=Risk.NONE, plan=plan)
