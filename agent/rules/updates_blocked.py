"""Security updates do not come in any more: the last unattended upgrade failed, or dpkg was left half-way.

Told only where a driver is held or locked. What the apt guard refuses ends the whole run of unattended-upgrades, and
with it every update behind the refused one. What to do: where dpkg was interrupted, `sudo dpkg --configure -a`; where
the guard refused, `sudo holdfast hold`, which tells unattended-upgrades to leave the driver aside; else read
/var/log/unattended-upgrades/ and run `sudo unattended-upgrade -v`.
"""

from __future__ import annotations

from collections.abc import Iterable

from agent.model import Finding, Moment, Observation, Results, Status
from agent.plugin import EVENT, Rule


def diagnose(results: Results, now: Moment) -> Iterable[Finding]:
    """What the check has found in the way of updates."""
    for updates in results.of("driver.updates"):
        interrupted, failed = updates.value("interrupted"), updates.value("unattended")
        if not interrupted and not failed:
            continue
        yield Finding(
            id="updates-blocked",
            subject=updates.subject,
            status=Status.WARNING,
            summary=f"no security updates come in: {interrupted or failed}",
            evidence=(Observation("evidence", updates.summary),),
            results=((updates.check, updates.subject),),
            signature="dpkg" if interrupted else str(failed),
        )


RULE = Rule(
    id="updates-blocked",
    title="Security updates do not come in",
    reads=("driver.updates",),
    confirm=EVENT,
    diagnose=diagnose,
    manual=True,
    expected_in_change=True,
)
