"""The form of a runbook's YAML: pydantic models, and the spelling of durations."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, create_model, model_validator

from agent.model import Consent
from agent.protocol import NAME

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
RESERVED_INPUTS = frozenset({"incident", "plan"})
"""Argument names that belong to the protocol, so no runbook may use them for an input."""


def parse_duration(text: object) -> float:
    """Seconds from "90s", "5m", "1h30m" or "2d". Raises ValueError for anything else, a bare number included."""
    if isinstance(text, str) and re.fullmatch(r"(\d+(\.\d+)?[smhd])+", text):
        return sum(float(number) * _UNITS[unit] for number, unit in re.findall(r"(\d+(?:\.\d+)?)([smhd])", text))
    raise ValueError('a duration is a number with its unit, such as "90s", "5m", "1h30m" or "2d"')


Duration: TypeAlias = Annotated[float, BeforeValidator(parse_duration)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class LimitsModel(_Part):
    """How often the runbook may be tried on one subject."""

    cooldown: Duration = Field(default=300.0, ge=0)
    max_runs: int = Field(default=3, ge=1, le=100)
    within: Duration = Field(default=21600.0, gt=0)


class StepModel(_Part):
    """One step: an action by name with its parameters."""

    name: str = Field(min_length=1, max_length=100)
    use: str
    parameters: dict[str, Any] = Field(default_factory=dict, alias="with")
    timeout: Annotated[Duration, Field(gt=0)] | None = None
    best_effort: bool = False
    spans_reboot: bool = False
    rehearsed: bool = True


class VerifyModel(_Part):
    """The check that must become OK, how long that may take, and which others must be OK then wherever they apply."""

    check: str
    within: Duration = Field(gt=0)
    also: list[str] = Field(default_factory=list)


class RehearsalModel(_Part):
    """That the runbook can be rehearsed beside what serves, and how often that is done by itself; "0s": never."""

    every: Annotated[Duration, Field(ge=0)] = 7 * 86400.0


class RunNext(_Part):
    """The runbook to try when this one fails; it has its own budget."""

    run: str = Field(pattern=NAME)


class Input(_Part):
    """One typed value that the caller gives. Without a default it is required."""

    type: Literal["string", "integer", "number", "boolean", "duration"]
    explain: str = ""
    default: str | int | float | bool | None = None
    pattern: str | None = None
    choices: list[str] | None = None

    @model_validator(mode="after")
    def _fits_its_type(self) -> Input:
        if (self.pattern is not None or self.choices is not None) and self.type != "string":
            raise ValueError("pattern and choices are for strings")
        if self.pattern is not None:
            try:
                re.compile(self.pattern)
            except re.error as error:
                raise ValueError(f"pattern is not a regular expression: {error}") from error
        if self.default is not None:
            input_model({"default": self.model_copy(update={"default": None})}).model_validate(
                {"default": self.default}
            )
        return self


class RunbookModel(_Part):
    """A whole runbook file."""

    id: str = Field(pattern=NAME)
    title: str = Field(min_length=1, max_length=120)
    explain: str = Field(min_length=1, max_length=4000)
    findings: list[str] = Field(default_factory=list, alias="for")
    engines: list[str] = Field(default_factory=list)
    inputs: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")], Input] = Field(default_factory=dict)
    limits: LimitsModel = LimitsModel()
    consent: Consent = Consent.AUTONOMY
    steps: list[StepModel] = Field(min_length=1, max_length=40)
    verify: VerifyModel | None = None
    rehearsal: RehearsalModel | None = None
    on_failure: Literal["escalate"] | RunNext = "escalate"

    @model_validator(mode="after")
    def _inputs_are_free(self) -> RunbookModel:
        taken = sorted(RESERVED_INPUTS & set(self.inputs))
        if taken:
            raise ValueError(f"inputs: {', '.join(taken)} is reserved")
        return self


_TYPES: dict[str, Any] = {"integer": int, "number": float, "boolean": bool, "duration": Duration, "string": str}


def input_model(inputs: Mapping[str, Input]) -> type[BaseModel]:
    """The pydantic model that validates what a caller gives for these inputs; strict, unknown names refused."""
    fields: dict[str, Any] = {}
    for name, each in inputs.items():
        kind: Any = _TYPES[each.type]
        if each.choices is not None:
            kind = Literal[tuple(each.choices)]
        limits: dict[str, Any] = {"max_length": 1000, "pattern": each.pattern} if kind is str else {}
        default = ... if each.default is None else each.default
        fields[name] = (kind, Field(default=default, validate_default=True, **limits))
    return create_model("Inputs", __config__=ConfigDict(extra="forbid", strict=True), **fields)


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint at the known word that was probably meant, "" when none is close."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
