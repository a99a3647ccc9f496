"""Wait for the reboot that loads the locked driver, where another one is loaded now. A person reboots, never this.

The run lets go of the host and has no outcome yet: after the next boot it is proven, or told. Where the locked driver
is loaded already, nothing has to wait.
"""

from __future__ import annotations

from typing import Any

from agent.errors import HostError
from agent.host import Host, driver
from agent.model import Risk
from agent.plugin import Action, AwaitReboot, Noop, NoParameters, Plan, Target


def plan(host: Host, target: Target, params: Any) -> Plan:
    """A reboot to wait for, decided when this step's turn comes."""
    locked = driver.read_lock(host).version
    if locked is None:
        return Plan((Noop("no driver is locked, so there is none to wait for"),))
    words = f"driver {locked} is on disk again; the kernel loads it at the next boot"
    return Plan((AwaitReboot(words, _another_is_loaded), Noop(f"driver {locked} is loaded: no reboot is needed")))


def _another_is_loaded(host: Host) -> bool:
    try:
        return driver.loaded_version(host) != driver.read_lock(host).version
    except HostError:
        return True


ACTION = Action(id="driver.await_reboot", params=NoParameters, risk=Risk.NONE, plan=plan)
