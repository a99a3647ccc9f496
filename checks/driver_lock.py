"""Whether the NVIDIA driver that runs, and the one the next process will load, are the one this box must run.

Three versions are compared: the module in the kernel, the libraries on disk (libnvidia-ml and libcuda), and what
`/etc/holdfast/driver.lock` says. A library that differs from the loaded module is the state after an unattended
upgrade: what runs goes on, and what is started next fails. What the next boot brings is `driver.next_boot`'s to say.
"""

from __future__ import annotations

from collections.abc import Iterable

from agent.host import Host, driver, driver_truth, packages
from agent.model import Judgement, Observation, Observed, Status
from agent.plugin import Check, NoParameters, Target


def observe(host: Host, target: Target, before: Observed | None) -> Iterable[Observation]:
    """Read the three versions; each may be missing, and why it is missing matters."""
    yield Observation("traces", driver.traces(host))
    truth = driver_truth.present(host)
    for name, reading in (("loaded", truth.loaded), ("library", truth.library), ("cuda", truth.cuda)):
        yield Observation(name, reading.version)
        yield Observation(f"{name}.problem", reading.problem)
    yield Observation("locked", truth.lock.version)
    yield Observation("lock.problem", truth.lock.problem)
    yield Observation("lock.detail", truth.lock.detail)
    if truth.loaded.version is None:
        yield Observation("card", driver.card(host))
        yield Observation("nouveau", driver.nouveau_loaded(host))
        yield Observation("module_file", driver.module_file(host))


def judge(now: Observed, before: Observed | None, params: NoParameters) -> Judgement:
    """Each way to be wrong has its own words: no driver, not loaded, no lock, a malformed lock, a mismatch."""
    problem = str(now.value("lock.problem") or "")
    if problem == "unreadable":
        return Judgement(Status.UNKNOWN, f"what is locked cannot be told: {now.value('lock.detail')}")
    if problem and problem != "absent":
        return Judgement(Status.WARNING, f"nothing is locked: {now.value('lock.detail') or problem}")
    locked = now.value("locked")
    if locked is None and not now.value("traces"):
        return Judgement(Status.OK, "no NVIDIA driver, nothing locked")
    unreadable = now.value("loaded.problem") or now.value("library.problem") or now.value("cuda.problem")
    if unreadable:
        return Judgement(Status.UNKNOWN, f"the driver's version cannot be told: {unreadable}")
    loaded = now.value("loaded")
    differs = next((now.value(name) for name in ("library", "cuda") if now.value(name) not in (None, loaded)), None)
    return _compare(loaded, differs or now.value("library"), locked)


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


CHECK = Check(
    id="driver.lock",
    scope="host",
    every_s=5.0,
    timeout_s=10.0,
    observe=observe,
    judge=judge,
    due_when_changed=(packages.STATUS, driver.LOCK_FILE),
)
"""Often, because a few small files tell it: the libraries that `dpkg -i` replaced are noticed within ten seconds."""
