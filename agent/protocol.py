"""What is said on our sockets: one JSON object per line, version 1, validated by pydantic on arrival.

A request asks the runner for one thing; the answer is a stream of events, a tail of the run's transcript.
A repeated id is answered with its old outcome.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agent.errors import UsageError
from agent.model import Json

VERSION = 1
MAX_REQUEST_BYTES = 64 << 10
"""A request or an inspector's `before` above this size is refused unread."""
SAID_LIMIT = 300
"""Characters of what is said about a request that is not valid."""

ULID = r"^[0-7][0-9A-HJKMNP-TV-Z]{25}$"
NAME = r"^[a-z0-9][a-z0-9-]{0,62}$"
SUBJECT = r"^(host|engine:[a-z0-9][a-z0-9-]{0,62}|gpu:[A-Za-z0-9-]{1,64})$"

Verb = Literal["run", "rehearse", "plan", "follow", "approve", "pause", "resume", "stop", "recover"]


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Request(_Message):
    """One thing asked of the runner.

    run, rehearse, plan: `runbook` on `subject` with the runbook's own inputs as `args`. follow: tail run `id`.
    approve: the run that `args.plan` (a plan's hash) describes, for incident `args.incident`. pause:
    `args.for_s`. stop: run `id`. recover: finish or undo what was cut off.
    """

    v: Literal[1] = 1
    do: Verb
    id: str = Field(pattern=ULID)
    runbook: str | None = Field(default=None, pattern=NAME)
    subject: str | None = Field(default=None, pattern=SUBJECT)
    args: dict[str, Any] = Field(default_factory=dict, max_length=16)
    because: str = Field(default="", max_length=500)
    force: bool = False


class Inspect(_Message):
    """One observation asked of the root inspector. `before` is what the check observed last time."""

    v: Literal[1] = 1
    check: str = Field(pattern=r"^[a-z0-9]+(\.[a-z0-9_]+)+$", max_length=64)
    subject: str = Field(pattern=SUBJECT)
    before: dict[str, Any] | None = None


class Hand(_Message):
    """An open descriptor asked of the root inspector: the kernel's log, to read."""

    v: Literal[1] = 1
    hand: Literal["kernel-log"]


class Control(_Message):
    """One thing asked of the daemon on its control socket."""

    v: Literal[1] = 1
    do: Literal["acknowledge", "check-now", "pager-test", "drill"]
    id: str = Field(pattern=ULID)
    args: dict[str, Any] = Field(default_factory=dict, max_length=16)


EventName = Literal[
    "accepted",
    "refused",
    "planned",
    "step_started",
    "progress",
    "step_ended",
    "verifying",
    "verified",
    "undone",
    "paused",
    "resumed",
    "approved",
    "parked",
    "ended",
]


class Event(_Message):
    """One line of a transcript. `at` is Unix seconds; `data` depends on the event and holds no prompt.

    refused: code, reason, not_before, needs_approval. step_started, step_ended: step (index), name, use, and
    ok, summary, duration_s, output at the end. progress: step, text, percent (0 to 100), elapsed_s of the step,
    remaining_s; None where that is not known. parked: summary, boot_id; the run goes on after the next boot.
    ended: outcome, summary, signature.
    """

    v: Literal[1] = 1
    id: str = Field(pattern=ULID)
    seq: int = Field(ge=0)
    at: float
    event: EventName
    data: dict[str, Any] = Field(default_factory=dict)


def parse(kind: type[_Message], line: bytes | str) -> Any:
    """A message from one line. Raises UsageError that says what is wrong with it, all at once."""
    if len(line) > MAX_REQUEST_BYTES:
        raise UsageError(f"the request is larger than {MAX_REQUEST_BYTES} bytes", code="request-too-large")
    try:
        return kind.model_validate_json(line)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'request'}: {e['msg']}" for e in error.errors())
        # Bounded: the names of unknown keys are the peer's words, and what is refused goes on record.
        raise UsageError(f"not a valid request: {wrong}"[:SAID_LIMIT], code="request-invalid") from error


def line(message: _Message) -> bytes:
    """The message as one line."""
    return message.model_dump_json().encode() + b"\n"


def as_json(message: _Message) -> Json:
    """The message as plain JSON values."""
    return message.model_dump(mode="json")
