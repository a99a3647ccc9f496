"""May this runbook run on this subject now? One pure function, used as advice by the daemon and as law by the runner.

The reasons are tried in this order, and the first that applies is the answer:

    operators-only      the runbook is for a person alone
    unknown-subject     the subject is not configured, or the runbook has nothing to act on there
    run-in-flight       another run holds the subject or the host
    paused              a person paused all acting; not for what only a person starts
    change-open         a planned change is open; not for what only a person starts, as its own runs
    operator-masked, operator-disabled, operator-stopped    an operator's hand wins
    cannot-tell         nobody can tell whose hand stopped the unit (asked by the daemon only: root knows)
    unit-busy           systemd is already doing something with the unit
    incurable           this failure is known to survive a restart
    same-failure-twice  the last two failed attempts ended in the same failure
    budget              `max_runs` attempts within `within` are spent
    host-once-a-day     a runbook that may take the host down runs once a day
    cooldown            the last attempt is too fresh
    autonomy-observe    the configuration says to look only
    needs-approval      the configuration, or the runbook, says to ask

What a person must decide comes first, what waiting cures next, and permission last, so that approval is only ever
asked for a run that would otherwise start. A runbook that a person's earlier command covers (`consent: standing`)
needs no further permission. A request by root is its own permission; `force` (root only) also skips
everything from `incurable` to `cooldown`, and nothing above that line. What only a person starts has no budget: the
limits keep a machine from repeating itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from agent.model import Autonomy, Consent, Decision, Moment, Outcome, Risk

HOST_WINDOW_S = 86400.0
"""A runbook that may take the host down runs at most once within this time."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How often a runbook may be tried on one subject; all in seconds."""

    cooldown_s: float = 300.0
    max_runs: int = 3
    within_s: float = 21600.0


class Decidable(Protocol):
    """What deciding needs to know of a runbook."""

    @property
    def id(self) -> str:
        """Its id."""

    @property
    def risk(self) -> Risk:
        """The risk of its riskiest action."""

    @property
    def limits(self) -> Limits:
        """How often it may be tried."""

    @property
    def consent(self) -> Consent:
        """What the daemon needs before it may run it."""


