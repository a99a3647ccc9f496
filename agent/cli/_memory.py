"""Reading what the daemon remembers, with the daemon up or down, and what the runner wrote down."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agent.cli._common import as_root_hint
from agent.cli._result import Problem
from agent.cli._session import current
from agent.errors import DaemonUnreachable, FileTrouble, PermissionRefused

if TYPE_CHECKING:
    from agent.host import Host
    from agent.ledger import Record
    from agent.store import ReadOnlyStore

STORE = "/var/lib/holdfast/holdfast.db"


def store_path(host: Host) -> str:
    """Where the store is below the host's root."""
    root = str(host.files.root).rstrip("/")
    return f"{root}{STORE}"


@contextmanager
def memory() -> Iterator[ReadOnlyStore]:
    """The daemon's store, read-only. Raises DaemonUnreachable when there is none, PermissionRefused when hidden."""
    from agent.store import open_read_only

    host = current().host
    try:
        there = host.files.exists(STORE)
        if there:
            host.files.stat(STORE)
    except FileTrouble as error:
        if error.kind == "denied":
            raise PermissionRefused(f"{STORE}: you may not read it", hint=as_root_hint(), where=STORE) from error
        raise
    if not there:
        raise DaemonUnreachable(
            "the daemon has never run here: there is nothing to tell",
            hint="sudo systemctl enable --now holdfast; then: holdfast doctor",
            where=STORE,
            code="never-ran",
        )
    store = open_read_only(store_path(host))
    try:
        yield store
    finally:
        store.close()


@dataclass(frozen=True, slots=True)
class LedgerView:
    """The runner's ledger, or why it could not be read."""

    records: tuple[Record, ...] = ()
    problems: tuple[str, ...] = ()
    unread: Problem | None = field(default=None)


def ledger_view(host: Host) -> LedgerView:
    """The ledger as far as the caller may read it. Never raises for what the file is."""
    from agent import ledger

    try:
        contents = ledger.read(host)
    except FileTrouble as error:
        hint = as_root_hint() if error.kind == "denied" else "sudo holdfast audit verify"
        code = "permission" if error.kind == "denied" else error.code
        return LedgerView(unread=Problem(code, error.message, hint, ledger.FILE))
    return LedgerView(contents.records, ledger.verify(contents))
