"""The bed: everything a test needs to boot hosts, made ready once per run and cached between runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bed import engine, prerequisites, rootfs
from bed.host import BootedHost, booted, sweep

LLAMA = "/opt/llama"
LLAMA_OLDER = "/opt/llama-older"
MODELS = "/opt/models"


class Bed:
    """Boots disposable hosts. Get one from ``ensure()``."""

    @contextlib.contextmanager
    def boot(
        self,
        suite: str = "bookworm",
        *,
        writable: bool = False,
        name: str = "host",
        llama: bool = True,
        older: bool = False,
        packages: Sequence[str] = (),
        tree: Path | None = None,
        binds: Mapping[Path, str] | None = None,
    ) -> Iterator[BootedHost]:
        """Boot a host and remove it afterwards.

        ``writable`` keeps what the host writes over power cuts and boots; without it every write is in memory.
        ``llama`` shows llama-server at /opt/llama and models at /opt/models, both read-only; ``older`` the older
        release at /opt/llama-older. ``packages`` are distribution packages beyond the base, fetched once;
        ``tree`` is a tree of its own in place of both. ``binds`` maps further local folders to places in the host,
        read-only.
        """  # fmt: skip
        shown = dict(binds or {})
        if llama:
            shown[engine.llama_server()] = LLAMA
            shown[engine.models()] = MODELS
        if older:
            shown[engine.llama_server(older=True)] = LLAMA_OLDER
        with booted(suite, tree or rootfs.rootfs(suite, packages), name=name, writable=writable, binds=shown) as host:
            yield host


def ensure(*suites: str) -> Bed:
    """Make this machine ready and return the bed. Raises UnavailableError with the reason when it cannot be.

    Suites named here are built now; others when they are first booted.
    """
    prerequisites.ensure_commands()
    sweep()
    for suite in suites:
        rootfs.rootfs(suite)
    return Bed()
