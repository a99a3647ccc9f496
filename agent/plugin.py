"""The contracts of the plug-ins, and their discovery: one file, one typed value, no wiring.

Every plug-in file ends with one value: CHECK, RULE, ENGINE, ACTION or RECEIVER. Its file is its id with
everything but letters and digits as `_`. `discover` reads a folder; nothing is registered by hand.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator

from agent.errors import InternalError
from agent.host import Host
from agent.model import (
    Alert,
    Canary,
    Delivery,
    Finding,
    Json,
    Judgement,
    Moment,
    Observation,
    Observed,
    Results,
    Risk,
    Sample,
    Status,
)


class Parameters(BaseModel):
    """The base of every plug-in's own settings: unknown keys are mistakes, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class NoParameters(Parameters):
    """A plug-in that has nothing to set."""


# --- engines -------------------------------------------------------------------------------------------------


class EngineSettings(Parameters):
    """What every `[[engine]]` table may say; a kind adds its own keys."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    """The engine's name in commands and pages."""
    kind: str
    """The kind of engine: one file in agent/engines/."""
    url: str
    """Where it listens: scheme, host, port, without a path."""
    unit: str | None = Field(default=None, pattern=r"^[A-Za-z0-9:_.\\@-]+\.service$")
    """The systemd unit it lives in; without one it is watched and never restarted."""
    gpu: bool | None = None
    """Whether it needs the GPU. Unset: yes when this host has any trace of an NVIDIA driver."""
    api_key_file: str | None = None
    """A file that holds the API key, readable by group holdfast."""
    load_timeout_s: float = Field(default=600.0, gt=0)
    """How long a start may take before loading counts as a fault, seconds."""
    stop_grace_s: float = Field(default=3.0, ge=0, le=600)
    """How long a stop may take before SIGKILL, seconds. A wedged server never stops by itself."""
    idle_canary_s: float | None = Field(default=None, gt=0)
    """Ask for one token this often, where a slot is free, seconds. Unset: only to prove a repair."""

    @field_validator("url")
    @classmethod
    def _plain_url(cls, value: str) -> str:
        if not re.fullmatch(r"https?://(\[[0-9a-fA-F:]+\]|[A-Za-z0-9.-]+)(:\d{1,5})?/?", value):
            raise ValueError("must be http://HOST:PORT or https://HOST:PORT, without a path")
        return value.rstrip("/")


@dataclass(frozen=True, kw_only=True)
class Engine:
    """One kind of inference engine.

    fingerprint: whether the server at this base URL is of this kind; returns settings for `init`, or None.
    sample: one passive look. It never loads, wakes or pins a model and never raises for what the engine does.
    canary: asks for one token, disturbing nobody; `Canary.refused` when it must not be sent.
    inference_threads: which threads of the main process do the inference: "main" (TID = PID) or "all".
    signatures: file of log signatures in `agent/data/`, "" when there is none.
    """

    kind: str
    settings: type[EngineSettings]
    fingerprint: Callable[[Host, str], Mapping[str, Json] | None]
    sample: Callable[[Host, Any], Sample]
    canary: Callable[[Host, Any, float], Canary]
    signatures: str = ""
    inference_threads: Literal["main", "all"] = "main"
    default_port: int = 0

    @property
    def id(self) -> str:
        """The kind."""
        return self.kind


# --- checks --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Target:
    """What a check is run against: the host, or one engine with its settings.

    every_s: the cadence the check runs at here, so that it can notice that its own tick was late.
    engines: for an action on the host, the target of every configured engine.
    """

    subject: str
    params: Any
    every_s: float
    engine: Engine | None = None
    settings: Any = None
    engines: tuple[Target, ...] = ()

    @property
    def unit(self) -> str | None:
        """The engine's systemd unit, None for the host or a remote engine."""
        return self.settings.unit if self.settings is not None else None


Scope: TypeAlias = Literal["host", "engine"]


def everywhere(target: Target) -> bool:  # noqa: ARG001 - what `Check.applies` is given
    """Applies to every target of its scope."""
    return True


@dataclass(frozen=True, kw_only=True)
class Check:
    """One check: `observe` alone reads the machine, `judge` is pure.

    scope: "host" runs once, "engine" once for every configured engine.
    every_s: cadence in seconds; 0 means only when asked for.
    own_every_s: the engine's setting that says how often it runs there (seconds, None: as `every_s` says).
    on_suspicion_s: a shorter cadence while the last result was not OK, 0 for none.
    due_when_changed: files and folders whose change makes it due within seconds; what changed is not judged by that.
    unsettled: the name of an observation that is true while what the check reads is being changed by somebody, so that
        it is looked at again soon; "" for none.
    applies: False makes the check appear nowhere for this target.
    needs_before: judged by comparing two observations, so without a `before` the frame observes twice,
        `apart_s` seconds apart.
    as_root: `observe` runs in the root inspector.
    gives_verdict: False for a check of an engine that only gathers evidence: nothing it reads says how the engine is.
    """

    id: str
    scope: Scope
    every_s: float
    timeout_s: float
    observe: Callable[[Host, Target, Observed | None], Iterable[Observation]]
    judge: Callable[[Observed, Observed | None, Any], Judgement]
    params: type[Parameters] = NoParameters
    applies: Callable[[Target], bool] = everywhere
    own_every_s: str = ""
    on_suspicion_s: float = 0.0
    due_when_changed: tuple[str, ...] = ()
    unsettled: str = ""
    needs_before: bool = False
    apart_s: float = 5.0
    as_root: bool = False
    gives_verdict: bool = True


