"""Can a restart help? Compares the loaded module, the library on disk and a fresh answer of NVML.

While they disagree or NVML is silent, a restarted engine loses the GPU that the running one still has.
"""

from __future__ import annotations

from dataclasses import dataclass

from agent.errors import FileTrouble, HostError
from agent.host import Host, driver, nvml
from agent.model import Json

NVML_DEADLINE_S = 10.0
"""How long NVML may take; it hangs for ever when the driver does (facts/host.md 0.6)."""


@dataclass(frozen=True, slots=True)
class Interlock:
    """What was compared and what follows. `code` is "" while a restart can help."""

    needed: bool
    code: str
    reason: str
    loaded: str | None = None
    library: str | None = None
    answer: nvml.NvmlAnswer | None = None

    @property
    def holds(self) -> bool:
        """Whether a restart can help."""
        return not self.code

    def facts(self) -> dict[str, Json]:
        """What was compared, for the transcript."""
        return {
            "loaded": self.loaded,
            "library": self.library,
            "nvml": None if self.answer is None else self.answer.meaning,
            "nvml_driver": None if self.answer is None else self.answer.driver_version,
        }


def gpu_matters(host: Host, gpu: bool | None) -> bool:
    """Whether this engine can be using an NVIDIA GPU. `gpu` is what its configuration says, None for nothing.

    A lock file or a card alone is no driver: without a module and without a library nothing can disagree, and the
    lock never blocks a repair.
    """
    if gpu is False or not driver.traces(host):
        return False
    if driver.loaded_version(host) is None and driver.library_version(host) is None:
        return gpu is True
    return True


def look(host: Host, gpu: bool | None) -> Interlock:
    """Compare, now. NVML is asked at most once, from a child with a deadline."""
    try:
        if not gpu_matters(host, gpu):
            return Interlock(False, "", _why_not(host, gpu))
        loaded, library = driver.loaded_version(host), driver.library_version(host)
    except FileTrouble as trouble:
        return Interlock(True, "driver-unknown", f"the driver's version cannot be read: {trouble.message}")
    wrong = _apart(loaded, library)
    if wrong:
        return Interlock(True, "driver-inconsistent", wrong, loaded, library)
    code, reason, answer = _asked(host, loaded)
    return Interlock(True, code, reason, loaded, library, answer)


def _asked(host: Host, loaded: str | None) -> tuple[str, str, nvml.NvmlAnswer | None]:
    """What a fresh answer of NVML adds: a code ("" while it agrees), why, and the answer itself."""
    try:
        answer = nvml.ask(host, NVML_DEADLINE_S)
    except HostError as error:
        return "nvml-silent", f"NVML cannot be asked: {error.message}", None
    if answer is None:
        return "nvml-silent", f"NVML did not answer within {NVML_DEADLINE_S:g} s: the driver hangs", None
    if answer.code == nvml.PROBE_FAILED:
        return "nvml-silent", answer.meaning, answer
    if answer.code != nvml.SUCCESS:
        return "driver-inconsistent", f"NVML answers {answer.meaning} ({answer.code})", answer
    if answer.driver_version and answer.driver_version != loaded:
        return "driver-inconsistent", f"the kernel module is {loaded}, NVML says {answer.driver_version}", answer
    return "", f"module, library and NVML agree on {loaded}", answer


def _apart(loaded: str | None, library: str | None) -> str:
    """How module and library disagree, "" when they agree."""
    if loaded is None:
        return f"no NVIDIA kernel module is loaded, while the libraries on disk are {library}"
    if library is None:
        return f"the kernel module is {loaded}, but there is no libnvidia-ml on disk"
    if loaded != library:
        return f"the kernel module is {loaded}, the libraries on disk are {library}"
    return ""


def _why_not(host: Host, gpu: bool | None) -> str:
    """Why the driver does not matter to this engine."""
    if gpu is False:
        return "the engine is configured gpu = false"
    if not driver.traces(host):
        return "this host has no trace of an NVIDIA driver"
    return "no NVIDIA driver is loaded or installed, so nothing can disagree"
