"""How one engine's llama.cpp is built here: what `[engine.rebuild]` says, as everything below the plug-ins takes it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Literal

BUILD_USER = "holdfast-build"
"""The user that builds; made by the package (sysusers.conf)."""
_TRUE = frozenset({"1", "ON", "YES", "TRUE", "Y"})
"""What cmake takes for true (cmake-language(7))."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """The names are those of `[engine.rebuild]` (agent/engines/llama_cpp.py), where each is explained."""

    engine: str
    source: str
    commit: str
    tag: str
    releases: str
    install: Literal["link", "copy"]
    current: str
    binary: str
    cmake: tuple[str, ...]
    architectures: tuple[str, ...]
    jobs: int | None
    memory_max_mib: int | None
    timeout_s: float
    network: bool
    keep: int
    prove_model: str

    @property
    def cuda(self) -> bool:
        """Whether this is a build for NVIDIA cards."""
        return self.option("GGML_CUDA").upper() in _TRUE

    def option(self, name: str) -> str:
        """What the options of cmake say of a variable, the last one that does; "" for nothing."""
        for each in reversed(self.cmake):
            known, _, value = each.removeprefix("-D").partition("=")
            if known.partition(":")[0] == name:
                return value
        return ""

    @property
    def server(self) -> str:
        """The file that the engine's unit runs."""
        return f"{self.current}/bin/llama-server" if self.install == "link" else self.binary


def of(settings: Any) -> Recipe | None:
    """The recipe in an engine's settings; None for one that is not rebuilt here, or of a kind that never is."""
    rebuild = getattr(settings, "rebuild", None)
    if rebuild is None:
        return None
    recipe: Recipe = rebuild.recipe(settings.name)
    return recipe


def unfit(settings: Any) -> str:
    """Why an engine with these settings cannot be rebuilt here, "" when it can."""
    name = getattr(settings, "name", "it")
    return "" if of(settings) is not None else f"{name} cannot be rebuilt here: it has no [engine.rebuild]"


def asker() -> str | None:
    """Whom to be when a source or a toolchain is asked: the build user as root, oneself as anyone else.

    Root runs nothing that belongs to the source or to a toolchain; who is not root cannot be anybody else.
    """
    return BUILD_USER if os.geteuid() == 0 else None
