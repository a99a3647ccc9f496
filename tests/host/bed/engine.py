"""The engine's files for the hosts: llama-server, an older llama-server, and models, all from the cache."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import llama_build
from llama_build import cache_root, exclusively

from bed.errors import BedError, UnavailableError
from bed.prerequisites import ensure_commands, tools_python

MODELS = ("tiny", "big")
_WRITER = Path(__file__).resolve().parents[2] / "engine" / "write_model.py"
_RECIPE = "1"  # raise it when write_model.py changes what it writes


def llama_server(*, older: bool = False) -> Path:
    """Return the folder of the pinned llama-server, or of the older one; minutes when first asked for."""
    ensure_commands(("g++", "cmake"))
    try:
        return llama_build.server(llama_build.OLDER if older else llama_build.CURRENT)
    except llama_build.BuildError as error:
        raise UnavailableError(f"no llama-server: {error}") from error


def models() -> Path:
    """Return the folder with ``tiny.gguf`` (under 1 MB) and ``big.gguf`` (about 800 MB), written once."""
    wanted = cache_root() / f"models-{_RECIPE}"
    if wanted.exists():
        return wanted
    python = tools_python()
    with exclusively("models"):
        if wanted.exists():
            return wanted
        with tempfile.TemporaryDirectory(dir=cache_root(), prefix=".models-") as name:
            folder = Path(name) / "models"
            folder.mkdir(mode=0o755)
            for model in MODELS:
                done = subprocess.run(
                    [str(python), str(_WRITER), model, str(folder / f"{model}.gguf")], text=True, check=False,
                    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=600,
                )  # fmt: skip
                if done.returncode != 0:
                    raise BedError(f"write_model.py {model}: {done.stdout[-1000:]}")
            folder.rename(wanted)
    return wanted
