"""The tables, as the steps that led to them. `PRAGMA user_version` is the number of steps taken.

A step is never changed once released; a new one is appended.
"""

from __future__ import annotations

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE results (
            check_id TEXT NOT NULL, subject TEXT NOT NULL, status TEXT NOT NULL, body TEXT NOT NULL,
            PRIMARY KEY (check_id, subject)) WITHOUT ROWID""",
        """CREATE TABLE history (
            id INTEGER PRIMARY KEY, check_id TEXT NOT NULL, subject TEXT NOT NULL, status TEXT NOT NULL,
            summary TEXT NOT NULL, at REAL NOT NULL)""",
        "CREATE INDEX history_by_key ON history (check_id, subject, id)",
        """CREATE TABLE incidents (
            seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, key TEXT NOT NULL, phase TEXT NOT NULL,
            body TEXT NOT NULL)""",
        "CREATE INDEX incidents_open ON incidents (phase) WHERE phase <> 'resolved'",
        """CREATE TABLE transitions (
            seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, incident TEXT NOT NULL, body TEXT NOT NULL)""",
        "CREATE INDEX transitions_of ON transitions (incident, seq)",
        "CREATE TABLE runs (seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, body TEXT NOT NULL)",
        """CREATE TABLE outbox (
            id INTEGER PRIMARY KEY AUTOINCREMENT, receiver TEXT NOT NULL, key TEXT NOT NULL,
            alert_id TEXT NOT NULL, state TEXT NOT NULL DEFAULT 'waiting', queued TEXT NOT NULL,
            attempts INTEGER NOT NULL DEFAULT 0, tried TEXT, wait_s REAL NOT NULL DEFAULT 0,
            uncertain INTEGER NOT NULL DEFAULT 0, trying INTEGER NOT NULL DEFAULT 0, merged_into INTEGER,
            reason TEXT NOT NULL DEFAULT '', body TEXT NOT NULL, UNIQUE (receiver, alert_id))""",
        "CREATE INDEX outbox_waiting ON outbox (state) WHERE state = 'waiting'",
        "CREATE INDEX outbox_alert ON outbox (alert_id)",
        """CREATE TABLE told (
            receiver TEXT NOT NULL, key TEXT NOT NULL, state TEXT NOT NULL,
            PRIMARY KEY (receiver, key)) WITHOUT ROWID""",
        "CREATE TABLE receivers (name TEXT PRIMARY KEY, body TEXT NOT NULL) WITHOUT ROWID",
        "CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    ),
)
