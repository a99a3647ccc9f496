"""The runner's ledger: every attempt, outcome, refusal, approval and pause, hash-chained, written before acting.

One JSON record per line in `ledger.jsonl`; a record's hash covers the record and the hash before it. Only the
runner writes, under a lock, and fsyncs before it acts: no ledger, no run. A line that a power cut left torn stays
as it is, and the next record, `repaired`, tells its length and hash; nothing is ever rewritten.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from agent.decide import Attempt
from agent.errors import FileTrouble, HostError, StoreError
from agent.host import Host
from agent.host import locks as host_locks
from agent.model import Json, Moment, Outcome, Risk

DIRECTORY = "/var/lib/holdfast-runner"
FILE = f"{DIRECTORY}/ledger.jsonl"
LOCK = f"{DIRECTORY}/locks/ledger"
REFUSALS_LOCK = f"{DIRECTORY}/locks/refusals"
GROUP = "holdfast"
"""Its members may read everything here: the daemon, and people on call."""
SIZE_LIMIT = 256 << 20
"""A ledger above this size is not read any more; at a record of 400 bytes that is 600,000 records."""
APPROVAL_S = 900.0
"""How long an approval holds."""
REFUSALS_EVERY_S = 10.0
"""Refusals of the same kind from the same uid become one record with a count, so a flood cannot fill the disk."""
FIRST = "0" * 64
"""What the first record chains to."""


class Kind(str, Enum):
    """What a record says. `reset` is proven health: it clears failure signatures, never the window.

    `parked`: the run has let go and is finished after the next boot. `rehearsal` and `rehearsed` are the attempt and
    the outcome of a rehearsal, which spends no budget.
    """

    ATTEMPT = "attempt"
    OUTCOME = "outcome"
    REFUSED = "refused"
    APPROVAL = "approval"
    PAUSE = "pause"
    RESUME = "resume"
    RESET = "reset"
    STOP = "stop"
    PARKED = "parked"
    REPAIRED = "repaired"
    REHEARSAL = "rehearsal"
    REHEARSED = "rehearsed"


@dataclass(frozen=True, slots=True)
class Record:
    """One line of the ledger. `run` is the run's or request's id, "" where there is none."""

    seq: int
    at: Moment
    kind: Kind
    run: str
    data: Mapping[str, Json]
    previous: str
    hash: str


@dataclass(frozen=True, slots=True)
class Contents:
    """A whole ledger as read: its records, what is wrong with it, and what was torn off at its end."""

    records: tuple[Record, ...] = ()
    problems: tuple[str, ...] = ()
    torn: str = ""
    """The text after the last whole record that no `repaired` record has told of yet."""

    @property
    def head(self) -> tuple[int, str]:
        """The number and the previous hash that the next record carries."""
        return (self.records[-1].seq + 1, self.records[-1].hash) if self.records else (0, FIRST)


@dataclass(frozen=True, slots=True)
class Approval:
    """A person's permission for one run: bound to incident, runbook and plan."""

    id: str
    incident: str
    runbook: str
    subject: str
    runbook_hash: str
    plan_hash: str
    until: float


@dataclass(frozen=True, slots=True)
class Pause:
    """Acting is paused: until when (Unix seconds), by which uid, why."""

    until: float
    uid: int
    reason: str


# --- reading -------------------------------------------------------------------------------------------------


def parse(text: str) -> Contents:
    """The records in a ledger's text, with everything that is wrong with the chain. Pure; never raises."""
    records: list[Record] = []
    problems: list[str] = []
    torn: list[str] = []
    for number, line in enumerate(text.split("\n"), start=1):
        record = _record(line)
        if record is None:
            if line:
                torn.append(line)
            continue
        expected = (records[-1].seq + 1, records[-1].hash) if records else (0, FIRST)
        if (record.seq, record.previous) != expected or record.hash != _hash(record):
            problems.append(f"line {number}: record {record.seq} does not follow from the one before it")
        if torn:
            told = record.kind is Kind.REPAIRED and record.data.get("sha256") == _digest("\n".join(torn))
            if not told:
                problems.append(f"line {number}: {len(torn)} unreadable line(s) before it, and no record tells of them")
            torn = []
        records.append(record)
    return Contents(tuple(records), tuple(problems), "\n".join(torn))


def read(host: Host) -> Contents:
    """The ledger of this host; an absent one is empty. Raises FileTrouble."""
    try:
        return parse(host.files.read_text(FILE, SIZE_LIMIT))
    except FileTrouble as error:
        if error.kind == "missing":
            return Contents()
        raise


