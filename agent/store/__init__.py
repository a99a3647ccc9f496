"""The daemon's whole memory: results, incidents, transitions, runs and the outbox, in one SQLite file.

`open_store` is for the daemon, one thread of which owns it; `open_read_only` is for the command line while the
daemon is down. What happens when the file is corrupt or cannot be written: `agent.store.database`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from agent.errors import StoreError
from agent.host import Clock
from agent.model import Alert, CheckResult, Delivery, Incident, Json, Moment, Phase, Run, Status, Transition
from agent.store import mailbox
from agent.store.database import Database, ReadOnlyDatabase
from agent.store.records import (
    Attempt,
    Dispatch,
    Edit,
    OutboxView,
    Queued,
    ReceiverHealth,
    RowState,
    StatusChange,
    Told,
    elapsed_s,
    from_text,
    to_text,
)

__all__ = [
    "Attempt",
    "Dispatch",
    "Edit",
    "OutboxView",
    "Queued",
    "ReadOnlyStore",
    "ReceiverHealth",
    "RowState",
    "StatusChange",
    "Store",
    "Told",
    "elapsed_s",
    "open_read_only",
    "open_store",
]

PATH = "/var/lib/holdfast/holdfast.db"
"""Where the daemon keeps it."""

# How much is kept. Counted, not dated: a clock that jumps a year ahead must not empty the memory.
KEEP_CHANGES_PER_KEY = 200
KEEP_RESOLVED_INCIDENTS = 1000
KEEP_RUNS = 1000
KEEP_DELIVERED = 2000

Value = TypeVar("Value")


class _Reads(Protocol):
    @property
    def degraded(self) -> str: ...

    def read(self, sql: str, parameters: Sequence[Any] = ()) -> list[Any]: ...

    def close(self) -> None: ...


class ReadOnlyStore:
    """Everything that can be asked of the memory. All methods raise StoreError when it does not answer."""

    def __init__(self, database: _Reads) -> None:
        self._reads = database
        self._unreadable: set[str] = set()

    @property
    def degraded(self) -> str:
        """What is wrong with the memory, "" when nothing is."""
        words = [self._reads.degraded] if self._reads.degraded else []
        if self._unreadable:
            words.append(f"{len(self._unreadable)} stored rows cannot be read and are left out")
        return "; ".join(words)

    def load_results(self) -> dict[tuple[str, str], CheckResult]:
        """The latest result of every check and subject: after a restart, the `before` of every check."""
        rows = self._reads.read("SELECT check_id || ' ' || subject AS id, body FROM results")
        return {(result.check, result.subject): result for result in self._values(CheckResult, rows)}

    def status_changes(
        self, check: str | None = None, subject: str | None = None, limit: int = 100
    ) -> list[StatusChange]:
        """Changes of status, the newest first; of all checks and subjects where none is named."""
        rows = self._reads.read(
            "SELECT check_id, subject, status, summary, at FROM history"
            " WHERE (?1 IS NULL OR check_id = ?1) AND (?2 IS NULL OR subject = ?2) ORDER BY id DESC LIMIT ?3",
            (check, subject, limit),
        )
        return [StatusChange(row[0], row[1], Status(row[2]), row[3], row[4]) for row in rows]

    def load_incidents(self, *, open_only: bool = True, limit: int = 1000) -> list[Incident]:
        """Incidents in the order they began: those not resolved, or the latest `limit` of all."""
        if open_only:
            rows = self._reads.read("SELECT id, body FROM incidents WHERE phase <> 'resolved' ORDER BY seq")
        else:
            rows = self._reads.read("SELECT id, body FROM incidents ORDER BY seq DESC LIMIT ?", (limit,))[::-1]
        return self._values(Incident, rows)

    def incident(self, incident_id: str) -> Incident | None:
        """One incident."""
        found = self._values(Incident, self._reads.read("SELECT id, body FROM incidents WHERE id = ?", (incident_id,)))
        return found[0] if found else None

    def transitions(self, incident_id: str) -> list[Transition]:
        """Everything that happened to one incident, in order."""
        rows = self._reads.read("SELECT id, body FROM transitions WHERE incident = ? ORDER BY seq", (incident_id,))
        return self._values(Transition, rows)

    def recent_transitions(self, limit: int = 100) -> list[Transition]:
        """What happened lately to any incident, the newest first."""
        return self._values(
            Transition, self._reads.read("SELECT id, body FROM transitions ORDER BY seq DESC LIMIT ?", (limit,))
        )

    def runs(self, limit: int = 100) -> list[Run]:
        """The latest runs, the newest first."""
        return self._values(Run, self._reads.read("SELECT id, body FROM runs ORDER BY seq DESC LIMIT ?", (limit,)))

    def run(self, run_id: str) -> Run | None:
        """One run."""
        found = self._values(Run, self._reads.read("SELECT id, body FROM runs WHERE id = ?", (run_id,)))
        return found[0] if found else None

    def outbox(self) -> OutboxView:
        """Everything `agent.pager.outbox.plan` needs to decide what to send now."""
        view, broken = mailbox.view(self._reads.read)
        self._unreadable.update(f"outbox {row}" for row in broken)
        return view

    def depth(self) -> dict[str, int]:
        """How many alerts wait, by receiver; a receiver without any is not in it."""
        rows = self._reads.read("SELECT receiver, count(*) FROM outbox WHERE state = 'waiting' GROUP BY receiver")
        return {row[0]: row[1] for row in rows}

    def oldest_s(self, now: Moment) -> float | None:
        """Seconds that the oldest waiting alert has waited, None when none waits."""
        rows = self._reads.read("SELECT queued FROM outbox WHERE state = 'waiting' ORDER BY id LIMIT 1")
        return now.since(from_text(Moment, rows[0][0])) if rows else None

    def receivers(self) -> dict[str, ReceiverHealth]:
        """How each receiver that was ever tried does."""
        rows = self._reads.read("SELECT name AS id, body FROM receivers")
        return {health.name: health for health in self._values(ReceiverHealth, rows)}

    def get(self, name: str, default: Json = None) -> Json:
        """A small value kept under a name (the last proven token of an engine, the machine id)."""
        rows = self._reads.read("SELECT value FROM meta WHERE name = ?", (name,))
        return json.loads(rows[0][0]) if rows else default

    def close(self) -> None:
        """Let the file go."""
        self._reads.close()

    def _values(self, kind: type[Value], rows: Iterable[Any]) -> list[Value]:
        """The rows as values; one that cannot be read is left out and said in `degraded`."""
        values = []
        for row in rows:
            try:
                values.append(from_text(kind, row["body"]))
            except StoreError:
                self._unreadable.add(f"{kind.__name__} {row['id']}")
        return values


class Store(ReadOnlyStore):
    """The memory, to be changed. One thread owns it: the one that opened it.

    Writing raises StoreError only when neither the file nor the copy in memory takes it. `generation` grows
    when the memory was started anew under us: whoever still knows the open incidents should commit them again.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        super().__init__(database)
        self._database = database
        self._clock = clock
        database.write(mailbox.interrupted)

    @property
    def generation(self) -> int:
        """How often the memory was started anew since it was opened."""
        return self._database.generation

    def save_results(self, results: Iterable[CheckResult]) -> None:
        """Replace the latest results; a status that changed is kept as history too."""
        rows = [(r.check, r.subject, r.status.value, to_text(r), r.summary, r.at.wall) for r in results]

        def work(connection: mailbox.Executes) -> None:
            for check, subject, status, body, summary, at in rows:
                before = connection.execute(
                    "SELECT status FROM results WHERE check_id = ? AND subject = ?", (check, subject)
                ).fetchone()
                if before is None or before[0] != status:
                    connection.execute(
                        "INSERT INTO history (check_id, subject, status, summary, at) VALUES (?, ?, ?, ?, ?)",
                        (check, subject, status, summary, at),
                    )
                connection.execute("INSERT OR REPLACE INTO results VALUES (?, ?, ?, ?)", (check, subject, status, body))

        self._database.write(work, durable=False)

    def keep_results(self, keys: Collection[tuple[str, str]]) -> None:
        """Forget the results of every (check, subject) that is not named: what is no longer configured."""
        gone = [key for key in self.load_results() if key not in set(keys)]

        def work(connection: mailbox.Executes) -> None:
            for key in gone:
                connection.execute("DELETE FROM results WHERE check_id = ? AND subject = ?", key)

        if gone:
            self._database.write(work, durable=False)

    def commit(
        self,
        incidents: Sequence[Incident] = (),
        transitions: Sequence[Transition] = (),
        enqueue: Sequence[tuple[str, Alert]] = (),
        runs: Sequence[Run] = (),
    ) -> None:
        """Everything or nothing: incidents replaced, transitions and alerts added, durably.

        enqueue: (receiver name, alert), in the order in which they must arrive. A transition or alert that is
        already there, by its id, is left as it is, so that a commit may be repeated.
        """
        now = self._clock.now()

        def work(connection: mailbox.Executes) -> None:
            for incident in incidents:
                connection.execute(
                    "INSERT INTO incidents (id, key, phase, body) VALUES (?, ?, ?, ?)"
                    " ON CONFLICT (id) DO UPDATE SET key = excluded.key, phase = excluded.phase, body = excluded.body",
                    (incident.id, incident.key, incident.phase.value, to_text(incident)),
                )
            for transition in transitions:
                connection.execute(
                    "INSERT OR IGNORE INTO transitions (id, incident, body) VALUES (?, ?, ?)",
                    (transition.id, transition.incident, to_text(transition)),
                )
            for run in runs:
                _save_run(connection, run)
            mailbox.enqueue(connection, enqueue, now)

        self._database.write(work)

    def save_run(self, run: Run) -> None:
        """Mirror a run from the runner's ledger, which stays the truth; the latest summary wins."""
        self._database.write(lambda connection: _save_run(connection, run))

    def begin(self, dispatch: Dispatch, now: Moment) -> None:
        """Write down what is about to be sent, before it is."""
        if dispatch.attempts or dispatch.edits or dispatch.moot:
            self._database.write(lambda connection: mailbox.begin(connection, dispatch, now))

    def record(self, row_id: int, delivery: Delivery, now: Moment) -> ReceiverHealth | None:
        """Write down how an attempt ended; `delivery.after_s` is the wait until the next one.

        Returns the receiver's health when it changed between working, failing and refusing: say it once.
        """
        return self._database.write(lambda connection: mailbox.record(connection, row_id, delivery, now))

    def answered(self, receiver: str, delivery: Delivery, now: Moment) -> ReceiverHealth | None:
        """Write down how a receiver took what did not come from the outbox (a test page); returns as `record`."""
        return self._database.write(lambda connection: mailbox.health_after(connection, receiver, delivery, now))

    def told_elsewhere(self, receivers: Iterable[str], key: str) -> None:
        """A trigger for this key reached these receivers without the outbox, so that a resolve must follow."""
        names = tuple(receivers)

        def work(connection: mailbox.Executes) -> None:
            for name in names:
                mailbox.tell(connection, name, key, Told.MAYBE)

        self._database.write(work)

    def set(self, name: str, value: Json) -> None:
        """Keep a small JSON value under a name."""
        text = json.dumps(value)
        self._database.write(
            lambda connection: connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, text))
        )

    def prune(self) -> None:
        """Forget the oldest of what is over, beyond the `KEEP_` counts. Nothing open or waiting goes."""

        def work(connection: mailbox.Executes) -> None:
            connection.execute(
                "DELETE FROM history WHERE id IN (SELECT id FROM (SELECT id, row_number() OVER"
                " (PARTITION BY check_id, subject ORDER BY id DESC) AS n FROM history) WHERE n > ?)",
                (KEEP_CHANGES_PER_KEY,),
            )
            connection.execute(
                "DELETE FROM incidents WHERE phase = ?1 AND seq NOT IN"
                " (SELECT seq FROM incidents WHERE phase = ?1 ORDER BY seq DESC LIMIT ?2)",
                (Phase.RESOLVED.value, KEEP_RESOLVED_INCIDENTS),
            )
            connection.execute("DELETE FROM transitions WHERE incident NOT IN (SELECT id FROM incidents)")
            connection.execute(
                "DELETE FROM runs WHERE seq NOT IN (SELECT seq FROM runs ORDER BY seq DESC LIMIT ?)", (KEEP_RUNS,)
            )
            connection.execute(
                "DELETE FROM outbox WHERE state <> 'waiting' AND id NOT IN"
                " (SELECT id FROM outbox WHERE state <> 'waiting' ORDER BY id DESC LIMIT ?)",
                (KEEP_DELIVERED,),
            )

        self._database.write(work, durable=False)


def _save_run(connection: mailbox.Executes, run: Run) -> None:
    connection.execute(
        "INSERT INTO runs (id, body) VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET body = excluded.body",
        (run.id, to_text(run)),
    )


def open_store(path: str | Path, clock: Clock) -> Store:
    """Open the memory for writing, whatever state its file is in; `degraded` says what is wrong with it.

    Raises StoreError only when not even a database in memory can be had.
    """
    return Store(Database(path, clock), clock)


def open_read_only(path: str | Path) -> ReadOnlyStore:
    """Open the memory for reading only, with the daemon up or down, leaving no trace. Raises StoreError."""
    return ReadOnlyStore(ReadOnlyDatabase(path))
