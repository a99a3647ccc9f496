"""The nouns of Holdfast: frozen values that every part shares.

This module imports nothing of ours. Times are `Moment` or Unix seconds (UTC); durations are seconds and
carry the suffix `_s`; sizes are bytes. "Engine" always means an inference engine.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, TypeAlias

Json: TypeAlias = Any
"""A value that `json.dumps` takes: None, bool, int, float, str, list or dict of these."""


class _Word(str, Enum):
    """An enumeration whose members print and serialise as their plain word (StrEnum is Python 3.11)."""

    def __str__(self) -> str:
        return str(self.value)


class Status(_Word):
    """How one thing is. Cannot tell is UNKNOWN, and UNKNOWN is never read as OK."""

    OK = "OK"
    WARNING = "WARNING"
    CRITICAL = "CRITICAL"
    UNKNOWN = "UNKNOWN"

    @property
    def exit_code(self) -> int:
        """The Nagios plug-in exit code: 0, 1, 2 or 3."""
        return {"OK": 0, "WARNING": 1, "CRITICAL": 2, "UNKNOWN": 3}[self.value]


_BADNESS = {Status.OK: 0, Status.UNKNOWN: 1, Status.WARNING: 2, Status.CRITICAL: 3}


def worst(statuses: Iterable[Status]) -> Status:
    """The most urgent of several statuses: CRITICAL, WARNING, UNKNOWN, OK; OK when there are none."""
    return max(statuses, key=_BADNESS.__getitem__, default=Status.OK)


class Verdict(_Word):
    """The state of one inference engine, decided only in `agent.verdict`."""

    READY = "READY"
    LOADING = "LOADING"
    BUSY = "BUSY"
    SLEEPING = "SLEEPING"
    DEGRADED = "DEGRADED"
    WEDGED = "WEDGED"
    DEAD = "DEAD"
    STOPPED = "STOPPED"
    UNKNOWN = "UNKNOWN"

    @property
    def status(self) -> Status:
        """The status this verdict stands for. STOPPED is OK: an operator's hand is not a fault."""
        if self in (Verdict.WEDGED, Verdict.DEAD):
            return Status.CRITICAL
        if self is Verdict.DEGRADED:
            return Status.WARNING
        return Status.UNKNOWN if self is Verdict.UNKNOWN else Status.OK


@dataclass(frozen=True, slots=True)
class Moment:
    """One instant, as three clocks saw it: UTC wall time, time since boot (suspend included), and which boot."""

    wall: float
    boot_s: float
    boot_id: str

    def since(self, earlier: Moment) -> float:
        """Seconds from `earlier` to this moment, never negative.

        Within one boot the boot clock answers, so that a step of the wall clock cannot stretch or shrink a
        duration; across boots only the wall clock can.
        """
        if self.boot_id == earlier.boot_id:
            return max(0.0, self.boot_s - earlier.boot_s)
        return max(0.0, self.wall - earlier.wall)


@dataclass(frozen=True, slots=True)
class Observation:
    """One thing that was read, without judgement. `value` is JSON; `unit` is "s", "bytes", "" and so on."""

    name: str
    value: Json
    unit: str = ""
    labels: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Observed:
    """Everything one check read at one moment; with the engine's verdict where the subject is an engine."""

    at: Moment
    observations: tuple[Observation, ...]
    verdict: Verdict | None = None
    reason: str = ""

    def value(self, name: str, default: Json = None) -> Json:
        """The value of the first observation called `name`, or `default`."""
        for observation in self.observations:
            if observation.name == name:
                return observation.value
        return default


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a check makes of its observations: a status and one line for a person."""

    status: Status
    summary: str


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One check's answer about one subject. `at` is Unix seconds, `duration_s` the time observing took."""

    check: str
    subject: str
    status: Status
    summary: str
    evidence: tuple[Observation, ...]
    at: Moment
    duration_s: float
    verdict: Verdict | None = None

    def value(self, name: str, default: Json = None) -> Json:
        """The value of the first piece of evidence called `name`, or `default`."""
        return Observed(self.at, self.evidence).value(name, default)


