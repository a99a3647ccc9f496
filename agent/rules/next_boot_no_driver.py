"""The kernel that boots next would load no NVIDIA driver: after a reboot or a power cut no engine has a GPU.

The kernel trap: a new kernel came, the driver's packages were held or the module was not linked or built for it. What
runs now is not touched by it. What to do: before any reboot, install the module for that kernel
(linux-modules-nvidia-BRANCH-KERNEL where modules come ready, its headers and `dkms autoinstall -k KERNEL` where they
are built), or let GRUB boot the last good kernel (`grub-set-default`), as `sudo holdfast run restore-driver` does
where the driver was saved.
"""

from __future__ import annotations

from collections.abc import Iterable

from agent.model import Finding, Moment, Observation, Results, Status
from agent.plugin import EVENT, Rule


def diagnose(results: Results, now: Moment) -> Iterable[Finding]:
    """Nothing to load although a version is locked; without a lock nobody has asked to be told."""
    for boot in results.of("driver.next_boot"):
        absent = boot.value("next.absent")
        if boot.status is Status.UNKNOWN or not absent or not boot.value("locked"):
            continue
        yield Finding(
            id="next-boot-no-driver",
            subject=boot.subject,
            status=Status.CRITICAL,
            summary=f"the next boot (kernel {boot.value('next.release')}) has no NVIDIA driver: {absent}",
            evidence=(Observation("evidence", boot.summary),),
            results=((boot.check, boot.subject),),
            signature=str(boot.value("next.release")),
        )


RULE = Rule(
    id="next-boot-no-driver",
    title="The next boot has no driver",
    reads=("driver.next_boot",),
    confirm=EVENT,
    diagnose=diagnose,
)
