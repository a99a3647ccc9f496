"""A host that can build llama.cpp, and what the tests of building ask of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agent import plugin
from agent.engines.llama_cpp import LlamaCppSettings
from agent.errors import CommandFailed
from agent.host import (
    Space,
    build_needs,
    build_unit,
    toolchain,
)
from agent.host.recipe import Recipe
from agent.model import Json
from agent.plugin import Plan, Target
from tests.support.fake_host import Directory, FakeHost, Link

COMMIT = "1d7ab2b94abc1d7ab2b94abc1d7ab2b94abc1d7a"
OTHER = "2" * 40
SOURCE = "/opt/llama.cpp/src"
RELEASES = "/opt/llama.cpp/releases"
WORK = "/var/cache/holdfast-build/chat/work"
GIT = (
    "env", "HOME=/nonexistent", "GIT_CONFIG_NOSYSTEM=1", "git", "--no-replace-objects", f"--git-dir={SOURCE}/.git",
    "-c", "core.autocrlf=false", "-c", "protocol.allow=never",
)  # fmt: skip
ROOM = Space(200 << 30, 100 << 30, 1000, 900, False)
MEMINFO = "MemTotal:       16777216 kB\nMemFree:         1000000 kB\nMemAvailable:   12582912 kB\n"
NVCC = "nvcc: NVIDIA (R) Cuda compiler driver\nCuda compilation tools, release 12.8, V12.8.93\n"
ARCHES = "compute_75\ncompute_86\ncompute_89\ncompute_90\ncompute_120\n"
TRIED = ("-E", "-x", "cu", "-include", "cublas_v2.h", "/dev/null", "-o", "/dev/null")
UNIT = "holdfast-build-chat.service"
NAME = f"b9272-{COMMIT[:12]}+cpu"


def recipe(**changes: Any) -> Recipe:
    """What `[engine.rebuild]` says, as the host's functions take it."""
    rebuild: dict[str, Any] = {"source": SOURCE, "commit": COMMIT, **changes}
    return settings(**rebuild).rebuild.recipe("chat")  # type: ignore[union-attr]


def settings(**rebuild: Any) -> LlamaCppSettings:
    """An engine's settings with this `[engine.rebuild]`; none without any."""
    return LlamaCppSettings.model_validate(
        {
            "name": "chat",
            "kind": "llama.cpp",
            "url": "http://127.0.0.1:8080",
            "unit": "llama-server.service",
            "rebuild": rebuild or None,
        }
    )


def card(capability: str | None, number: int = 0) -> dict[str, Json]:
    """A card as the probe tells of it."""
    return {
        "uuid": f"GPU-{number}", "name": "a card", "memory_used_bytes": 0, "memory_total_bytes": 1,
        "utilisation_percent": 0, "pids": [], "compute_capability": capability,
    }  # fmt: skip


def nvml(*capabilities: str | None) -> dict[str, Json]:
    """The probe's answer with these cards."""
    gpus = [card(each, number) for number, each in enumerate(capabilities)]
    return {"code": 0, "meaning": "", "driver_version": "570.86.15", "gpus": gpus}


def missing(name: str) -> CommandFailed:
    """A program that is not there."""
    return CommandFailed(f"{name}: not found", code="command-not-found")


def box(files: Mapping[str, Any] | None = None, cards: Any = None, **commands: Any) -> FakeHost:
    """A host that can build for the CPU; `commands` replaces answers: git words joined by "_", or a tool's name."""
    tools = {name: commands.pop(name, f"{name} 1.2.3\n") for name in ("cmake", "git", "tar", "make", "ccache")}
    tools["c++"] = commands.pop("compiler", "c++ (Debian) 12.2.0\n")
    tools["ninja"] = commands.pop("ninja", missing("ninja"))
    tools["nvcc"] = commands.pop("nvcc", missing("nvcc"))
    answers: dict[Any, Any] = {
        (*GIT, "cat-file", "-t", COMMIT): commands.pop("kind", "commit\n"),
        (*GIT, "rev-list", "--objects", "--missing=print", f"{COMMIT}^{{tree}}"): commands.pop("objects", "abc f\n"),
        (*GIT, "tag", "--points-at", COMMIT): commands.pop("tags", "nightly\nb9272\n"),
        (*GIT, "rev-parse", "--is-shallow-repository"): commands.pop("shallow", "false\n"),
        (*GIT, "rev-list", "--count", COMMIT): commands.pop("count", "9272\n"),
        (*GIT, "rev-parse", "--verify", "--quiet", "refs/tags/b9272^{commit}"): commands.pop("points", f"{COMMIT}\n"),
        ("id", "--user", "holdfast-build"): commands.pop("user", "990\n"),
        ("nproc",): "8\n",
        ("systemctl", "show", "--property=ExecStart", "--", "llama-server.service"): commands.pop(
            "execstart",
            "ExecStart={ path=/opt/llama.cpp/current/bin/llama-server ; argv[]=/opt/x --api-key s3cret ; }\n",
        ),
        **{(name, "--version"): answer for name, answer in tools.items()},
        ("nvcc", "--list-gpu-arch"): ARCHES,
        ("nvcc", *TRIED): commands.pop("tried", ""),
        **{(path, "--version"): missing(path) for path in toolchain.CUDA_PLACES},
    }
    assert not commands, commands
    known: dict[str, Any] = {
        f"{SOURCE}/.git": Directory(),
        "/proc/meminfo": MEMINFO,
        "/sys/fs/cgroup/cgroup.controllers": "cpu memory\n",
        build_unit.WALLS: "[Service]\n",
        build_unit.TRIAL_WALLS: "[Service]\n",
        f"{RELEASES}/b1-old+cpu/bin/llama-server": "",
        "/opt/llama.cpp/current": Link("releases/b1-old+cpu"),
        **(files or {}),
    }
    return FakeHost.build(
        known,
        commands=answers,
        units={
            UNIT: {"LoadState": "not-found", "ActiveState": "inactive"},
            "llama-server.service": {"ActiveState": "active"},
        },
        spaces={"/": ROOM, "/var": ROOM, "/opt": ROOM, RELEASES: ROOM, "/var/cache": ROOM},
        child={"nvml": cards if cards is not None else nvml()},
    )


def survey(host: FakeHost, **changes: Any) -> build_needs.Survey:
    """What the preconditions say on this host."""
    return build_needs.survey(host, recipe(**changes), "llama-server.service", COMMIT)


def plan(action: str, host: FakeHost, **rebuild: Any) -> Plan:
    """The plan of a build action on this host."""
    found = plugin.actions()[action]
    params = found.params.model_validate({"engine": "chat"})
    known = settings(**({"source": SOURCE, "commit": COMMIT} | rebuild))
    return found.plan(host, Target("engine:chat", params, 0.0, settings=known), params)
