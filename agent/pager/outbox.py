"""What to send to whom now: at least once, in order per key and receiver, never a state lost.

Pure, except for `attempt`, which makes one delivery in a worker thread. The owner of the store does, each round
and whenever an attempt ends:

    dispatch = plan(store.outbox(), settings, now, fallback_after_s)
    store.begin(dispatch, now)                 # written down before anything is sent
    delivery = attempt(host, settings, each)   # in a worker, one at a time per receiver
    store.record(each.row, delivery, now)

What that gives, and why:

- The alerts of one key reach one receiver in the order in which they were queued. One that must be tried again
  holds up only its own key at its own receiver.
- An attempt that may have been taken (no answer came, the process was killed) is repeated as it was, same key and
  action, until it is taken or refused: nothing else is told in its place.
- What certainly was not taken yet may still change: updates of a key become the latest one, under the time of the
  first; a trigger and its resolve become one `event` that opens nothing.
- An acknowledge or resolve goes only where the trigger was told. A receiver that refused the trigger for good is
  told of the end as an `event`.
- A fallback receiver hears what every other receiver refused for good or did not take for `fallback_after_s`, and
  afterwards how that ended.
- Waits are measured with the boot clock; over a boot with the wall clock, and one that cannot be measured is over.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from agent import plugin
from agent.host import Host
from agent.model import Alert, Delivery, DeliveryState, Moment, Urgency
from agent.pager.message import over_before_told
from agent.plugin import ReceiverSettings
from agent.store import Attempt, Dispatch, Edit, OutboxView, Queued, RowState, Told, elapsed_s

FIRST_WAIT_S = 5.0
"""The wait after the first failure, seconds; it doubles with each (facts: backoff 5 s to 5 min)."""
LONGEST_WAIT_S = 300.0
"""The longest wait of our own, seconds."""
LONGEST_ASKED_S = 3600.0
"""The longest wait that a receiver's Retry-After is granted, seconds."""

_RANK = {Urgency.INFO: 0, Urgency.WARNING: 1, Urgency.CRITICAL: 2}
_TELLS = ("trigger", "event")


def address(receivers: Iterable[ReceiverSettings], alerts: Iterable[Alert]) -> list[tuple[str, Alert]]:
    """Who gets which alert, for `Store.commit`.

    A receiver's `minimum` holds back triggers and events. An acknowledge or resolve is queued for everyone, and
    `plan` drops it where the trigger was never told.
    """
    known = tuple(receivers)
    return [
        (receiver.name, alert)
        for alert in alerts
        for receiver in known
        if alert.action not in _TELLS or _RANK[alert.urgency] >= _RANK[Urgency(receiver.minimum)]
    ]


def plan(view: OutboxView, receivers: Sequence[ReceiverSettings], now: Moment, fallback_after_s: float) -> Dispatch:
    """What to send now, what to merge and what to drop first. At most one attempt per receiver at a time.

    Rows for a receiver that is not configured (any more) are left alone.
    """
    queues: dict[tuple[str, str], list[Queued]] = defaultdict(list)
    for row in view.rows:
        if row.state is RowState.WAITING:
            queues[row.receiver, row.key].append(row)
    fates = _Fates(view, receivers, now, fallback_after_s)
    work = _Work()
    for receiver in receivers:
        if any(row.trying for (name, _), rows in queues.items() if name == receiver.name for row in rows):
            continue
        heads = []
        for (name, key), rows in queues.items():
            if name == receiver.name:
                head = _head(rows, view.told.get((name, key), Told.CLOSED), fates if receiver.fallback else None, work)
                if head is not None:
                    heads.append(head)
        work.choose(heads, now)
    return Dispatch(tuple(work.attempts), tuple(work.edits), tuple(work.moot), work.wake_after_s)