class Caller(str, Enum):
    """Who asks: the daemon by itself, or a person with root's rights."""

    DAEMON = "daemon"
    OPERATOR = "operator"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt from the ledger, with its outcome where there is one.

    rehearsal: nothing that serves was touched, so it spends no budget and bears on no decision about a run.
    """

    run: str
    runbook: str
    subject: str
    at: Moment
    risk: Risk = Risk.NONE
    outcome: Outcome | None = None
    ended_at: Moment | None = None
    signature: str = ""
    rehearsal: bool = False

    @property
    def counts(self) -> bool:
        """Whether it spends budget: everything does, except a refusal before anything was touched."""
        return self.outcome is not Outcome.REFUSED


@dataclass(frozen=True, slots=True)
class UnitFacts:
    """What systemd and the journal say of the engine's unit, as far as it forbids acting.

    busy: why systemd must not be disturbed ("a job is queued"), "" when it may.
    unknown: why nobody can tell whose hand stopped it, "" when that is known.
    """

    name: str
    masked: bool = False
    disabled: bool = False
    operator_stopped: bool = False
    unknown: str = ""
    busy: str = ""


@dataclass(frozen=True, slots=True)
class DecisionFacts:
    """Everything that is true now and bears on the decision.

    attempts: every attempt in the ledger, oldest first, of any runbook and subject.
    paused_until: Unix seconds while paused. change: the planned change that is open, in words, "" for none.
    in_flight: the run that holds the subject. approved: a valid approval fits this very plan.
    incurable: the known failure that a restart cannot cure, in words.
    """

    autonomy: Autonomy
    caller: Caller
    known: bool = True
    force: bool = False
    approved: bool = False
    attempts: Sequence[Attempt] = ()
    paused_until: float | None = None
    change: str = ""
    in_flight: str = ""
    unit: UnitFacts | None = None
    incurable: str = ""


def decide(runbook: Decidable, subject: str, facts: DecisionFacts, now: Moment) -> Decision:
    """The answer, with one stable code, a reason in words, and when to ask again where waiting helps."""
    for refusal in _forbidden(runbook, subject, facts, now):
        return refusal
    by_hand = facts.force or runbook.consent is Consent.OPERATOR
    if not (by_hand and facts.caller is Caller.OPERATOR):
        for refusal in _spent(runbook, subject, facts, now):
            return refusal
    for refusal in _not_permitted(runbook, facts):
        return refusal
    return Decision(allow=True, reason="nothing speaks against it", code="allowed")


def _no(code: str, reason: str, not_before: float | None = None, *, needs_approval: bool = False) -> Decision:
    return Decision(False, reason, code, needs_approval, not_before)


def _forbidden(runbook: Decidable, subject: str, facts: DecisionFacts, now: Moment) -> Iterator[Decision]:
    """What nothing overrides."""
    by_hand = runbook.consent is Consent.OPERATOR
    if by_hand and facts.caller is not Caller.OPERATOR:
        yield _no("operators-only", f"{runbook.id} is for a person: only root may ask for it")
    if not facts.known:
        yield _no("unknown-subject", f"{runbook.id} has nothing to act on at {subject}")
    if facts.in_flight:
        yield _no("run-in-flight", f"run {facts.in_flight} is still in flight")
    if facts.paused_until is not None and not by_hand:
        yield _no("paused", "a person paused all acting", max(facts.paused_until, now.wall))
    if facts.change and not by_hand:
        yield _no("change-open", f"a planned change is open: {facts.change}")
    unit = facts.unit
    if unit is None:
        return
    if unit.masked:
        yield _no("operator-masked", f"{unit.name} is masked: an operator does not want it to run")
    if unit.disabled:
        yield _no("operator-disabled", f"{unit.name} is disabled and not running: an operator does not want it to run")
    if unit.operator_stopped:
        yield _no("operator-stopped", f"{unit.name} was stopped by an operator, not by us")
    if unit.unknown and facts.caller is not Caller.OPERATOR:
        yield _no("cannot-tell", f"{unit.name} is not touched: {unit.unknown}")
    if unit.busy:
        yield _no("unit-busy", f"{unit.name}: {unit.busy}; systemd is at work", now.wall + 5.0)


def _spent(runbook: Decidable, subject: str, facts: DecisionFacts, now: Moment) -> Iterator[Decision]:
    """What has been tried enough: only root's `force` goes beyond."""
    limits = runbook.limits
    ours = [each for each in facts.attempts if each.runbook == runbook.id and each.subject == subject and each.counts]
    if facts.incurable:
        yield _no("incurable", f"a restart cannot cure this: {facts.incurable}")
    recent = [each for each in ours if now.since(each.at) < limits.within_s]
    repeated = same_failure(recent)
    if repeated:
        yield _no(
            "same-failure-twice",
            f"the last two attempts ended in the same failure ({repeated})",
            _free_at([each for each in recent if each.outcome is not None], 2, limits.within_s, now),
        )
    if len(recent) >= limits.max_runs:
        yield _no(
            "budget",
            f"{len(recent)} of {limits.max_runs} runs within {limits.within_s:g} s are spent",
            _free_at(recent, limits.max_runs, limits.within_s, now),
        )
    if runbook.risk is Risk.HOST:
        today = [a for a in facts.attempts if a.risk is Risk.HOST and a.counts and now.since(a.at) < HOST_WINDOW_S]
        if today:
            last = today[-1]
            reason = f"{last.runbook} already risked the host within the last day"
            yield _no("host-once-a-day", reason, _free_at(today, 1, HOST_WINDOW_S, now))
    if ours:
        waited = now.since(ours[-1].ended_at or ours[-1].at)
        if waited < limits.cooldown_s:
            reason = f"the last attempt ended less than {limits.cooldown_s:g} s ago"  # the same words at every look
            yield _no("cooldown", reason, now.wall + limits.cooldown_s - waited)


def _not_permitted(runbook: Decidable, facts: DecisionFacts) -> Iterator[Decision]:
    """What the configuration leaves to a person. Root is that person."""
    if facts.caller is Caller.OPERATOR or facts.approved or runbook.consent is Consent.STANDING:
        return
    if runbook.consent is not Consent.APPROVAL and facts.autonomy is Autonomy.ACT:
        return
    if facts.autonomy is Autonomy.OBSERVE:
        yield _no("autonomy-observe", f"autonomy is observe: {runbook.id} would run now")
    why = "autonomy is ask" if runbook.consent is not Consent.APPROVAL else "it is never run by itself"
    yield _no("needs-approval", f"{why}: {runbook.id} needs a person's approval", needs_approval=True)


def same_failure(attempts: Sequence[Attempt]) -> str:
    """The failure in which the last two attempts both ended, "" when they did not.

    A success is proof of health and starts afresh; an attempt without an outcome says nothing.
    """
    ended = [each for each in attempts if each.outcome is not None]
    if len(ended) < 2 or Outcome.SUCCEEDED in (ended[-1].outcome, ended[-2].outcome):
        return ""
    return ended[-1].signature if ended[-1].signature == ended[-2].signature else ""


def _free_at(attempts: Sequence[Attempt], room: int, window_s: float, now: Moment) -> float:
    """Unix seconds at which fewer than `room` of these attempts are left inside the window."""
    ages = sorted(now.since(each.at) for each in attempts)
    return now.wall + window_s - ages[max(room, 1) - 1]
