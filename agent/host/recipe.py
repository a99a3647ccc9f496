"""How one engine's llama.cpp is built here: what `[engine.rebuild]` says, as everything below the plug-ins takes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """The names are those of `[engine.rebuild]` (agent/engines/llama_cpp.py), where each is explained."""

    engine: str
    source: str
    commit: str
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
        return any(
            each.partition("=")[0].split(":")[0] == "-DGGML_CUDA" and each.endswith("=ON") for each in self.cmake
        )

    @property
    def server(self) -> str:
        """The file that the engine's unit runs."""
        return f"{self.current}/bin/llama-server" if self.install == "link" else self.binary