# --- rules ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Confirm:
    """How much evidence turns a suspicion into an open incident.

    samples: how many diagnoses must agree, `apart_s` seconds apart at least; `for_s`: how long it must last;
    `clear_s`: how long it must be gone before it is resolved.
    """

    samples: int = 1
    apart_s: float = 0.0
    for_s: float = 0.0
    clear_s: float = 0.0


EVENT = Confirm()
"""An event is believed at once."""
STILLNESS = Confirm(samples=2, apart_s=5.0)
"""Stillness needs two samples at least five seconds apart."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One cause: a pure function from the latest results to findings with this rule's id.

    reads: checks it rests on. explainers: checks made due and awaited before its finding opens.
    manual: no runbook; a person acts. expected_in_change: part of what a planned change goes through, so while one is
        open it is told quietly and nothing is done about it; any other cause stays as loud as ever.
    """

    id: str
    reads: tuple[str, ...]
    confirm: Confirm
    diagnose: Callable[[Results, Moment], Iterable[Finding]]
    explainers: tuple[str, ...] = ()
    manual: bool = False
    expected_in_change: bool = False
    title: str = ""


def as_judged(identifier: str, check: str) -> Callable[[Results, Moment], Iterable[Finding]]:
    """The `diagnose` of a cause that says just what one check says: a finding wherever it is WARNING or CRITICAL."""

    def diagnose(results: Results, now: Moment) -> Iterable[Finding]:  # noqa: ARG001 - the contract
        for result in results.of(check):
            if result.status in (Status.WARNING, Status.CRITICAL):
                yield Finding(
                    id=identifier,
                    subject=result.subject,
                    status=result.status,
                    summary=result.summary,
                    results=((result.check, result.subject),),
                )

    return diagnose


# --- actions -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Command:
    """Run a program. `accept` are the exit statuses that count as success; `keep` whether its output is kept.

    words: what it does, told while a person waits for it; "" where that takes no time. interruptible: may be ended in
    its middle when the run is asked to stop, because undo clears away whatever it leaves; any other is left to end.
    """

    argv: tuple[str, ...]
    timeout_s: float
    user: str | None = None
    cwd: str | None = None
    accept: tuple[int, ...] = (0,)
    keep: bool = False
    words: str = ""
    interruptible: bool = False


@dataclass(frozen=True, slots=True)
class WriteFile:
    """Replace a file atomically. What only the steps before it decide is a function, called when its turn comes."""

    path: str
    content: str | Callable[[Host], str]
    mode: int = 0o644


@dataclass(frozen=True, slots=True)
class RemoveFile:
    """Remove a file; nothing happens when it is not there."""

    path: str


@dataclass(frozen=True, slots=True)
class Condition:
    """Something that can be waited for: `test` reads the host, `words` say it, `by_hand` is how a person looks."""

    words: str
    test: Callable[[Host], bool]
    by_hand: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a long step is. percent: 0 to 100; remaining_s: seconds; None where that is not known."""

    words: str
    percent: float | None = None
    remaining_s: float | None = None


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait until a condition holds. On timeout run `on_timeout`; None means that the step fails, with `why`.

    code: what the failure is called in the run's signature ("gpu-hung"), "" when the engine's log says it better.
    progress: how far it is, asked every few seconds of a long wait; None where nobody can tell.
    """

    until: Condition
    timeout_s: float
    on_timeout: PlanStep | None = None
    why: str = ""
    code: str = ""
    progress: Callable[[Host], Progress | None] | None = None


@dataclass(frozen=True, slots=True)
class Read:
    """Read the machine and keep the (redacted, JSON) answer in the transcript; never changes anything.

    sums_up: the answer is a line for people, and what the whole step says at its end.
    """

    words: str
    read: Callable[[Host], Json]
    by_hand: tuple[str, ...] = ()
    sums_up: bool = False


@dataclass(frozen=True, slots=True)
class Noop:
    """Nothing to do, for this reason. `untouched`, in an undo: the step was cut off before it had changed anything."""

    reason: str
    untouched: bool = False


@dataclass(frozen=True, slots=True)
class Refuse:
    """This must not be done now. `incurable`: waiting will not help."""

    reason: str
    code: str = "refused"
    not_before_s: float | None = None


