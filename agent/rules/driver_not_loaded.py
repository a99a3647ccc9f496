"""The NVIDIA driver is installed or locked, and no kernel module of it is loaded: no engine can use a GPU.

Usual reasons: the running kernel has no module (a new kernel without linux-modules-nvidia, or a DKMS build that failed
or was skipped for missing headers), nouveau holds the card, Secure Boot refused an unsigned module, or the module
failed to start the card. What to do: `sudo modprobe nvidia` and `journalctl -k -g 'NVRM|nvidia'` say which;
`holdfast lock show` says what the running and the next kernel would load. Then install the module, or boot the last
kernel that had one.
"""

from __future__ import annotations

from collections.abc import Iterable

from agent.model import CheckResult, Finding, Moment, Observation, Results, Status
from agent.plugin import EVENT, Rule


def diagnose(results: Results, now: Moment) -> Iterable[Finding]:
    """Nothing is loaded although it is locked, or although card and library are there."""
    for lock in results.of("driver.lock"):
        if lock.status is Status.UNKNOWN or lock.value("loaded") or lock.value("loaded.problem"):
            continue
        locked = lock.value("locked")
        if not locked and not (lock.value("card") and lock.value("library")):
            continue
        wanted = f"although {locked} is locked" if locked else "although it is installed and a card is there"
        yield Finding(
            id="driver-not-loaded",
            subject=lock.subject,
            status=Status.CRITICAL if locked else Status.WARNING,
            summary=f"no NVIDIA driver is loaded, {wanted}: {_why(lock)}",
            evidence=(Observation("evidence", lock.summary),),
            results=((lock.check, lock.subject),),
            signature=_why(lock),
        )


def _why(lock: CheckResult) -> str:
    if lock.value("nouveau"):
        return "nouveau holds the card"
    if lock.value("module_file") is False:
        return "the running kernel has no nvidia module"
    return "a module is there, and did not start or was never asked to"


RULE = Rule(
    id="driver-not-loaded",
    title="No NVIDIA driver is loaded",
    reads=("driver.lock",),
    confirm=EVENT,
    diagnose=diagnose,
    manual=True,
    expected_in_change=True,
)
