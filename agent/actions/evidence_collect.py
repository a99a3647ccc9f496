"""Keep the evidence before a repair destroys it: unit, threads, kernel waits, known log lines, disk, memory, driver.

Only values that are parsed here are kept: numbers, states, names of kernel functions, a redacted command line, and the
matched words of known failures. No log line and no answer of an engine is kept, because either may hold a prompt. Each
reading stands alone: one that fails leaves its reason and the others stand.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

from agent.errors import HostError
from agent.host import Host, driver, interlock, journal, nvml, process, systemd
from agent.model import Json, Risk
from agent.plugin import Action, EngineParameters, Noop, Plan, Read, Target

MAX_THREADS = 64
"""Threads kept; a server has tens, and the transcript is bounded."""
MAX_MATCHES = 10
"""Known failures kept from the log."""


def plan(host: Host, target: Target, params: Any) -> Plan:
    """One reading per subject; nothing is changed."""
    unit = target.unit
    readings = [
        Read("room on the disk", _told(_disk), ("df", "-h", "/", "/var")),
        Read("memory and pressure", _told(_memory), ("cat", "/proc/meminfo", "/proc/pressure/memory")),
    ]
    if unit is not None:
        signatures = target.engine.signatures if target.engine is not None else ""
        readings = [
            Read("the unit", _told(partial(_unit, unit)), ("systemctl", "status", unit)),
            Read("its threads", _told(partial(_threads, unit))),
            Read("known failures in its log", _told(partial(_log, unit, signatures)), ("journalctl", "-u", unit)),
            *readings,
        ]
    if interlock.gpu_matters(host, target.settings.gpu if target.settings is not None else None):
        readings.append(Read("the driver", _told(_driver), ("cat", "/proc/driver/nvidia/version")))
        readings.append(Read("what NVML says", _told(_nvml), ("nvidia-smi",)))
    return Plan(tuple(readings) or (Noop("nothing to read"),))


def _told(read: Callable[[Host], Json]) -> Callable[[Host], Json]:
    """The reading, or why it could not be made."""

    def told(host: Host) -> Json:
        try:
            return read(host)
        except HostError as error:
            return {"could not be read": f"{type(error).__name__} {error.code}"}

    return told


def _unit(unit: str, host: Host) -> Json:
    state = systemd.unit_state(host, unit)
    found: dict[str, Json] = {
        "active": f"{state.active_state}/{state.sub_state}",
        "result": state.result,
        "unit_file": state.unit_file_state,
        "exit": [state.exec_main_code, state.exec_main_status],
        "restarts": state.n_restarts,
        "invocation": state.invocation_id,
        "job": state.job,
        "main_pid": state.main_pid,
    }
    if state.main_pid:
        found["argv"] = list(process.redact_argv(process.command_line(host, state.main_pid)))[:64]
    return found


def _threads(unit: str, host: Host) -> Json:
    state = systemd.unit_state(host, unit)
    if not state.main_pid:
        return []
    waits = {wait.tid: wait.wchan for wait in process.kernel_wait(host, state.main_pid)}
    return [
        {
            "tid": thread.tid,
            "state": thread.state,
            "cpu_s": round(thread.cpu_ns / 1e9, 3),
            "major_faults": thread.major_faults,
            "switches": thread.voluntary_switches,
            "kernel_wait": waits.get(thread.tid, ""),
        }
        for thread in process.threads(host, state.main_pid, only_main=False)[:MAX_THREADS]
    ]


def _log(unit: str, signatures: str, host: Host) -> Json:
    if not signatures:
        return []
    state = systemd.unit_state(host, unit)
    known = journal.load_signatures(signatures)
    found = journal.matches(host, unit, known, invocation_id=state.invocation_id or None, since_wall=None)
    return [{"cause": match.cause, "text": match.text, "at": match.at} for match in found[-MAX_MATCHES:]]


def _disk(host: Host) -> Json:
    room: dict[str, Json] = {}
    for path in ("/", "/var"):
        space = host.files.space(path)
        room[path] = {"bytes_free": space.bytes_free, "inodes_free": space.inodes_free, "read_only": space.read_only}
    return room


def _memory(host: Host) -> Json:
    wanted = ("MemTotal", "MemAvailable", "SwapTotal", "SwapFree")
    text = host.files.read_text("/proc/meminfo")
    found = dict(re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE))
    return {f"{name}_bytes": int(found[name]) * 1024 for name in wanted if name in found}


def _driver(host: Host) -> Json:
    lock = driver.read_lock(host)
    return {
        "loaded": driver.loaded_version(host),
        "library": driver.library_version(host),
        "lock": lock.version,
        "lock_problem": lock.problem,
    }


def _nvml(host: Host) -> Json:
    answer = nvml.ask(host, interlock.NVML_DEADLINE_S)
    if answer is None:
        return {"silent": True}
    return {
        "code": answer.code,
        "meaning": answer.meaning,
        "gpus": [
            {
                "uuid": gpu.uuid,
                "memory_used_bytes": gpu.memory_used_bytes,
                "utilisation_percent": gpu.utilisation_percent,
                "pids": [list(owner) for owner in gpu.pids],
            }
            for gpu in answer.gpus
        ],
    }


ACTION = Action(id="evidence.collect", params=EngineParameters, risk=Risk.NONE, plan=plan)
