"""What enters the reconcile loop, messages that say what happened, and what leaves it, effects to be carried out.

Plain values, so that the loop can be tested without a thread, and the daemon carries effects out without judging them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from agent.config import Config
from agent.model import Alert, CheckResult, Decision, Finding, Incident, Moment, Run, Status, Transition
from agent.protocol import Request

SELF_CHECKS = frozenset(
    {"holdfast.store", "holdfast.configuration", "holdfast.pager", "holdfast.runner", "holdfast.rehearsal"}
)
"""Results that the daemon reports of itself; no check observes them."""


# --- what happened --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ResultArrived:
    """A check answered."""

    result: CheckResult


@dataclass(frozen=True, slots=True)
class RunReported:
    """The runner answered: a run ended, was refused, or (run None) was never heard of."""

    id: str
    run: Run | None
    decision: Decision | None = None


@dataclass(frozen=True, slots=True)
class RunGoesOn:
    """A run said how far its step is: in words, since when and how long it still takes, seconds."""

    id: str
    words: str
    elapsed_s: float
    remaining_s: float


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """A person has seen an incident."""

    incident: str
    who: str


@dataclass(frozen=True, slots=True)
class ConfigurationChanged:
    """A new, valid configuration."""

    config: Config


@dataclass(frozen=True, slots=True)
class SelfReported:
    """Something the daemon knows of itself: its store, its configuration, its pager. `check` is in SELF_CHECKS."""

    check: str
    status: Status
    summary: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed."""


Message: TypeAlias = ResultArrived | RunReported | RunGoesOn | Acknowledged | ConfigurationChanged | SelfReported | Tick


# --- what must be done ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CheckNow:
    """Make a check due."""

    check: str
    subject: str


@dataclass(frozen=True, slots=True)
class StartRun:
    """Ask the runner for a run, or for the outcome of one asked for earlier (a repeated id runs nothing twice)."""

    request: Request


Effect: TypeAlias = CheckNow | StartRun


# --- what is asked --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Advice:
    """What could be done about a finding: the runbook (None: a person acts), and whether it may run now.

    left: what a person does when nothing else will. command: what she types, "" when there is nothing to type.
    """

    runbook: str | None
    decision: Decision
    left: str = ""
    command: str = ""


Advise: TypeAlias = Callable[[Finding, Moment], Advice]
Enqueue: TypeAlias = Callable[[Incident, Transition], Sequence[tuple[str, Alert]]]
"""Which alerts a stored transition becomes, and for which receivers."""
