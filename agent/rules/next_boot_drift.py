"""The next boot would load another NVIDIA driver than the locked one, or one that the libraries on disk do not fit.

Left behind by an upgrade, a rebuilt DKMS module, a module package that was issued again for the same kernel, or a
stale copy in the initial ramdisk. What runs now is not touched by it. CRITICAL where module and libraries would
disagree, because then no engine starts after the reboot. What to do: if the change was meant, reboot at a quiet hour
and `sudo holdfast lock write`; if not, bring the locked version back before any reboot, from what was saved
(`sudo holdfast run restore-driver --dry-run` shows how), or for a stale copy: `sudo update-initramfs -u -k KERNEL`.
"""

from __future__ import annotations

from collections.abc import Iterable

from agent.model import Finding, Moment, Results, Status
from agent.plugin import EVENT, Rule


def diagnose(results: Results, now: Moment) -> Iterable[Finding]:
    """A driver that would load, and that is not the locked one or does not fit its libraries."""
    for boot in results.of("driver.next_boot"):
        if boot.status not in (Status.WARNING, Status.CRITICAL):
            continue
        if boot.value("next.absent") or not boot.value("next.version") or not boot.value("locked"):
            continue
        yield Finding(
            id="next-boot-drift",
            subject=boot.subject,
            status=boot.status,
            summary=boot.summary,
            results=((boot.check, boot.subject),),
            signature=f"{boot.value('next.version')} {boot.value('library')}",
        )


RULE = Rule(
    id="next-boot-drift",
    title="The next boot loads another driver",
    reads=("driver.next_boot",),
    confirm=EVENT,
    diagnose=diagnose,
    expected_in_change=True,
)
"""The check does not judge half-finished installations, so what it says is believed at once."""
