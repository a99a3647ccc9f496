"""The machine as the demonstration shows it: a few places lie in its own directory, and systemctl is the stand-in's."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agent.host import Completed, Host
from agent.host.commands import PATH
from agent.host.files import RealFiles
from agent.host.real import real_host

OWN = (
    "/etc/holdfast", "/usr/share/holdfast", "/var/lib/holdfast", "/var/lib/holdfast-runner", "/run/holdfast",
    "/run/holdfast-runner.sock", "/run/holdfast-inspect.sock",
    "/sys/fs/cgroup",  # the control groups of the stand-in's units
    "/etc/passwd", "/etc/group",  # an installed Holdfast's user and group are none of ours
)  # fmt: skip
"""What the demonstration sees below its own root; everything else is this machine's."""


def demo_host(root: Path) -> Host:
    """The real machine, except for the places in `OWN` and the programs in `root`/bin."""
    real = real_host()
    return Host(DemoFiles(root), _Commands(real, root), real.clock, real.http, real.child, _Ipc(real, root))


def place(root: Path, path: str) -> Path:
    """Where a path of the product really lies."""
    own = any(path == each or path.startswith(f"{each}/") for each in OWN)
    return root / path.lstrip("/") if own else Path(path)


class _Commands:
    """Programs are the real ones, with the stand-ins for systemctl and journalctl in front of the PATH."""

    def __init__(self, real: Host, root: Path) -> None:
        self._run = real.run
        self._path = f"{root}/bin:{PATH}"

    def __call__(self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, **more: Any) -> Completed:
        return self._run(argv, env={"PATH": self._path, **(env or {})}, **more)


class _Ipc:
    """Unix sockets, ours below the demonstration's root."""

    def __init__(self, real: Host, root: Path) -> None:
        self._ipc = real.ipc
        self._root = root

    def connect(self, path: str, *, timeout_s: float) -> Any:
        return self._ipc.connect(str(place(self._root, path)), timeout_s=timeout_s)


class DemoFiles(RealFiles):
    """The `Files` primitive: each path lies either below the demonstration's root or where it says."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root

    def _place(self, path: str, *, follow: bool = True) -> str:  # noqa: ARG002 - links are the kernel's here
        return str(place(self.root, path))


def python(*words: str) -> list[str]:
    """A command line that runs a module of this checkout with the interpreter that runs us."""
    return [sys.executable, "-m", *words]
