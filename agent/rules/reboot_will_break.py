"""This host reboots by itself soon, and after that reboot the NVIDIA driver is gone, unfit or another one.

A scheduled shutdown, or unattended-upgrades with Automatic-Reboot, while the next boot has no driver or not the locked
one. What to do: before the time is up, `sudo shutdown -c` cancels a scheduled reboot, and removing
`/run/reboot-required` holds unattended-upgrades' one back; then mend the next boot (`holdfast lock show`).
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timezone

from agent.model import CheckResult, Finding, Moment, Observation, Results, Status
from agent.plugin import EVENT, Rule


def diagnose(results: Results, now: Moment) -> Iterable[Finding]:
    """An armed reboot and a next boot that is wrong. Without a lock only where no engine would start."""
    for boot in results.of("driver.next_boot"):
        reboot = results.one("host.reboot", boot.subject)
        if reboot is None or reboot.status is Status.UNKNOWN or not reboot.value("reboot.armed"):
            continue
        broken = boot.status is Status.CRITICAL or (boot.status is Status.WARNING and boot.value("locked"))
        if not broken:
            continue
        yield Finding(
            id="reboot-will-break",
            subject=boot.subject,
            status=Status.CRITICAL,
            summary=f"this host reboots {_when(reboot, now)}, and {boot.summary}",
            evidence=(Observation("evidence", reboot.summary),),
            results=((boot.check, boot.subject), (reboot.check, reboot.subject)),
            explains=((boot.check, boot.subject),),
            signature=f"{boot.value('next.release')} {boot.value('next.version')}",
            never_planned=boot.status is Status.CRITICAL,
        )


def _when(reboot: CheckResult, now: Moment) -> str:
    """When, and how long that is from now."""
    at = reboot.value("reboot.at")
    if not isinstance(at, (int, float)):
        return f"by itself ({reboot.value('reboot.by')})"
    left_s = max(0.0, at - now.wall)
    left = f"{left_s / 3600:.0f} h" if left_s >= 5400 else f"{left_s / 60:.0f} min"
    return f"by itself in {left} ({datetime.fromtimestamp(at, timezone.utc):%H:%M} UTC)"


RULE = Rule(
    id="reboot-will-break",
    title="An armed reboot will break the driver",
    reads=("driver.next_boot", "host.reboot"),
    confirm=EVENT,
    diagnose=diagnose,
    manual=True,
    expected_in_change=True,
)