def attempt(host: Host, receivers: Iterable[ReceiverSettings], what: Attempt) -> Delivery:
    """Make one attempt. Never raises; `after_s` of a retry is the whole wait until the next attempt.

    A crash of the receiver's code counts as perhaps delivered, because it may have come after the sending.
    """
    settings = next((each for each in receivers if each.name == what.receiver), None)
    if settings is None:
        return Delivery.retry("this receiver is no longer configured", LONGEST_WAIT_S)
    try:
        delivery = plugin.receivers()[settings.kind].send(host, settings, what.alert)
    except Exception as error:  # noqa: BLE001 - a bug in one receiver must not stop the others
        delivery = Delivery.retry(f"{settings.kind} failed: {type(error).__name__}", uncertain=True)
    if delivery.state is not DeliveryState.RETRY:
        return delivery
    return replace(delivery, after_s=wait_s(what.row, what.number, delivery.after_s))


def wait_s(row: int, number: int, asked_s: float | None = None) -> float:
    """Seconds to wait after attempt `number` of a row: 5 s doubling to 5 min with jitter, or what was asked for.

    The jitter is a function of row and attempt, so that a test can know it.
    """
    spread = zlib.crc32(f"{row}:{number}".encode()) / 0xFFFFFFFF
    own = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(number - 1, 10) * (1 + 0.2 * spread))
    return max(own, min(asked_s or 0.0, LONGEST_ASKED_S))


def untold(view: OutboxView, receivers: Iterable[ReceiverSettings]) -> int:
    """How many alerts were tried and taken by nobody so far: while there are any, the heartbeat stays silent."""
    names = {receiver.name for receiver in receivers}
    by_id = {row.id: row for row in view.rows}
    tried: set[str] = set()
    taken: set[str] = set()
    for row in view.rows:
        holder = _holder(row, by_id)
        if holder is None or holder.state is RowState.SENT:
            taken.add(row.alert_id)
        elif row.receiver in names and row.alert.action in _TELLS and holder.attempts > int(holder.trying):
            tried.add(row.alert_id)
    return len(tried - taken)


def _holder(row: Queued, by_id: Mapping[int, Queued]) -> Queued | None:
    """The row that tells what this one has to tell; None when it is long gone, which only told rows are."""
    while row.state is RowState.MERGED:
        following = by_id.get(row.merged_into or 0)
        if following is None:
            return None
        row = following
    return row


@dataclass(frozen=True, slots=True)
class _Head:
    """The first thing to tell one receiver about one key, with what must be written down to tell it."""

    row: Queued
    edit: Edit | None = None


class _Work:
    """Collects the dispatch."""

    def __init__(self) -> None:
        self.attempts: list[Attempt] = []
        self.edits: list[Edit] = []
        self.moot: list[tuple[int, str]] = []
        self.wake_after_s: float | None = None

    def wake(self, after_s: float) -> None:
        if self.wake_after_s is None or after_s < self.wake_after_s:
            self.wake_after_s = after_s

    def choose(self, heads: list[_Head], now: Moment) -> None:
        """Attempt the most urgent head that is due; the others wait for it to end."""
        due = []
        for head in heads:
            waits_s = _waits_s(head.row, now)
            if waits_s > 0:
                self.wake(waits_s)
            else:
                due.append(head)
        if not due:
            return
        head = min(due, key=lambda each: (-_RANK[each.row.alert.urgency], each.row.id))
        if head.edit is not None:
            self.edits.append(head.edit)
        row = head.row
        self.attempts.append(Attempt(row.id, row.receiver, row.alert, row.attempts + 1))


def _waits_s(row: Queued, now: Moment) -> float:
    return 0.0 if row.tried is None else _left_s(row.wait_s - elapsed_s(now, row.tried))


def _left_s(seconds: float) -> float:
    """What is left of a wait; less than a millisecond is nothing, so that rounding never makes a wait of none."""
    return seconds if seconds >= 0.001 else 0.0


class _Fates:
    """What became of alerts at the receivers that are not fallbacks: whether the fallbacks are needed."""

    def __init__(
        self, view: OutboxView, receivers: Sequence[ReceiverSettings], now: Moment, fallback_after_s: float
    ) -> None:
        self._first = {receiver.name for receiver in receivers if not receiver.fallback}
        self._by_id = {row.id: row for row in view.rows}
        self._by_alert: dict[str, list[Queued]] = defaultdict(list)
        for row in view.rows:
            if row.receiver in self._first:
                self._by_alert[row.alert_id].append(row)
        self._now = now
        self._after_s = fallback_after_s

    def needed_in_s(self, row: Queued) -> float | None:
        """Seconds until a fallback must tell this row's alert: 0 now, None when someone has taken it.

        An alert that no other receiver was meant to hear (their `minimum`) is not for a fallback either.
        """
        if not self._first:
            return 0.0
        holders = [_holder(each, self._by_id) for each in self._by_alert[row.alert_id]]
        states = [RowState.SENT if holder is None else holder.state for holder in holders]
        if not states or any(state in (RowState.SENT, RowState.MOOT) for state in states):
            return None
        if all(state is RowState.DEAD for state in states):
            return 0.0
        return _left_s(self._after_s - elapsed_s(self._now, row.queued))