@dataclass(frozen=True, slots=True)
class Results(Mapping[tuple[str, str], CheckResult]):
    """The latest result of every check and subject, keyed by (check, subject). What is missing is UNKNOWN."""

    by_key: Mapping[tuple[str, str], CheckResult] = field(default_factory=dict)

    def __getitem__(self, key: tuple[str, str]) -> CheckResult:
        return self.by_key[key]

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self.by_key)

    def __len__(self) -> int:
        return len(self.by_key)

    def of(self, check: str) -> Iterator[CheckResult]:
        """Every subject's latest result of one check."""
        return (result for (name, _), result in self.by_key.items() if name == check)

    def one(self, check: str, subject: str) -> CheckResult | None:
        """The latest result of one check about one subject, or None when it never ran."""
        return self.by_key.get((check, subject))


class EngineState(_Word):
    """What an engine says of itself, before anyone judges it."""

    READY = "ready"
    LOADING = "loading"
    SLEEPING = "sleeping"
    REFUSED = "refused"
    """Nothing listens: the connection was refused."""
    SILENT = "silent"
    """It accepts connections or drops them, but no complete answer came within the deadline."""
    FAILING = "failing"
    """It answers, and the answer says that it cannot serve."""
    UNREADABLE = "unreadable"
    """It could not be asked, or its answer not be read: a certificate, a name server or our own limits may be why."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One passive look at an engine: nothing here costs its users a token.

    progress: counters that move while the engine works, None when they could not be read. Compare for
        equality only.
    pending: requests in work or waiting; None when unknown.
    free_slots: requests it could start at once; None when unknown.
    unanswered: probes that got no answer in time ("/slots").
    """

    state: EngineState
    detail: str = ""
    progress: tuple[tuple[str, float], ...] | None = None
    pending: int | None = None
    free_slots: int | None = None
    models: tuple[str, ...] = ()
    version: str = ""
    unanswered: tuple[str, ...] = ()

    @property
    def answered(self) -> bool:
        """Whether the engine gave any complete answer."""
        return self.state not in (EngineState.REFUSED, EngineState.SILENT, EngineState.UNREADABLE)

    def generated_until(self, later: Sample) -> bool:
        """Whether a counter of generated tokens (their names end in "generated") moved from this look to a later one.

        A counter may also have gone down: that is another request, and what it shows was generated since.
        """
        was = dict(self.progress or ())
        return any(
            name.endswith("generated") and value >= 1 and name in was and value != was[name]
            for name, value in later.progress or ()
        )


@dataclass(frozen=True, slots=True)
class Canary:
    """The outcome of asking an engine for one token. `tokens` >= 1 is the only proof."""

    tokens: int
    duration_s: float
    detail: str = ""
    refused: str = ""
    """Why no canary was sent or counted (no free slot, asleep): says nothing about health."""


class Urgency(_Word):
    """How loudly something is told."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"


@dataclass(frozen=True, slots=True)
class Finding:
    """A named cause ("cause" when speaking to people), recomputed from the latest results every time.

    results: keys (check, subject) of the results this finding rests on.
    explains: keys of results that this finding accounts for; another finding whose every result is explained
        is folded into this one.
    signature: identifies *this* failure, to notice that the same one came back; "" when there is none.
    incurable: a restart cannot cure it, so none is tried.
    quiet: told at low urgency and never acted upon.
    over: an event that is already over when it is found (a crash that systemd repaired).
    never_planned: no planned change leads through it, so it stays loud while one is open, whatever its rule says.
    """

    id: str
    subject: str
    status: Status
    summary: str
    evidence: tuple[Observation, ...] = ()
    results: tuple[tuple[str, str], ...] = ()
    explains: tuple[tuple[str, str], ...] = ()
    since: float | None = None
    signature: str = ""
    incurable: bool = False
    quiet: bool = False
    over: bool = False
    never_planned: bool = False
    folded: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[str, str]:
        """What makes two findings the same: id and subject."""
        return (self.id, self.subject)


class Phase(_Word):
    """Where an incident stands."""

    PENDING = "pending"
    OPEN = "open"
    ACTING = "acting"
    VERIFYING = "verifying"
    ESCALATED = "escalated"
    RESOLVED = "resolved"


@dataclass(frozen=True, slots=True)
class Incident:
    """One cause on one subject, from the first suspicion to the proof that it is over.

    urgency: how loudly it is told now. ceiling: how loudly when nothing can be, or was, done about it.
    tried: what was done, in order. left: what remains to be done. command: what a person types next.
    not_before: Unix seconds before which no run is asked for, because the runner said so.
    """

    id: str
    key: str
    finding: str
    subject: str
    phase: Phase
    urgency: Urgency
    summary: str
    evidence: str
    since: float
    opened_at: Moment | None
    changed_at: Moment
    ceiling: Urgency = Urgency.CRITICAL
    seen: int = 1
    last_seen_at: Moment | None = None
    gone_since: Moment | None = None
    not_before: float | None = None
    signature: str = ""
    acknowledged_by: str = ""
    paused: bool = False
    folded: tuple[str, ...] = ()
    tried: tuple[str, ...] = ()
    left: str = ""
    command: str = ""
    runs: tuple[str, ...] = ()
    decision: str = ""

    def changed(self, **changes: Any) -> Incident:
        """This incident with some fields replaced."""
        return replace(self, **changes)


@dataclass(frozen=True, slots=True)
class Transition:
    """One stored step in an incident's life: the only thing that is ever told."""

    id: str
    incident: str
    at: float
    kind: str
    """opened, updated, raised, acting, progress, verified, escalated, needs-approval, acknowledged, resolved, over"""
    text: str