def verify(contents: Contents) -> tuple[str, ...]:
    """Everything that is wrong with the ledger, in words; empty when the chain is whole."""
    if not contents.torn:
        return contents.problems
    return (*contents.problems, f"the last {len(contents.torn)} characters are torn; the next record will tell of them")


def _record(line: str) -> Record | None:
    try:
        raw = json.loads(line)
        return Record(
            seq=int(raw["seq"]),
            at=Moment(float(raw["at"]), float(raw["boot_s"]), str(raw["boot_id"])),
            kind=Kind(raw["kind"]),
            run=str(raw["run"]),
            data=dict(raw["data"]),
            previous=str(raw["prev"]),
            hash=str(raw["hash"]),
        )
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def _fields(record: Record) -> dict[str, Json]:
    return {
        "seq": record.seq,
        "at": record.at.wall,
        "boot_s": record.at.boot_s,
        "boot_id": record.at.boot_id,
        "kind": record.kind.value,
        "run": record.run,
        "data": dict(record.data),
        "prev": record.previous,
    }


def _hash(record: Record) -> str:
    return _digest(json.dumps(_fields(record), sort_keys=True, separators=(",", ":")))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


# --- writing -------------------------------------------------------------------------------------------------


def group(host: Host) -> str | None:
    """The group that may read what the runner writes; None where it does not exist (a demo, a test)."""
    try:
        lines = host.files.read_text("/etc/group").splitlines()
    except FileTrouble:
        return None
    return GROUP if any(line.startswith(f"{GROUP}:") for line in lines) else None


def prepare(host: Host) -> None:
    """Make the runner's directories. Raises FileTrouble."""
    owner = group(host)
    host.files.mkdir(DIRECTORY, 0o750, group=owner)
    for name in ("runs", "locks", "stops"):
        host.files.mkdir(f"{DIRECTORY}/{name}", 0o750, group=owner)


def append(host: Host, kind: Kind, run: str, data: Mapping[str, Json]) -> Record:
    """Write one record and fsync it. Raises StoreError when it is not safely on disk: then nothing may be done."""
    try:
        held = host_locks.acquire(host, LOCK, wait_s=10.0)
        if held is None:
            raise StoreError("the ledger is locked by another process", where=LOCK, code="no-ledger")
        with held:
            return _append(host, kind, run, data)
    except HostError as error:
        raise StoreError(f"the ledger cannot be written: {error.message}", where=FILE, code="no-ledger") from error


def _append(host: Host, kind: Kind, run: str, data: Mapping[str, Json]) -> Record:
    contents = read(host)
    seq, previous = contents.head
    if contents.torn:
        told = {"characters": len(contents.torn), "sha256": _digest(contents.torn)}
        repaired = _write(host, seq, previous, Kind.REPAIRED, "", told)
        seq, previous = repaired.seq + 1, repaired.hash
    return _write(host, seq, previous, kind, run, data)


def _write(host: Host, seq: int, previous: str, kind: Kind, run: str, data: Mapping[str, Json]) -> Record:
    bare = Record(seq, host.clock.now(), kind, run, json.loads(json.dumps(dict(data))), previous, "")
    record = Record(bare.seq, bare.at, bare.kind, bare.run, bare.data, bare.previous, _hash(bare))
    line = json.dumps({**_fields(record), "hash": record.hash}, sort_keys=True, separators=(",", ":"))
    host.files.append_durable(FILE, line, 0o640, group=group(host))
    return record


def refused(host: Host, uid: int, code: str, reason: str, run: str = "") -> bool:
    """Record a refusal; the same code from the same uid at most once in ten seconds, with the count of the others.

    Whether a record was written. Never raises: a refusal stands whether it could be written or not.
    """
    try:
        held = host_locks.acquire(host, REFUSALS_LOCK, wait_s=1.0)
        if held is None:
            return False
        with held:
            now = host.clock.now()
            noted = held.noted()
            key = f"{uid}:{code}"
            last, unwritten = _last_refusal(noted.get(key))
            if last is not None and now.since(last) < REFUSALS_EVERY_S:
                noted[key] = [last.wall, last.boot_s, last.boot_id, unwritten + 1]
                held.note(noted)
                return False
            noted.pop(key, None)
            noted[key] = [now.wall, now.boot_s, now.boot_id, 0]
            held.note(dict(list(noted.items())[-64:]))
            append(host, Kind.REFUSED, run, {"uid": uid, "code": code, "reason": reason[:300], "count": unwritten + 1})
    except (HostError, StoreError):
        return False
    return True


def _last_refusal(noted: Json) -> tuple[Moment | None, int]:
    """When this kind of refusal was last recorded, and how many were not since; from the lock file's note."""
    try:
        wall, boot_s, boot_id, unwritten = noted
        return Moment(float(wall), float(boot_s), str(boot_id)), int(unwritten)
    except (TypeError, ValueError):
        return None, 0


