"""Put the saved driver back, exactly and without a network: packages, the kernel they serve, and its modules.

Every checksum is verified before anything is touched, and apt-get is asked first what it would do: nothing outside the
driver and its kernel may be removed. apt-get knows the installed packages and the saved files, nothing else. Where
linking or building does not give the saved modules, these are copied into place. Nothing is rebooted.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from agent.errors import HostError
from agent.host import Host, driver_set, packages, restoring, saved_driver, saving
from agent.host.restoring import INSTALL_S
from agent.host.saved_driver import SET_NAME, Saved
from agent.model import Risk
from agent.plugin import Action, Command, Condition, Noop, Parameters, Plan, PlanStep, Refuse, Target, Wait

WAIT_S = 60.0
"""How long to wait for a dpkg at work."""
CONFIGURE_S = 600.0
COPY_S = 300.0


class DriverRestoreParameters(Parameters):
    """Which saved set."""

    saved: str = Field(default="", pattern=SET_NAME)
    """The folder's name (DRIVER-KERNEL); empty: the newest complete set of the locked driver."""


def plan(host: Host, target: Target, params: Any) -> Plan:
    """Everything apt-get will be told, after the checksums have been verified and the outcome simulated."""
    saved = saving.locked_set(host, params.saved)
    if isinstance(saved, str):
        return Plan((Refuse(saved, "no-saved-driver"),))
    wrong = saved_driver.corrupted(host, saved)
    if wrong:
        return Plan((Refuse(f"nothing was touched: {'; '.join(wrong[:3])}", "saved-driver-damaged"),))
    todo = restoring.restoration(host, saved)
    if not todo.reasons:
        return Plan((Noop(f"driver {saved.manifest.driver} for kernel {saved.manifest.kernel} is as it was saved"),))
    known = driver_set.installed(host)
    try:
        outside = restoring.would_remove(host, todo.simulate, saved.manifest, known)
    except HostError as error:
        return Plan((Refuse(f"nothing was touched: {error.message}", "cannot-restore"),))
    if outside:
        words = (
            f"apt-get would remove {', '.join(outside[:8])}, which is no part of the driver: remove or mend it first"
        )
        return Plan((Refuse(words, "would-remove"),))
    return Plan((*_free(host), *_put_back(saved, todo)))


def unready(host: Host) -> str:
    """Why nothing can be put back here, "" when the locked driver's set is there by size and time."""
    saved = saving.locked_set(host)
    if isinstance(saved, str):
        return saved
    try:
        return next(iter(saved_driver.changed(host, saved)), "")
    except HostError as error:
        return error.message


def _free(host: Host) -> tuple[PlanStep, ...]:
    """Wait for a dpkg that is at work; finish what one left half-way."""
    busy = packages.transaction(host)
    half = any(each.half_done for each in packages.installed(host))
    steps: list[PlanStep] = []
    if busy is not None and busy.pid:
        free = Condition(f"dpkg is free: {busy.words}", lambda host: packages.transaction(host) is None)
        steps.append(Wait(free, WAIT_S, why=f"{busy.words}: try again when that is over"))
    if half or (busy is not None and not busy.pid):
        # What it cannot configure now, the packages that follow complete.
        configure = ("env", "DEBIAN_FRONTEND=noninteractive", "dpkg", "--configure", "--pending")
        steps.append(Command(configure, CONFIGURE_S, accept=(0, 1), words="finishing what dpkg left half-way"))
    return tuple(steps)


def _put_back(saved: Saved, todo: restoring.Restoration) -> tuple[PlanStep, ...]:
    manifest = saved.manifest
    words = f"putting back {len(todo.paths)} packages of driver {manifest.driver}"
    same = Condition("the modules are those that were saved", lambda host: not restoring.modules_differ(host, manifest))
    depmod = Command(restoring.depmod(manifest.kernel), COPY_S)
    return (
        Command(todo.install, INSTALL_S, words=words),
        Wait(same, 0.0, on_timeout=Command(todo.copy, COPY_S)),
        depmod,
        Wait(Condition(f"driver {manifest.driver} is back on disk", lambda host: _back(host, saved)), 0.0),
        Noop(f"driver {manifest.driver} for kernel {manifest.kernel} is back on disk"),
    )


def _back(host: Host, saved: Saved) -> bool:
    """True, or raises HostError with what is still wrong."""
    why = restoring.back_or_why(host, saved.manifest)
    if why:
        raise HostError(f"driver {saved.manifest.driver} is not back: {why}")
    return True


ACTION = Action(id="driver.restore", params=DriverRestoreParameters, risk=Risk.SERVICE, plan=plan, unready=unready)
