"""Asks NVML once, prints the answer as one line of JSON and leaves. Runs as a program of its own (agent.host.child).

Its arguments are the import path, because it runs isolated. Every call here may hang in the driver for ever; whoever
started it counts on that. The answer goes out before NVML is shut down, which may hang too.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
from typing import Any

TURN_S = 20.0
"""Longer than any asker listens (interlock 10 s): a question that waits in vain is silence, not a failed probe."""
NOT_SUPPORTED, FUNCTION_NOT_FOUND = 3, 13  # NVML_ERROR_…: unknown here, never a fault (nvml.h)


def ask() -> dict[str, Any]:
    """What NVML says: `code` 0 and everything it knows, or the first error and what was known before it."""
    import pynvml  # noqa: PLC0415 - the import path is set first

    answer: dict[str, Any] = {"code": 0, "meaning": "", "driver_version": None, "gpus": []}
    try:
        pynvml.nvmlInit()
        answer["driver_version"] = pynvml.nvmlSystemGetDriverVersion()
        for index in range(pynvml.nvmlDeviceGetCount()):
            answer["gpus"].append(_gpu(pynvml, index))  # those before one that is lost are still told
    except pynvml.NVMLError as error:
        answer.update(code=int(error.value), meaning=str(error))
    return answer


def _gpu(pynvml: Any, index: int) -> dict[str, Any]:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    memory = _optional(pynvml, pynvml.nvmlDeviceGetMemoryInfo, handle)
    utilisation = _optional(pynvml, pynvml.nvmlDeviceGetUtilizationRates, handle)
    capability = _optional(pynvml, pynvml.nvmlDeviceGetCudaComputeCapability, handle)
    processes: dict[int, int | None] = {}
    for read in (pynvml.nvmlDeviceGetComputeRunningProcesses, pynvml.nvmlDeviceGetGraphicsRunningProcesses):
        for process in _optional(pynvml, read, handle) or ():
            processes[int(process.pid)] = process.usedGpuMemory
    return {
        "uuid": pynvml.nvmlDeviceGetUUID(handle),
        "name": pynvml.nvmlDeviceGetName(handle),
        "memory_used_bytes": None if memory is None else int(memory.used),
        "memory_total_bytes": None if memory is None else int(memory.total),
        "utilisation_percent": None if utilisation is None else int(utilisation.gpu),
        "pids": sorted(processes.items()),
        "compute_capability": None if capability is None else f"{capability[0]}.{capability[1]}",
    }


def _optional(pynvml: Any, read: Any, handle: Any) -> Any:
    try:
        return read(handle)
    except pynvml.NVMLError as error:
        if error.value in (NOT_SUPPORTED, FUNCTION_NOT_FOUND):
            return None
        raise


def take_turn() -> int:
    """Wait for the only turn there is on this host; the descriptor that holds it until this process has ended.

    Daemon, runner, inspector and command line each ask through children of their own. A turn that a hanging child
    holds never comes: then this process ends by SIGALRM, without having touched the driver, and was silent.
    """
    signal.setitimer(signal.ITIMER_REAL, TURN_S)
    turn = os.open(__file__, os.O_RDONLY)  # the same file for whoever asks, and there wherever this runs
    fcntl.flock(turn, fcntl.LOCK_EX)
    signal.setitimer(signal.ITIMER_REAL, 0.0)
    return turn


def main() -> None:
    """Answer, then leave."""
    sys.path[:0] = sys.argv[1:]
    take_turn()
    print(json.dumps(ask()), flush=True)


if __name__ == "__main__":
    main()
