"""What there is to build with: cmake, a compiler, make or ninja, ccache; for CUDA nvcc, and which cards to build for.

Every program is asked as the build user, because a recipe may name one that is not root's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from agent.errors import CommandFailed
from agent.host import Host, build_log, interlock, nvml
from agent.host.recipe import Recipe, asker

ASK_S = 15.0
TRY_S = 60.0
CUDA_PLACES = ("/usr/local/cuda/bin/nvcc", "/opt/cuda/bin/nvcc")
"""Where nvcc is when it is not on the path: NVIDIA's packages link the newest toolkit there."""
MINIMUM_DRIVER = ((13, 0, 580), (12, 8, 550), (12, 0, 525), (11, 0, 450))
"""(toolkit major, minor, driver): the least driver branch for a toolkit from there on.

NVIDIA's "CUDA Toolkit and Minimum Required Driver Versions"; from 12.8 on llama.cpp compresses its device code, which
drivers of the 535 branch do not load ("device kernel image is invalid"), and those from 550 on do.
"""
_RELEASE = re.compile(r"release (\d+)\.(\d+)")


@dataclass(frozen=True, slots=True)
class Tool:
    """A program: where it was asked for, and the first line of what it says of its version."""

    path: str
    version: str


@dataclass(frozen=True, slots=True)
class Toolkit:
    """A CUDA toolkit. compiles_for: the architectures its nvcc knows ("89"); empty when it cannot say."""

    nvcc: str
    major: int
    minor: int
    compiles_for: tuple[str, ...]

    @property
    def version(self) -> str:
        """As people say it: "12.8"."""
        return f"{self.major}.{self.minor}"


def tool(host: Host, path: str) -> Tool | None:
    """A program by name or path, None when it cannot be started."""
    try:
        answer = host.run([path, "--version"], timeout_s=ASK_S, user=asker())
    except CommandFailed:
        return None
    lines = (answer.stdout or answer.stderr).strip().splitlines()
    return Tool(path, lines[0][:120]) if answer.rc == 0 and lines else None


def compiler(recipe: Recipe) -> str:
    """The C++ compiler that cmake takes: the recipe's, else c++."""
    return recipe.option("CMAKE_CXX_COMPILER") or "c++"


def generator(host: Host) -> Literal["Ninja", "Unix Makefiles", ""]:
    """What cmake drives: ninja where it is, else make, "" where neither is."""
    if tool(host, "ninja"):
        return "Ninja"
    return "Unix Makefiles" if tool(host, "make") else ""


def cuda(host: Host, recipe: Recipe) -> Toolkit | None:
    """The toolkit that the build would use; None when there is none, or none is needed."""
    if not recipe.cuda:
        return None
    named = recipe.option("CMAKE_CUDA_COMPILER")
    for path in (named,) if named else ("nvcc", *CUDA_PLACES):
        found = tool(host, path)
        if found is not None:
            return _toolkit(host, path)
    return None


def _toolkit(host: Host, path: str) -> Toolkit | None:
    try:
        said = host.run([path, "--version"], timeout_s=ASK_S, user=asker()).stdout
        listed = host.run([path, "--list-gpu-arch"], timeout_s=ASK_S, user=asker()).stdout
    except CommandFailed:
        return None
    release = _RELEASE.search(said)
    if release is None:
        return None
    return Toolkit(path, int(release[1]), int(release[2]), tuple(re.findall(r"compute_(\d+)", listed)))


def architectures(host: Host, recipe: Recipe) -> tuple[str, ...]:
    """What to build for: the configured architectures, else those of the cards that NVML sees; () when nobody knows."""
    if not recipe.cuda:
        return ()
    if recipe.architectures:
        return recipe.architectures
    named = recipe.option("CMAKE_CUDA_ARCHITECTURES")
    if named:
        return tuple(filter(None, re.split(r"[;,]", named)))
    try:
        answer = nvml.ask(host, interlock.NVML_DEADLINE_S)
    except CommandFailed:
        return ()
    seen = (gpu.compute_capability for gpu in (answer.gpus if answer else ()))
    found = {each.replace(".", "") for each in seen if each}
    return tuple(sorted(found, key=int))


def toolkit_problem(kit: Toolkit, wanted: Sequence[str], driver: str | None) -> str:
    """Why what this toolkit makes would not run here, in words; "" when it would. driver: its version, None unknown."""
    unknown = [each for each in wanted if kit.compiles_for and re.sub(r"\D.*", "", each) not in kit.compiles_for]
    if unknown:
        return (
            f"nvcc {kit.version} cannot build for {', '.join(unknown)} "
            f"(it knows {', '.join(kit.compiles_for)}): another CUDA toolkit is needed"
        )
    least = next((need for major, minor, need in MINIMUM_DRIVER if (kit.major, kit.minor) >= (major, minor)), 0)
    branch = (driver or "").partition(".")[0]
    if branch.isdecimal() and int(branch) < least:
        return f"CUDA {kit.version} needs a driver from {least} on, loaded is {driver}: it would not run"
    return ""


def cuda_problem(host: Host, recipe: Recipe, kit: Toolkit) -> str:
    """Why nvcc cannot build llama.cpp at all, tried on an empty file; "" when it can.

    It needs a C++ compiler that is not too new for it, and cuBLAS, which is a package of its own.
    """
    named = recipe.option("CMAKE_CUDA_HOST_COMPILER")
    chosen = ["-ccbin", named] if named else []
    argv = [kit.nvcc, *chosen, "-E", "-x", "cu", "-include", "cublas_v2.h", "/dev/null", "-o", "/dev/null"]
    try:
        tried = host.run(argv, timeout_s=TRY_S, user=asker())
    except CommandFailed as error:
        return f"nvcc {kit.version} cannot be tried: {error.message}"
    if tried.rc == 0:
        return ""
    if "cublas_v2.h" in tried.stderr:
        package = f"libcublas-dev-{kit.major}-{kit.minor}"
        return f"the CUDA {kit.version} toolkit has no cuBLAS, which llama.cpp links to (NVIDIA's {package})"
    if "unsupported GNU version" in tried.stderr:
        return f"the C++ compiler is too new for CUDA {kit.version}: name an older one (-DCMAKE_CUDA_HOST_COMPILER=…)"
    said = build_log.first_error(tried.stderr)
    return f"nvcc {kit.version} fails on an empty file" + (f": {said}" if said else "")
