"""Whether the NVIDIA driver that runs, and the one the next process will load, are the one this box must run.

Three versions are compared: the module in the kernel, the library on disk, and what `/etc/holdfast/driver.lock`
says. A library that differs from the loaded module is the state after an unattended upgrade: what runs goes on, and
what is started next fails.
"""

from __future__ import annotations

from collections.abc import Iterable

from agent.errors import HostError
from agent.host import Host, driver
from agent.model import Judgement, Observation, Observed, Status
from agent.plugin import Check, NoParameters, Target

LOCK_FILE = "/etc/holdfast/driver.lock"


def observe(host: Host, target: Target, before: Observed | None) -> Iterable[Observation]:
    """Read the three versions; each may be missing, and why it is missing matters."""
    lock = driver.read_lock(host, LOCK_FILE)
    yield Observation("traces", driver.traces(host))
    for name, read in (("loaded", driver.loaded_version), ("library", driver.library_version)):
        version, problem = None, ""
        try:
            version = read(host)
        except HostError as error:
            problem = error.message
        yield Observation(name, version)
        yield Observation(f"{name}.problem", problem)
    yield Observation("locked", lock.version)
    yield Observation("lock.problem", lock.problem)
    yield Observation("lock.detail", lock.detail)


def judge(now: Observed, before: Observed | None, params: NoParameters) -> Judgement:
    """Each way to be wrong has its own words: no driver, not loaded, no lock, a malformed lock, a mismatch."""
    problem = str(now.value("lock.problem") or "")
    if problem and problem != "absent":
        return Judgement(Status.WARNING, f"nothing is locked: {now.value('lock.detail') or problem}")
    locked = now.value("locked")
    if locked is None and not now.value("traces"):
        return Judgement(Status.OK, "no NVIDIA driver, nothing locked")
    unreadable = now.value("loaded.problem") or now.value("library.problem")
    if unreadable:
        return Judgement(Status.UNKNOWN, f"the driver's version cannot be told: {unreadable}")
    return _compare(now.value("loaded"), now.value("library"), locked)


def _compare(loaded: str | None, library: str | None, locked: str | None) -> Judgement:
    """The three versions, the worst difference first."""
    if loaded is None and locked is None:
        return Judgement(Status.WARNING, "NVIDIA driver not loaded, and no version is locked")
    if loaded is None:
        return Judgement(Status.CRITICAL, f"no NVIDIA driver is loaded; locked is {locked}")
    if library not in (None, loaded):
        lock = f"; locked is {locked}" if locked else ""
        return Judgement(
            Status.CRITICAL, f"driver {loaded} is loaded but its library on disk is {library}: new processes fail{lock}"
        )
    if locked is None:
        return Judgement(Status.WARNING, f"driver {loaded} runs, but no version is locked (holdfast lock write)")
    if loaded != locked:
        return Judgement(Status.CRITICAL, f"driver {loaded} runs, but {locked} is locked")
    return Judgement(Status.OK, f"driver {loaded} runs, as locked")


CHECK = Check(id="driver.lock", scope="host", every_s=60.0, timeout_s=10.0, observe=observe, judge=judge)
