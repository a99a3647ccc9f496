"""The NVIDIA driver that runs is not the one this box must run (`/etc/holdfast/driver.lock`).

Usually a silent change: an unattended upgrade, applied by a reboot. Engines that run are left alone, and the repair of
a dead one is not blocked by it. What to do: if the change was meant, `sudo holdfast lock write`; if not, put the
locked version back from what was saved (`sudo holdfast run restore-driver --dry-run` shows how) and reboot at a quiet
hour.
"""

from __future__ import annotations

from collections.abc import Iterable

from agent.model import Finding, Moment, Observation, Results, Status
from agent.plugin import EVENT, Rule


def diagnose(results: Results, now: Moment) -> Iterable[Finding]:
    """The loaded version against the locked one."""
    for lock in results.of("driver.lock"):
        loaded, locked = lock.value("loaded"), lock.value("locked")
        if lock.status is Status.UNKNOWN or not locked or not loaded or loaded == locked:
            continue
        yield Finding(
            id="driver-drift",
            subject=lock.subject,
            status=Status.CRITICAL,
            summary=f"this host runs driver {loaded}, but {locked} is locked",
            evidence=(Observation("evidence", lock.summary),),
            results=((lock.check, lock.subject),),
            signature=str(loaded),
        )


RULE = Rule(
    id="driver-drift",
    title="The driver is not the locked one",
    reads=("driver.lock",),
    confirm=EVENT,
    diagnose=diagnose,
    expected_in_change=True,
)
