"""What a verb returns: a frozen result that the one renderer prints as text or as the JSON envelope."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import TypeAlias

from agent.errors import ConfigurationError, HoldfastError
from agent.model import Json

SCHEMA = "holdfast/1"
"""The version of the envelope; changed when a reader would have to change."""

Text: TypeAlias = Callable[[int], str]
"""The text of a result at a terminal width, in columns."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that went wrong, as people and programs are told: what, where, and what to do."""

    code: str
    message: str
    hint: str = ""
    where: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """What a verb found or did.

    kind: what `data` is ("status"); stable, named in the reference. data: JSON values, times RFC 3339 in UTC,
    durations `*_s`. text: the same for a person. errors: what was missing although there is a result; `told` when
    the text says it too. raw: what is written in place of the text where it is no text; never to a terminal.
    """

    kind: str
    data: Json
    text: Text
    exit_code: int = 0
    errors: tuple[Problem, ...] = ()
    told: bool = False
    raw: bytes | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """One line while a verb is at work. A transient line is replaced by the next one, on a terminal only.

    plain: what is printed in its place where there is no terminal, "" for nothing.
    """

    text: str
    transient: bool = False
    plain: str = ""


Live: TypeAlias = Generator[Progress, None, Result]
"""A verb that takes its time: it yields progress and returns its result."""


def plain(text: str) -> Text:
    """A text that is the same at every width."""
    return lambda _width: text


def problems(error: HoldfastError) -> tuple[Problem, ...]:
    """An error as problems; a configuration error is one problem for every mistake."""
    if isinstance(error, ConfigurationError) and error.mistakes:
        return tuple(
            Problem(
                error.code,
                mistake.wrong + (f" (allowed: {mistake.allowed})" if mistake.allowed else ""),
                error.hint,
                f"{mistake.file}: {mistake.path}" if mistake.path else mistake.file,
            )
            for mistake in error.mistakes
        )
    return (Problem(error.code, error.message, error.hint, error.where),)


def envelope(kind: str, data: Json, errors: tuple[Problem, ...], *, host: str, at: float) -> Json:
    """The JSON document every verb answers with under --json. `at` is Unix seconds."""
    return {
        "schema": SCHEMA,
        "kind": kind,
        "host": host,
        "at": rfc3339(at),
        "data": data,
        "errors": [asdict(problem) for problem in errors],
    }


def rfc3339(at: float | None) -> str | None:
    """Unix seconds as RFC 3339 in UTC with milliseconds; None stays None."""
    if at is None:
        return None
    return datetime.fromtimestamp(at, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
