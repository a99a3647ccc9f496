"""Install what the bed needs on the machine that runs the tests, and say plainly what is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from llama_build import cache_root, exclusively

from bed.errors import UnavailableError

# command looked for -> Debian package that brings it
COMMANDS = {
    "systemd-nspawn": "systemd-container",
    "debootstrap": "debootstrap",
    "nsenter": "util-linux",
    "unshare": "util-linux",
    "gcc": "gcc",
    "g++": "g++",
    "git": "git",
    "cmake": "cmake",
    "ninja": "ninja-build",
    "make": "make",
}
TOOLS = ("gguf==0.18.0", "numpy>=1.26,<3", "nvidia-ml-py>=13,<14")


def ensure_commands(commands: Sequence[str] = tuple(COMMANDS)) -> None:
    """Make sure the commands exist, installing their packages. Raises UnavailableError when that is impossible."""
    if sys.platform != "linux":
        raise UnavailableError("the host tier needs Linux")
    if os.geteuid() != 0:
        raise UnavailableError("the host tier needs root (it boots a system in namespaces)")
    missing = [name for name in commands if not _found(name)]
    if not missing:
        return
    if not shutil.which("apt-get"):
        raise UnavailableError(f"{', '.join(missing)} missing and there is no apt-get to install it")
    packages = sorted({COMMANDS[name] for name in missing})
    with exclusively("apt"):
        _apt("update")
        _apt("install", "-y", "--no-install-recommends", *packages)
    still = [name for name in missing if not _found(name)]
    if still:
        raise UnavailableError(f"{', '.join(still)} still missing after apt-get install {' '.join(packages)}")


def tools_python() -> Path:
    """Return the interpreter of a cached virtual environment with gguf, numpy and the real pynvml."""
    key = "-".join(str(part) for part in sys.version_info[:2])
    wanted = cache_root() / f"tools-py{key}"
    python = wanted / "bin" / "python"
    stamp = wanted / "complete.txt"
    with exclusively(f"tools-{key}"):
        if stamp.exists() and stamp.read_text(encoding="utf-8").split() == list(TOOLS):
            return python
        shutil.rmtree(wanted, ignore_errors=True)
        wanted.parent.mkdir(parents=True, exist_ok=True)
        _step([sys.executable, "-m", "venv", str(wanted)], "make a virtual environment (python3-venv)")
        _step([str(python), "-m", "pip", "install", "--quiet", *TOOLS], "install gguf and pynvml from the index")
        # A venv cannot be renamed into place (its scripts carry the path), so a stamp says it is whole.
        stamp.write_text("\n".join(TOOLS), encoding="utf-8")
    return python


def _found(name: str) -> bool:
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin") is not None


def _apt(*arguments: str) -> None:
    _step(["apt-get", "-q", *arguments], f"apt-get {arguments[0]}", {"DEBIAN_FRONTEND": "noninteractive"})


def _step(argv: Sequence[str], what: str, environment: dict[str, str] | None = None) -> None:
    try:
        done = subprocess.run(
            argv, env={**os.environ, **(environment or {})}, text=True, check=False, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=900,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(f"{what}: {error}") from error
    if done.returncode != 0:
        raise UnavailableError(f"{what}: exit {done.returncode}: {done.stdout[-800:]}")
