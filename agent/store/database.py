"""The database file and everything that can go wrong with it. The only module that knows SQLite.

The file is in WAL mode; transitions and outbox are written with synchronous=FULL, so that what was committed
is there after a power cut; check results with NORMAL, so that they cost no fsync. In every failure the daemon
goes on watching and paging:

- corrupt file, or one written by a newer version: moved aside (`holdfast.db.corrupt-…`, `.newer-…`), a new one
  is started, `degraded` says so and `generation` grows.
- disk full, I/O error, read-only file system, locked by someone: the database goes on in memory as a copy of
  the file, with the write that failed. `degraded` says so; every `RETRY_S` a write first tries to put the copy
  back. Only a kill before that loses what happened meanwhile; the outbox then repeats what the file still has.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from agent.errors import StoreError
from agent.host import Clock
from agent.model import Moment
from agent.store.records import elapsed_s
from agent.store.schema import MIGRATIONS

RETRY_S = 15.0
"""How long to wait between two attempts to leave the memory copy, seconds."""
BUSY_S = 2.0
"""How long to wait for a lock that someone else holds on our file, seconds."""

Connection = sqlite3.Connection
Row = Any
Result = TypeVar("Result")


class _Newer(Exception):
    """The file was written by a newer version of Holdfast."""


class Database:
    """One connection that survives its file. Owned by one thread."""

    def __init__(self, path: str | Path, clock: Clock) -> None:
        self.generation = 0
        self._path = Path(path)
        self._clock = clock
        self._note = ""
        self._trouble = ""
        self._memory = False
        self._stranger = False  # what the file holds could not be read, so it must not be overwritten
        self._tried: Moment = clock.now()
        self._connection: Connection
        self._open()
        self.generation = 0

    @property
    def degraded(self) -> str:
        """What is wrong, "" when nothing is. That a file was moved aside is said until the daemon restarts."""
        return "; ".join(words for words in (self._note, self._trouble) if words)

    def read(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """The rows of one query. Raises StoreError when there is no answer from file or memory."""
        try:
            return self._connection.execute(sql, parameters).fetchall()
        except sqlite3.Error as error:
            if self._memory:
                raise _unreadable(error) from error
            self._recover(error)
        try:
            return self._connection.execute(sql, parameters).fetchall()
        except sqlite3.Error as error:
            raise _unreadable(error) from error

    def write(self, work: Callable[[Connection], Result], *, durable: bool = True) -> Result:
        """Do `work` in one transaction; it is done again when the file fails under it.

        durable: survive a power cut, not only a kill. Raises StoreError when even the memory copy failed.
        """
        if self._memory:
            self._leave_memory()
        try:
            return self._transaction(work, durable=durable)
        except sqlite3.Error as error:
            if self._memory or isinstance(error, (sqlite3.IntegrityError, sqlite3.ProgrammingError)):
                raise _unreadable(error) from error
            self._recover(error)
        try:
            return self._transaction(work, durable=durable)
        except sqlite3.Error as error:
            raise _unreadable(error) from error

    def close(self) -> None:
        """Put the memory copy back if there is one and it can be, and close."""
        if self._memory:
            self._leave_memory(at_once=True)
        self._connection.close()

    def _transaction(self, work: Callable[[Connection], Result], *, durable: bool) -> Result:
        connection = self._connection
        connection.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
        connection.execute("BEGIN IMMEDIATE")
        try:
            result = work(connection)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        return result

    def _open(self) -> None:
        """Use the file; a new one in place of one that is not usable; memory where no file can be."""
        for _ in range(2):
            try:
                self._connection = _connect(self._path)
            except _Newer as error:
                self._move_aside("newer", str(error))
            except sqlite3.OperationalError as error:
                self._go_on_in(self._copy_of_file(), str(error))
                return
            except sqlite3.DatabaseError as error:
                self._move_aside("corrupt", str(error))
            else:
                return
        self._go_on_in(self._copy_of_file(), "it cannot be replaced")

    def _recover(self, error: sqlite3.Error) -> None:
        """The file failed: go on with a new file when it is corrupt, in memory when it cannot be written."""
        if not isinstance(error, sqlite3.OperationalError):
            self._close_quietly()
            self._move_aside("corrupt", str(error))
            self._open()
            return
        memory = _blank()
        try:
            self._connection.backup(memory)
        except sqlite3.Error:
            memory.close()
            self._close_quietly()
            memory = self._copy_of_file()
        else:
            self._close_quietly()
        self._go_on_in(memory, str(error))

    def _copy_of_file(self) -> Connection:
        """A memory copy of a file that cannot be used as usual; an empty one when it cannot even be read."""
        memory = _blank()
        try:
            if self._path.exists():
                # An exclusive lock keeps SQLite from creating a -shm file, which a full disk would refuse.
                disk = _raw(self._path, "mode=rw")
                try:
                    disk.execute("PRAGMA locking_mode=EXCLUSIVE")
                    disk.backup(memory)
                finally:
                    disk.close()
            _prepare(memory)
        except (sqlite3.Error, OSError, _Newer):
            memory.close()
            memory = _blank()
            _prepare(memory)
            self._stranger = True
            self.generation += 1
        return memory

    def _go_on_in(self, memory: Connection, reason: str) -> None:
        self._connection = memory
        self._memory = True
        self._tried = self._clock.now()
        lost = "; what it held cannot be read" if self._stranger else ""
        self._trouble = f"{self._path} cannot be written ({reason}){lost}: going on in memory, which a kill would lose"

    def _leave_memory(self, *, at_once: bool = False) -> None:
        """Put the memory copy back into the file, if that works again."""
        if not at_once and elapsed_s(self._clock.now(), self._tried) < RETRY_S:
            return
        self._tried = self._clock.now()
        try:
            if self._stranger and self._path.exists():
                self._move_aside("unread", "it could not be read")
            disk = _raw(self._path, "mode=rwc")
        except (sqlite3.Error, OSError):
            return
        try:
            disk.execute("PRAGMA journal_mode=WAL")
            disk.execute("PRAGMA synchronous=FULL")
            self._connection.backup(disk)
            disk.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError:
            disk.close()
        except sqlite3.DatabaseError as error:
            disk.close()
            self._move_aside("corrupt", str(error))
        else:
            self._connection.close()
            self._connection = disk
            self._memory = self._stranger = False
            self._trouble = ""

    def _move_aside(self, why: str, reason: str) -> None:
        """Keep the file under another name, with the parts that belong to it."""
        moment = datetime.fromtimestamp(self._clock.now().wall, timezone.utc).strftime("%Y%m%dT%H%M%SZ")
        name = f"{self._path.name}.{why}-{moment}"
        number = 1
        while self._path.with_name(name).exists():
            number += 1
            name = f"{self._path.name}.{why}-{moment}-{number}"
        try:
            for suffix in ("", "-wal", "-shm"):
                part = Path(f"{self._path}{suffix}")
                if part.exists():
                    part.rename(self._path.with_name(f"{name}{suffix}"))
        except OSError:
            self._stranger = True
        else:
            self._note = f"{self._path} was {why} ({reason}): kept as {name}, started a new one"
        self.generation += 1

    def _close_quietly(self) -> None:
        try:
            self._connection.close()
        except sqlite3.Error:
            return


class ReadOnlyDatabase:
    """The file as another process left it or is writing it. Changes nothing, not even beside it."""

    def __init__(self, path: str | Path) -> None:
        """Open. Raises StoreError when there is none, it cannot be read, or its version is not ours."""
        self.degraded = ""
        file = Path(path)
        try:
            exists = file.exists()
            live = Path(f"{file}-wal").exists()
        except OSError as error:
            raise StoreError(
                f"{file} cannot be read: {error.strerror}", hint="run it with sudo", where=str(file)
            ) from None
        if not exists:
            raise StoreError("the daemon has not written anything yet", where=str(file), code="store-missing")
        try:
            # Without a -wal file SQLite would have to create one, which a reader may not: immutable skips that.
            self._connection = _raw(file, "mode=ro" if live else "mode=ro&immutable=1")
            version = self._connection.execute("PRAGMA user_version").fetchone()[0]
        except sqlite3.Error as error:
            raise _unreadable(error) from error
        if version != len(MIGRATIONS):
            self._connection.close()
            raise StoreError(
                f"{file} has version {version}, this program reads {len(MIGRATIONS)}",
                hint="restart the daemon: systemctl restart holdfast",
                code="store-version",
            )

    def read(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """The rows of one query. Raises StoreError."""
        try:
            return self._connection.execute(sql, parameters).fetchall()
        except sqlite3.Error as error:
            raise _unreadable(error) from error

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


def _raw(path: Path, mode: str) -> Connection:
    connection = sqlite3.connect(f"file:{quote(str(path))}?{mode}", uri=True, isolation_level=None, timeout=BUSY_S)
    connection.row_factory = sqlite3.Row
    return connection


def _blank() -> Connection:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    connection.row_factory = sqlite3.Row
    return connection


def _connect(path: Path) -> Connection:
    """The file, whole and of our version. Raises sqlite3.Error, _Newer."""
    connection = _raw(path, "mode=rwc")
    try:
        _prepare(connection, wal=True)
        problem = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if problem != "ok":
            raise sqlite3.DatabaseError(str(problem).replace("\n", " "))  # noqa: TRY301 - closes below
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(connection: Connection, *, wal: bool = False) -> None:
    """Bring the schema to our version, one transaction per step."""
    if wal:
        connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > len(MIGRATIONS):
        raise _Newer(f"version {version}, this program knows {len(MIGRATIONS)}")
    for number, statements in enumerate(MIGRATIONS[version:], start=version + 1):
        connection.execute("BEGIN IMMEDIATE")
        try:
            for statement in statements:
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version={number}")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


def _unreadable(error: sqlite3.Error) -> StoreError:
    return StoreError(f"the store does not answer: {error}", hint="see: holdfast doctor")
