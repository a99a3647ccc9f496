"""The outbox's tables: what waits for whom, and what each receiver was told. Policy is in `agent.pager.outbox`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeAlias

from agent.errors import StoreError
from agent.model import Alert, Delivery, DeliveryState, Moment
from agent.store.records import Dispatch, OutboxView, Queued, ReceiverHealth, RowState, Told, from_text, to_text

DEFAULT_WAIT_S = 5.0
"""The wait after a failure that named none, seconds."""

_VIEW = """
SELECT * FROM outbox WHERE state = 'waiting'
UNION SELECT * FROM outbox WHERE alert_id IN (SELECT alert_id FROM outbox WHERE state = 'waiting')
UNION SELECT * FROM outbox WHERE id IN (
    SELECT merged_into FROM outbox WHERE alert_id IN (SELECT alert_id FROM outbox WHERE state = 'waiting'))
ORDER BY id
"""


Row: TypeAlias = Any
"""A row of a query, by column name."""


class Executes(Protocol):
    """The part of a database connection that is used here."""

    def execute(self, sql: str, parameters: Sequence[Any] = ..., /) -> Row:
        """Run one statement."""
        ...


def queued(row: Row) -> Queued:
    """One row of the table as a value. Raises StoreError when it cannot be read."""
    return Queued(
        id=row["id"],
        receiver=row["receiver"],
        key=row["key"],
        alert_id=row["alert_id"],
        alert=from_text(Alert, row["body"]),
        state=RowState(row["state"]),
        queued=from_text(Moment, row["queued"]),
        attempts=row["attempts"],
        tried=from_text(Moment, row["tried"]) if row["tried"] else None,
        wait_s=row["wait_s"],
        uncertain=bool(row["uncertain"]),
        trying=bool(row["trying"]),
        merged_into=row["merged_into"],
        reason=row["reason"],
    )


def view(read: Callable[[str], list[Row]]) -> tuple[OutboxView, list[int]]:
    """What the planner needs, and the rows that cannot be read. `read` runs a query."""
    rows: list[Queued] = []
    broken: list[int] = []
    for row in read(_VIEW):
        try:
            rows.append(queued(row))
        except StoreError:
            broken.append(row["id"])
    told = {(row["receiver"], row["key"]): Told(row["state"]) for row in read("SELECT * FROM told")}
    return OutboxView(tuple(rows), told), broken


def enqueue(connection: Executes, letters: Sequence[tuple[str, Alert]], now: Moment) -> None:
    """Queue alerts for receivers; one that is already there, by receiver and alert id, is left as it is."""
    for receiver, alert in letters:
        connection.execute(
            "INSERT OR IGNORE INTO outbox (receiver, key, alert_id, queued, body) VALUES (?, ?, ?, ?, ?)",
            (receiver, alert.key, alert.id, to_text(now), to_text(alert)),
        )


def begin(connection: Executes, dispatch: Dispatch, now: Moment) -> None:
    """Write down what is about to be sent: after a kill it counts as perhaps sent, and is only ever repeated."""
    for edit in dispatch.edits:
        connection.execute("UPDATE outbox SET body = ? WHERE id = ?", (to_text(edit.alert), edit.row))
        for merged in edit.merged:
            connection.execute("UPDATE outbox SET merged_into = ? WHERE merged_into = ?", (edit.row, merged))
            connection.execute(
                "UPDATE outbox SET state = 'merged', merged_into = ? WHERE id = ? AND state = 'waiting'",
                (edit.row, merged),
            )
    for row, reason in dispatch.moot:
        connection.execute(
            "UPDATE outbox SET state = 'moot', reason = ? WHERE id = ? AND state = 'waiting'", (reason, row)
        )
    for attempt in dispatch.attempts:
        connection.execute(
            "UPDATE outbox SET trying = 1, attempts = ?, tried = ? WHERE id = ?",
            (attempt.number, to_text(now), attempt.row),
        )


def record(connection: Executes, row_id: int, delivery: Delivery, now: Moment) -> ReceiverHealth | None:
    """Write down how an attempt ended. Returns the receiver's health when it changed (told once), else None."""
    found = connection.execute("SELECT * FROM outbox WHERE id = ?", (row_id,)).fetchone()
    if found is None:
        return None
    row = queued(found)
    uncertain = row.uncertain or delivery.uncertain
    state = {DeliveryState.SENT: RowState.SENT, DeliveryState.PERMANENT: RowState.DEAD}.get(
        delivery.state, RowState.WAITING
    )
    wait_s = (delivery.after_s if delivery.after_s is not None else DEFAULT_WAIT_S) if state == "waiting" else 0.0
    connection.execute(
        "UPDATE outbox SET trying = 0, state = ?, uncertain = ?, wait_s = ?, tried = ?, reason = ? WHERE id = ?",
        (state.value, int(uncertain), wait_s, to_text(now), delivery.reason, row_id),
    )
    told = told_after(told_to(connection, row.receiver, row.key), row.alert.action, state, uncertain=uncertain)
    tell(connection, row.receiver, row.key, told)
    return health_after(connection, row.receiver, delivery, now)


def told_after(before: Told, action: str, state: RowState, *, uncertain: bool) -> Told:
    """What a receiver knows of a key once an alert with this action was sent or refused for good."""
    if state is RowState.SENT:
        if action == "trigger":
            return Told.OPEN
        if action == "resolve" or before is Told.MISSED:
            return Told.CLOSED
    elif state is RowState.DEAD and action == "trigger" and before is not Told.OPEN:
        return Told.MAYBE if uncertain or before is Told.MAYBE else Told.MISSED
    return before


def told_to(connection: Executes, receiver: str, key: str) -> Told:
    """What a receiver knows of a key."""
    row = connection.execute("SELECT state FROM told WHERE receiver = ? AND key = ?", (receiver, key)).fetchone()
    return Told(row["state"]) if row else Told.CLOSED


def tell(connection: Executes, receiver: str, key: str, told: Told) -> None:
    """Remember what a receiver knows of a key; closed keys are not kept."""
    if told is Told.CLOSED:
        connection.execute("DELETE FROM told WHERE receiver = ? AND key = ?", (receiver, key))
    else:
        connection.execute("INSERT OR REPLACE INTO told VALUES (?, ?, ?)", (receiver, key, told.value))


def interrupted(connection: Executes) -> None:
    """After a start: attempts under way when the last process ended may have been taken; repeat them at once."""
    connection.execute("UPDATE outbox SET trying = 0, uncertain = 1, wait_s = 0 WHERE trying = 1")


def health_after(connection: Executes, name: str, delivery: Delivery, now: Moment) -> ReceiverHealth | None:
    """A receiver's health after one more answer, when that changed it; None when it did not."""
    row = connection.execute("SELECT body FROM receivers WHERE name = ?", (name,)).fetchone()
    before = from_text(ReceiverHealth, row["body"]) if row else ReceiverHealth(name)
    if delivery.state is DeliveryState.SENT:
        after = replace(before, failing_since=None, reason="", refused=False, sent=before.sent + 1, last_sent=now)
    else:
        refused = delivery.state is DeliveryState.PERMANENT
        after = replace(
            before,
            failing_since=before.failing_since or now,
            reason=delivery.reason,
            refused=refused,
            dead=before.dead + int(refused),
        )
    connection.execute("INSERT OR REPLACE INTO receivers VALUES (?, ?)", (name, to_text(after)))
    changed = (before.failing_since is None, before.refused) != (after.failing_since is None, after.refused)
    return after if changed else None
