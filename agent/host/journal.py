"""What the journal says of a unit: known failure lines, and who stopped it.

A log line may hold a prompt, so nothing of a line is kept but what a signature's pattern matched.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from agent.errors import CommandFailed, InternalError
from agent.host import Host

STARTED = "39f53479d3a045ac8e11786248231fbf"
"""MESSAGE_ID of "Started …" (sd-messages.h, SD_MESSAGE_UNIT_STARTED)."""
STOPPED = "9d1aaa27d60140bd96365438aad20286"
"""MESSAGE_ID of "Stopped …" (sd-messages.h, SD_MESSAGE_UNIT_STOPPED). Its JOB_TYPE is `stop` or `restart`; a unit that
ends by itself has no such entry. Tried on systemd 252 and 257."""
STOPPING = "de5b426a63be47a7b6ac3eaac82e2f6f"
"""MESSAGE_ID of "Stopping …" (sd-messages.h, SD_MESSAGE_UNIT_STOPPING). Its JOB_TYPE is `stop` for a restart too."""
TEXT_LIMIT = 200
_OUTPUT_LIMIT = 16 << 20
_DATA = Path(__file__).resolve().parents[1] / "data"


@dataclass(frozen=True, slots=True)
class Signature:
    """One known log line: which failure it means, and whether a restart can cure it.

    pattern: a regular expression with at most one group; only what it matches is ever kept, so it must not be able
        to match a prompt. cause: kebab-case name of the failure. source: where the line is known from.
    cure: "rebuild" where only another build helps (or another driver), "" else.
    """

    cause: str
    pattern: str
    curable: bool
    meaning: str
    source: str
    cure: str = ""


@dataclass(frozen=True, slots=True)
class LogMatch:
    """A known line was logged, last at `at` (Unix seconds). `text` is only what the pattern matched.

    cure: as the signature says.
    """

    cause: str
    text: str
    at: float
    curable: bool
    meaning: str
    cure: str = ""


@dataclass(frozen=True, slots=True)
class StopRecord:
    """systemd ended a unit because somebody asked for it, at `at` (Unix seconds)."""

    at: float
    job_type: str
    job_result: str
    invocation_id: str


def matches(
    host: Host,
    unit: str,
    signatures: Sequence[Signature],
    *,
    invocation_id: str | None,
    since_wall: float | None,
    limit: int = 2000,
    timeout_s: float = 10.0,
) -> list[LogMatch]:
    """The known lines among the last `limit` lines that the unit's own processes wrote, oldest first.

    Each cause and text appears once, with its latest time. invocation_id: only that start of the unit. since_wall:
    Unix seconds. Raises CommandFailed, with code journal-denied when we may not read the journal, journal-absent when
    there is none.
    """
    words = [f"--lines={limit}", *([f"--since=@{since_wall:.6f}"] if since_wall is not None else [])]
    # The trusted fields, not --unit: that would bring what others say about the unit.
    words += [f"_SYSTEMD_UNIT={unit}", *([f"_SYSTEMD_INVOCATION_ID={invocation_id}"] if invocation_id else [])]
    compiled = [(re.compile(signature.pattern), signature) for signature in signatures]
    found: dict[tuple[str, str], LogMatch] = {}
    for entry in _entries(host, words, "MESSAGE", timeout_s):
        message = _message(entry.get("MESSAGE"))
        for pattern, signature in compiled:
            hit = pattern.search(message)
            if hit:
                text = hit[0].strip()[:TEXT_LIMIT]
                found.pop((signature.cause, text), None)
                found[signature.cause, text] = LogMatch(
                    signature.cause, text, _at(entry), signature.curable, signature.meaning, signature.cure
                )
                break
    return list(found.values())


def stopped_by_job(host: Host, unit: str, invocation_id: str | None, *, timeout_s: float = 10.0) -> StopRecord | None:
    """The stop job that ended the unit; None when its end was its own doing, or part of a restart.

    invocation_id: the start of the unit in question, and better given: systemd forgets it (as all else) of a unit that
    is neither enabled nor failed as soon as it stops. Without one, its last start in this boot is meant.
    A stop that came by way of another unit or a shutdown counts; so does one that Holdfast asked for: the runner knows
    which those are. `systemctl stop` of a unit that is already down leaves no trace. Raises CommandFailed as `matches`.
    """
    words = ["--lines=1", "_PID=1", f"UNIT={unit}", f"MESSAGE_ID={STOPPED}"]
    if invocation_id:
        words += [f"INVOCATION_ID={invocation_id}", "JOB_TYPE=stop"]
    else:  # matches of one field are alternatives: whichever came last
        words += [f"MESSAGE_ID={STARTED}", f"_BOOT_ID={host.clock.now().boot_id.replace('-', '')}"]
    for entry in _entries(host, words, "MESSAGE_ID,JOB_TYPE,JOB_RESULT,INVOCATION_ID", timeout_s):
        if entry.get("MESSAGE_ID") == STOPPED and entry.get("JOB_TYPE") == "stop":
            return StopRecord(
                at=_at(entry),
                job_type=str(entry.get("JOB_TYPE", "")),
                job_result=str(entry.get("JOB_RESULT", "")),
                invocation_id=str(entry.get("INVOCATION_ID", "")),
            )
    return None


def unit_of(host: Host, pid: int, until_wall: float, *, timeout_s: float = 5.0) -> str:
    """The unit of the process that had this pid then (Unix seconds), if it ever logged anything in this boot; else "".

    Raises CommandFailed as `matches`.
    """
    boot = host.clock.now().boot_id.replace("-", "")
    words = ["--lines=1", f"--until=@{until_wall + 1.0:.0f}", f"_PID={pid}", f"_BOOT_ID={boot}"]
    found = list(_entries(host, words, "_SYSTEMD_UNIT", timeout_s))
    return str(found[-1].get("_SYSTEMD_UNIT", "")) if found else ""


@cache
def load_signatures(kind_file: str) -> tuple[Signature, ...]:
    """The signatures in agent/data/NAME.yaml (`signatures:`, a list of mappings with Signature's fields).

    Raises InternalError when the shipped file is wrong.
    """
    import yaml  # noqa: PLC0415 - only where logs are read

    name = kind_file.removesuffix(".yaml")
    try:
        document = yaml.safe_load((_DATA / f"{name}.yaml").read_text(encoding="utf-8"))
        signatures = tuple(Signature(**entry) for entry in document["signatures"])
        for signature in signatures:
            if re.compile(signature.pattern).groups > 1:
                raise InternalError(f"agent/data/{name}.yaml: {signature.cause}: a pattern has at most one group")
    except (OSError, yaml.YAMLError, KeyError, TypeError, re.error) as error:
        raise InternalError(f"agent/data/{name}.yaml: {error}") from error
    return signatures


def _entries(host: Host, words: Sequence[str], fields: str, timeout_s: float) -> Iterator[Mapping[str, Any]]:
    """What journalctl finds, oldest first."""
    argv = ["journalctl", "--no-pager", "--output=json", f"--output-fields={fields}", *words]
    answer = host.run(argv, timeout_s=timeout_s, limit=_OUTPUT_LIMIT)
    if "not seeing messages from other users" in answer.stderr or "insufficient permissions" in answer.stderr:
        raise CommandFailed("this user may not read the journal (group systemd-journal)", code="journal-denied")
    if "No journal files were" in answer.stderr:  # with status 0: journald is off or keeps nothing
        raise CommandFailed("there is no journal: journald is off, or keeps nothing", code="journal-absent")
    if answer.rc != 0 and answer.stderr.strip():
        raise CommandFailed(
            f"journalctl ended with status {answer.rc}: {answer.stderr.strip()[:200]}", code="journal-unknown"
        )
    for line in answer.stdout.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:  # "-- No entries --", or the line that the output limit cut
            continue
        if isinstance(entry, dict) and str(entry.get("__REALTIME_TIMESTAMP", "")).isdecimal():
            yield entry


def _message(value: object) -> str:
    """A message as text. journalctl prints one that is not plain text as a list of bytes, a long one as null."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(byte, int) and 0 <= byte < 256 for byte in value):
        return bytes(value).decode("utf-8", "replace")
    return ""


def _at(entry: Mapping[str, Any]) -> float:
    return int(entry["__REALTIME_TIMESTAMP"]) / 1e6
