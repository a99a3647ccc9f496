"""Packages of several NVIDIA drivers are mixed, one stopped half-way, or the library is not the packages' own.

Left behind by a partial hold, an interrupted upgrade, or a .run installer over packages. Engines may still run; the
next change of packages is a gamble. What to do: `sudo dpkg --configure -a`, then bring all of them to the locked
version (`holdfast check driver.packages` names them), from what was saved: `sudo holdfast run restore-driver --dry-run`
shows how.
"""

from __future__ import annotations

from collections.abc import Iterable

from agent.model import Finding, Moment, Results, Status
from agent.plugin import Confirm, Rule


def diagnose(results: Results, now: Moment) -> Iterable[Finding]:
    """What the check warns of; without a lock nobody has asked to be told."""
    for found in results.of("driver.packages"):
        if found.status is Status.WARNING and found.value("locked"):
            yield Finding(
                id="driver-package-mixed",
                subject=found.subject,
                status=Status.WARNING,
                summary=found.summary,
                results=((found.check, found.subject),),
            )


RULE = Rule(
    id="driver-package-mixed",
    title="The driver's packages are mixed",
    reads=("driver.packages",),
    confirm=Confirm(samples=2, apart_s=30.0, clear_s=60.0),
    diagnose=diagnose,
    expected_in_change=True,
)
"""Twice, because apt runs dpkg several times in one upgrade and is between two of them for a moment."""