class Risk(_Word):
    """What an action may cost when it goes wrong; a runbook is as risky as its riskiest action."""

    NONE = "none"
    SERVICE = "service"
    """Requests in flight may be lost."""
    HOST = "host"
    """The whole host may go down."""


class Consent(_Word):
    """What a runbook needs before the daemon may run it. A person with root's rights is her own consent."""

    AUTONOMY = "autonomy"
    """As the configuration's autonomy says."""
    STANDING = "standing"
    """A person's earlier command covers it in every mode; the action refuses where there was no such command."""
    APPROVAL = "approval"
    """A person approves each plan, in every mode."""
    OPERATOR = "operator"
    """Only a person starts it; the daemon never may."""


class Autonomy(_Word):
    """What Holdfast may do by itself: say what it would do, ask, or act."""

    OBSERVE = "observe"
    ASK = "ask"
    ACT = "act"


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer to "may this runbook run on this subject now?". `not_before` is Unix seconds."""

    allow: bool
    reason: str
    code: str = ""
    needs_approval: bool = False
    not_before: float | None = None


class Outcome(_Word):
    """How a run ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    REFUSED = "refused"
    UNDONE = "undone"
    STOPPED = "stopped"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True)
class StepResult:
    """How one step of a run ended. `output` is redacted and bounded."""

    name: str
    use: str
    ok: bool
    summary: str
    duration_s: float
    output: str = ""


@dataclass(frozen=True, slots=True)
class Run:
    """One execution of one runbook. `outcome` is None while it runs."""

    id: str
    runbook: str
    subject: str
    because: str
    started_at: float
    ended_at: float | None
    outcome: Outcome | None
    summary: str = ""
    signature: str = ""
    steps: tuple[StepResult, ...] = ()


@dataclass(frozen=True, slots=True)
class Alert:
    """What a receiver is asked to deliver. All texts are already redacted and fit a phone.

    action: trigger, acknowledge, resolve, or event (an `info` event that opens nothing).
    key: the dedup key; the same for a trigger and its resolve.
    """

    id: str
    key: str
    action: str
    urgency: Urgency
    title: str
    body: str
    source: str
    subject: str
    finding: str
    at: float
    since: float
    details: tuple[tuple[str, str], ...] = ()


class DeliveryState(_Word):
    """What became of one attempt to deliver."""

    SENT = "sent"
    RETRY = "retry"
    PERMANENT = "permanent"


@dataclass(frozen=True, slots=True)
class Delivery:
    """A receiver's answer to one attempt. `after_s` is the wait that the receiver asked for, if it did.

    uncertain: the receiver may have taken it although it did not say so (no answer came in time), so the same
        alert must be repeated and nothing may be told in its place.
    """

    state: DeliveryState
    reason: str = ""
    after_s: float | None = None
    uncertain: bool = False

    @classmethod
    def sent(cls, reason: str = "") -> Delivery:
        """The receiver took it."""
        return cls(DeliveryState.SENT, reason)

    @classmethod
    def retry(cls, reason: str, after_s: float | None = None, *, uncertain: bool = False) -> Delivery:
        """Try again later."""
        return cls(DeliveryState.RETRY, reason, after_s, uncertain)

    @classmethod
    def permanent(cls, reason: str) -> Delivery:
        """It will never be taken in this form: do not try again."""
        return cls(DeliveryState.PERMANENT, reason)