def _head(rows: Sequence[Queued], told: Told, fates: _Fates | None, work: _Work) -> _Head | None:
    """The first thing to tell from one key's waiting rows, after merging what certainly was not taken yet."""
    if rows[0].uncertain:
        return _Head(rows[0])
    if fates is not None:
        rows = _needed(rows, told, fates, work)
    merged = _merged(rows, told, work)
    if not merged:
        return None
    row, stands_for = merged[0]
    stored = next(each for each in rows if each.id == row.id)
    changed = bool(stands_for) or row.alert != stored.alert
    return _Head(row, Edit(row.id, row.alert, stands_for) if changed else None)


def _needed(rows: Sequence[Queued], told: Told, fates: _Fates, work: _Work) -> list[Queued]:
    """The rows that a fallback receiver has to tell by now; those that someone else has told are dropped."""
    kept: list[Queued] = []
    heard = told in (Told.OPEN, Told.MAYBE) and any(row.alert.action == "resolve" for row in rows)
    for row in rows:
        if heard or row.alert.action not in _TELLS:
            kept.append(row)
            heard = heard and row.alert.action != "resolve"
            continue
        needed_in_s = fates.needed_in_s(row)
        if needed_in_s is None:
            work.moot.append((row.id, "another receiver took it"))
        elif needed_in_s > 0:
            work.wake(needed_in_s)
            break
        else:
            kept.append(row)
    return kept


def _merged(rows: Sequence[Queued], told: Told, work: _Work) -> list[tuple[Queued, tuple[int, ...]]]:
    """The rows as they will be told: (row with its text, ids of the rows that it stands for)."""
    out: list[tuple[Queued, tuple[int, ...]]] = []
    known = told
    opened_at: int | None = None  # index in `out` of the trigger that opens the key, while nobody has heard of it
    for row in rows:
        action = row.alert.action
        if action == "trigger":
            if out and out[-1][0].alert.action == "trigger":
                first, ids = out.pop()
                alert = replace(row.alert, at=first.alert.at, since=min(first.alert.since, row.alert.since))
                out.append((replace(first, alert=alert), (*ids, row.id)))
                continue
            if known in (Told.CLOSED, Told.MISSED):
                opened_at = len(out)
            known = Told.OPEN
        elif action == "acknowledge":
            if known not in (Told.OPEN, Told.MAYBE):
                work.moot.append((row.id, "nothing is open there"))
                continue
        elif action == "resolve":
            if opened_at is not None:
                (first, ids), *between = out[opened_at:]
                events = [each for each in between if each[0].alert.action == "event"]
                rest = [n for each, more in between if each.alert.action != "event" for n in (each.id, *more)]
                ending = over_before_told(first.alert, row.alert)
                del out[opened_at:]
                if events:  # they are told before the end, in their own words
                    out += [*events, (replace(row, alert=ending), (first.id, *ids, *rest))]
                else:
                    out.append((replace(first, alert=ending), (*ids, *rest, row.id)))
                opened_at = None
                known = Told.CLOSED
                continue
            if known is Told.CLOSED:
                work.moot.append((row.id, "nothing is open there"))
                continue
            if known is Told.MISSED:
                out.append((replace(row, alert=over_before_told(None, row.alert)), ()))
                known = Told.CLOSED
                continue
            superseded = tuple(n for each, ids in out if each.alert.action == "trigger" for n in (each.id, *ids))
            out = [(each, ids) for each, ids in out if each.alert.action != "trigger"]
            out.append((row, superseded))
            known = Told.CLOSED
            continue
        out.append((row, ()))
    return out
