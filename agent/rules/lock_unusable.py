"""The driver lock (`/etc/holdfast/driver.lock`) is there, and says nothing that can be held to.

It is empty, garbled, names two versions, or is no plain file. Until it is mended nothing watches over the driver's
version: no drift is told, and no upgrade is held against it. What to do: `sudo holdfast lock show`; if the driver that
runs is the right one, `sudo holdfast lock write`.
"""

from __future__ import annotations

from collections.abc import Iterable

from agent.model import Finding, Moment, Observation, Results, Status
from agent.plugin import Confirm, Rule

READABLE = ("", "absent", "unreadable")
"""Without a lock nobody asked for one; one that cannot be read is UNKNOWN, and told as that."""


def diagnose(results: Results, now: Moment) -> Iterable[Finding]:
    """What reading the lock met."""
    for lock in results.of("driver.lock"):
        problem = str(lock.value("lock.problem") or "")
        if problem not in READABLE:
            yield Finding(
                id="lock-unusable",
                subject=lock.subject,
                status=Status.WARNING,
                summary=f"the driver lock is {problem.replace('-', ' ')}, so nothing holds the driver's version",
                evidence=(Observation("evidence", str(lock.value("lock.detail") or problem)),),
                results=((lock.check, lock.subject),),
                signature=problem,
            )


RULE = Rule(
    id="lock-unusable",
    title="The driver lock cannot be used",
    reads=("driver.lock",),
    confirm=Confirm(samples=2, apart_s=10.0),
    diagnose=diagnose,
    manual=True,
)
"""Twice, because somebody may be in the middle of writing it."""