# --- questions (pure) ----------------------------------------------------------------------------------------


def attempts(records: Sequence[Record]) -> tuple[Attempt, ...]:
    """Every attempt with its outcome, oldest first, no rehearsal. Signatures from before proven health are cleared."""
    return tuple(each for each in _begun(records) if not each.rehearsal)


def rehearsals(records: Sequence[Record]) -> tuple[Attempt, ...]:
    """Every rehearsal with its outcome, oldest first."""
    return tuple(each for each in _begun(records) if each.rehearsal)


def _begun(records: Sequence[Record]) -> Iterable[Attempt]:
    found: dict[str, Attempt] = {}
    for record in records:
        if record.kind in _BEGINNINGS:
            found[record.run] = Attempt(
                run=record.run,
                runbook=str(record.data.get("runbook", "")),
                subject=str(record.data.get("subject", "")),
                at=record.at,
                risk=Risk(record.data.get("risk", "service")),
                rehearsal=record.kind is Kind.REHEARSAL,
            )
        elif record.kind in _ENDS and record.run in found and found[record.run].outcome is None:
            tried = found[record.run]
            outcome, signature = Outcome(record.data["outcome"]), str(record.data.get("signature", ""))
            found[record.run] = replace(tried, outcome=outcome, ended_at=record.at, signature=signature)
        elif record.kind is Kind.RESET:
            for run, tried in found.items():
                if tried.subject == record.data.get("subject"):
                    found[run] = replace(tried, signature="")
    return found.values()


_BEGINNINGS = (Kind.ATTEMPT, Kind.REHEARSAL)
_ENDS = (Kind.OUTCOME, Kind.REHEARSED)


def open_attempts(records: Sequence[Record], now: Moment) -> tuple[Attempt, ...]:
    """Attempts and rehearsals without an outcome: in flight, or cut off.

    One that waits for a reboot counts after the reboot only.
    """
    parked = {each.run for each in records if each.kind is Kind.PARKED and each.at.boot_id == now.boot_id}
    return tuple(each for each in _begun(records) if each.outcome is None and each.run not in parked)


def parked(records: Sequence[Record], now: Moment) -> tuple[Record, ...]:
    """What waits for a reboot of this boot and has no outcome yet."""
    ended = {each.run for each in records if each.kind is Kind.OUTCOME}
    here = (each for each in records if each.kind is Kind.PARKED and each.at.boot_id == now.boot_id)
    return tuple(each for each in here if each.run not in ended)


def attempt_data(records: Sequence[Record], run: str) -> Mapping[str, Json] | None:
    """What the record of the attempt or rehearsal says, None when this run never started."""
    return next((record.data for record in records if record.kind in _BEGINNINGS and record.run == run), None)


def outcome_of(records: Sequence[Record], run: str) -> Mapping[str, Json] | None:
    """What the run's outcome record says (the first one counts), None when there is none."""
    return next((record.data for record in records if record.kind in _ENDS and record.run == run), None)


def paused(records: Sequence[Record], now: Moment) -> Pause | None:
    """The pause that holds now. One whose wall time lies in the future counts as made now."""
    latest: Pause | None = None
    for record in records:
        if record.kind is Kind.RESUME:
            latest = None
        elif record.kind is Kind.PAUSE:
            left = float(record.data.get("for_s", 0.0)) - now.since(record.at)
            uid, reason = int(record.data.get("uid", 0)), str(record.data.get("reason", ""))
            latest = Pause(now.wall + left, uid, reason) if left > 0 else None
    return latest


def approvals(records: Sequence[Record], now: Moment) -> tuple[Approval, ...]:
    """Approvals that hold now: not expired, not yet used by an attempt."""
    used = {str(record.data.get("approval", "")) for record in records if record.kind is Kind.ATTEMPT}
    return tuple(
        Approval(
            id=record.run,
            incident=str(record.data["incident"]),
            runbook=str(record.data["runbook"]),
            subject=str(record.data["subject"]),
            runbook_hash=str(record.data["runbook_hash"]),
            plan_hash=str(record.data["plan"]),
            until=now.wall + APPROVAL_S - now.since(record.at),
        )
        for record in records
        if record.kind is Kind.APPROVAL and record.run not in used and now.since(record.at) < APPROVAL_S
    )


def refusals(records: Sequence[Record], now: Moment, within_s: float) -> tuple[Record, ...]:
    """Requests that were refused within the last `within_s` seconds, for `doctor` and the page."""
    return tuple(each for each in records if each.kind is Kind.REFUSED and now.since(each.at) < within_s)