@dataclass(frozen=True, slots=True)
class AwaitReboot:
    """Only a reboot can finish this, and a person makes it: the run lets go and is proven after the next boot.

    test: whether it is needed, asked when its turn comes. reason: why.
    """

    reason: str
    test: Callable[[Host], bool]


PlanStep: TypeAlias = Command | WriteFile | RemoveFile | Wait | Read | Noop | Refuse | AwaitReboot


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything an action will do, complete before its first step; `before` (JSON) is what undo needs."""

    steps: tuple[PlanStep, ...]
    before: Mapping[str, Json] | None = None


class EngineParameters(Parameters):
    """What every action on an engine takes; the run must hold that engine."""

    engine: str = Field(min_length=1)
    """The engine's name; all else about it comes from the configuration."""


@dataclass(frozen=True, kw_only=True)
class Action:
    """One action a runbook step may use: it takes names, never commands.

    plan: computed from fresh facts when the step runs. undo: planned from `before`, None when nothing needs it.
    unready: why it can do nothing at all on this host, "" when it can; cheap, and asked by the daemon too, which then
    offers no runbook with it. None: it always can.
    unfit: why it can do nothing for an engine with these settings, "" when it can; told in the page in place of a run.
    replaces_program: it gives the engine another program to run. What a restart cannot cure may be cured by that, and
    a unit that systemd keeps starting in vain is no reason to wait.
    stands: whether what this step was for is true now, told from its `before`. A run that was cut off has not succeeded
    while one of its steps does not stand, however well the engine serves. None: the run's own proof says it all.
    settle: planned from `before` when a cut-off run was judged a success, to do what the steps after this one would
    have done; best effort.
    """

    id: str
    params: type[Parameters]
    risk: Risk
    plan: Callable[[Host, Target, Any], Plan]
    undo: Callable[[Host, Target, Any, Mapping[str, Json]], Plan] | None = None
    unready: Callable[[Host], str] | None = None
    unfit: Callable[[Any], str] | None = None
    replaces_program: bool = False
    stands: Callable[[Host, Target, Any, Mapping[str, Json]], bool] | None = None
    settle: Callable[[Host, Target, Any, Mapping[str, Json]], Plan] | None = None


# --- receivers -----------------------------------------------------------------------------------------------


class ReceiverSettings(Parameters):
    """What every `[[receiver]]` table may say; a kind adds its own keys."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    """The receiver's name."""
    kind: str
    """The kind of receiver: one file in agent/pager/receivers/."""
    url: str | None = None
    """Overrides the receiver's address (EU region, a proxy, a test)."""
    minimum: Literal["info", "warning", "critical"] = "info"
    """The least urgency that is sent here."""
    fallback: bool = False
    """Used only when every other receiver has failed for `fallback_after_s`."""


@dataclass(frozen=True, kw_only=True)
class Receiver:
    """One kind of receiver. `send` makes one attempt and never raises for what the network does."""

    kind: str
    settings: type[ReceiverSettings]
    send: Callable[[Host, Any, Alert], Delivery]

    @property
    def id(self) -> str:
        """The kind."""
        return self.kind


# --- discovery -----------------------------------------------------------------------------------------------

Plugin = TypeVar("Plugin", Check, Rule, Engine, Action, Receiver)


def file_name(identifier: str) -> str:
    """The module name that a plug-in with this id must have."""
    return re.sub(r"[^A-Za-z0-9]", "_", identifier)


def _discover(package: str, attribute: str, kind: type[Plugin]) -> dict[str, Plugin]:
    found: dict[str, Plugin] = {}
    folder = importlib.import_module(package)
    for entry in sorted(pkgutil.iter_modules(folder.__path__), key=lambda module: module.name):
        if entry.name.startswith("_"):
            continue
        module = importlib.import_module(f"{package}.{entry.name}")
        plugin = getattr(module, attribute, None)
        if not isinstance(plugin, kind):
            raise InternalError(f"{module.__name__} does not end with {attribute} = {kind.__name__}(…)")
        if file_name(plugin.id) != entry.name:
            raise InternalError(f"{module.__name__} must be called {file_name(plugin.id)}.py after its id {plugin.id}")
        found[plugin.id] = plugin
    return found


@cache
def checks() -> Mapping[str, Check]:
    """Every check by id. The folder `checks` is found by name, so that `agent` never imports it."""
    return _discover("checks", "CHECK", Check)


@cache
def rules() -> Mapping[str, Rule]:
    """Every rule by id."""
    return _discover("agent.rules", "RULE", Rule)


@cache
def engines() -> Mapping[str, Engine]:
    """Every kind of engine."""
    return _discover("agent.engines", "ENGINE", Engine)


@cache
def actions() -> Mapping[str, Action]:
    """Every action by id."""
    return _discover("agent.actions", "ACTION", Action)


@cache
def receivers() -> Mapping[str, Receiver]:
    """Every kind of receiver."""
    return _discover("agent.pager.receivers", "RECEIVER", Receiver)
