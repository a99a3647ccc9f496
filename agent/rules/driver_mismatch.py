"""The loaded NVIDIA kernel module and the libraries on disk have different versions.

The state after an upgrade without a reboot. Engines that run keep their GPU and must not be restarted: a new process
would fail (NVML 18, CUDA 803). What to do: if the change was meant, reboot at a quiet hour; if not,
put the locked version back from what was saved (`sudo holdfast run restore-driver --dry-run` shows how).
"""

from __future__ import annotations

from collections.abc import Iterable

from agent.model import Finding, Moment, Observation, Results, Status
from agent.plugin import EVENT, Rule


def diagnose(results: Results, now: Moment) -> Iterable[Finding]:
    """The module in the kernel against libnvidia-ml and libcuda on disk."""
    for lock in results.of("driver.lock"):
        loaded = lock.value("loaded")
        # libcuda may be the one that moved: an engine needs both.
        library = next(
            (lock.value(name) for name in ("library", "cuda") if lock.value(name) not in (None, loaded)), None
        )
        if not loaded or not library:
            continue
        yield Finding(
            id="driver-mismatch",
            subject=lock.subject,
            status=Status.CRITICAL,
            summary=f"kernel module {loaded}, libraries {library}: engines keep their GPU only until they restart",
            evidence=(Observation("evidence", lock.summary),),
            results=((lock.check, lock.subject),),
            signature=f"{loaded} {library}",
        )


RULE = Rule(
    id="driver-mismatch",
    title="Kernel module and libraries disagree",
    reads=("driver.lock",),
    confirm=EVENT,
    diagnose=diagnose,
    expected_in_change=True,
)
