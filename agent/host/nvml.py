"""What NVML says, asked from a disposable child (agent.host.child): a fresh answer, an error code, or silence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agent.host import Host
from agent.model import Json

SUCCESS = 0
DRIVER_NOT_LOADED = 9
LIBRARY_NOT_FOUND = 12
GPU_IS_LOST = 15
RESET_REQUIRED = 16
VERSION_MISMATCH = 18
"""Codes of nvml.h (nvmlReturn_t)."""
PROBE_FAILED = -1
"""Ours: the probe ended without an answer, so this says nothing about the driver."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU. None where NVML does not support the question. pids: (process, bytes of VRAM or None).

    compute_capability: "8.9".
    """

    uuid: str
    name: str
    memory_used_bytes: int | None
    memory_total_bytes: int | None
    utilisation_percent: int | None
    pids: tuple[tuple[int, int | None], ...] = ()
    compute_capability: str | None = None


@dataclass(frozen=True, slots=True)
class NvmlAnswer:
    """One answer. `code` 0 is success; otherwise `meaning` says what NVML made of it and the rest may be missing."""

    code: int
    meaning: str
    driver_version: str | None
    gpus: tuple[Gpu, ...] = ()


def ask(host: Host, deadline_s: float) -> NvmlAnswer | None:
    """NVML's answer; None is silence: it hangs, or an earlier question still does (`host.child.stuck()` says more).

    Costs a fresh Python, about 35 ms of CPU. Raises CommandFailed when the probe cannot be started.
    """
    answer = host.child.ask("nvml", deadline_s=deadline_s)
    if answer is None:
        return None
    try:
        if "failed" in answer:
            return NvmlAnswer(PROBE_FAILED, f"the NVML probe failed: {answer['failed']}", None)
        return NvmlAnswer(
            code=int(answer["code"]),
            meaning=str(answer["meaning"]),
            driver_version=answer["driver_version"],
            gpus=tuple(_gpu(gpu) for gpu in answer["gpus"]),
        )
    except (KeyError, TypeError, ValueError):
        return NvmlAnswer(PROBE_FAILED, "the NVML probe's answer was not understood", None)


def _gpu(gpu: Mapping[str, Any]) -> Gpu:
    pids: list[tuple[int, Json]] = [(int(pid), used) for pid, used in gpu["pids"]]
    return Gpu(
        uuid=str(gpu["uuid"]),
        name=str(gpu["name"]),
        memory_used_bytes=gpu["memory_used_bytes"],
        memory_total_bytes=gpu["memory_total_bytes"],
        utilisation_percent=gpu["utilisation_percent"],
        pids=tuple(pids),
        compute_capability=gpu.get("compute_capability"),
    )
