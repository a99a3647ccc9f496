"""Runbooks: YAML that names, orders and limits; loaded, validated, and every mistake reported at once.

A runbook holds no shell, loops, branches or arithmetic. A value may be one Jinja2 template that looks something up
(`{{ engine.name }}`) in `engine`, `host`, `lock` or the runbook's own typed `inputs`; what comes out is validated
by the action's parameters. Shipped runbooks are replaced by local ones with the same id.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import yaml
from pydantic import ValidationError

from agent import plugin, template
from agent.decide import Limits
from agent.errors import ConfigurationError, FileTrouble, Mistake
from agent.host import Files, ownership
from agent.model import Consent, Json, Risk
from agent.plugin import Action
from agent.runbook_schema import Input, RunbookModel, StepModel, input_model, nearest

SHIPPED = "/usr/share/holdfast/runbooks"
LOCAL = "/etc/holdfast/runbooks.d"
RISKS = (Risk.NONE, Risk.SERVICE, Risk.HOST)


@dataclass(frozen=True, slots=True)
class Step:
    """One step: an action by name, with its parameters as written. Durations in seconds, None: no limit of its own.

    rehearsed: False where it touches what serves, so that a rehearsal leaves it out.
    """

    name: str
    use: str
    parameters: Mapping[str, Json]
    timeout_s: float | None = None
    best_effort: bool = False
    spans_reboot: bool = False
    rehearsed: bool = True


@dataclass(frozen=True, slots=True)
class Verify:
    """The proof that the repair worked: this check must become OK within so many seconds.

    also: further checks that must be OK then, on every subject that they apply to.
    """

    check: str
    within_s: float
    also: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Runbook:
    """One valid runbook. `hash` covers everything that it does, not its file's layout."""

    id: str
    title: str
    explain: str
    findings: tuple[str, ...]
    engines: tuple[str, ...]
    limits: Limits
    steps: tuple[Step, ...]
    verify: Verify | None
    on_failure: str
    """The id of the runbook that is tried next, "" to escalate."""
    inputs: Mapping[str, Input]
    risk: Risk
    consent: Consent
    hash: str
    file: str
    rehearsal_every_s: float | None = None
    """How often it is rehearsed by itself, 0 only when asked for; None: it cannot be rehearsed."""
    replaces_program: bool = False
    """Whether one of its actions gives the engine another program to run."""

    @property
    def needs_engine(self) -> bool:
        """Whether it makes sense for an engine only."""
        return bool(self.engines) or any(template.sees(dict(step.parameters), "engine") for step in self.steps)

    def resolved_inputs(self, given: Mapping[str, Json]) -> dict[str, Json]:
        """The inputs, typed, with defaults. Raises ConfigurationError with every mistake in what was given."""
        try:
            return input_model(self.inputs).model_validate(dict(given)).model_dump()
        except ValidationError as error:
            raise ConfigurationError(
                [
                    Mistake(f"runbook {self.id}", f"inputs.{_loc(each['loc'])}", each["msg"], ", ".join(self.inputs))
                    for each in error.errors()
                ]
            ) from error


@dataclass(frozen=True, slots=True)
class Runbooks:
    """All runbooks of this host by id."""

    by_id: Mapping[str, Runbook] = field(default_factory=dict)

    def get(self, identifier: str) -> Runbook | None:
        """One runbook, None when there is none of that id."""
        return self.by_id.get(identifier)

    def runbook_for(self, finding: str, engine_kind: str | None = None) -> Runbook | None:
        """The runbook for a finding: one for this kind of engine before one for all; None when a person acts."""
        fitting = [each for each in self.by_id.values() if finding in each.findings]
        own = [each for each in fitting if engine_kind is not None and engine_kind in each.engines]
        general = [each for each in fitting if not each.engines]
        return next(iter(own or general), None)


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The names a runbook may use."""

    actions: Mapping[str, Action]
    checks: frozenset[str]
    findings: frozenset[str]
    engines: frozenset[str]


def catalogue() -> Catalogue:
    """Every plug-in of this installation."""
    return Catalogue(
        plugin.actions(), frozenset(plugin.checks()), frozenset(plugin.rules()), frozenset(plugin.engines())
    )


def load(
    files: Files,
    *,
    directories: Sequence[str] = (SHIPPED, LOCAL),
    owner: int | None = None,
    known: Catalogue | None = None,
) -> Runbooks:
    """Read and validate every runbook; a later directory replaces a shipped id.

    owner: refuse directories and files that anyone but this uid (and root) can write, as the runner does.
    Raises ConfigurationError with every mistake in every file.
    """
    known = known or catalogue()
    mistakes: list[Mistake] = []
    found: dict[str, Runbook] = {}
    for directory in directories:
        here: dict[str, Runbook] = {}
        for name in _names(files, directory, owner, mistakes):
            runbook = _load_one(files, name, owner, known, mistakes)
            if runbook is None:
                continue
            if runbook.id in here:
                mistakes.append(Mistake(name, "id", f"{runbook.id!r} is already the id of {here[runbook.id].file}"))
            here[runbook.id] = runbook
        found.update(here)
    mistakes.extend(_between(found))
    if mistakes:
        raise ConfigurationError(mistakes, hint="correct these and run: holdfast runbook list")
    return Runbooks(found)


def parse(text: str, file: str, known: Catalogue, mistakes: list[Mistake]) -> Runbook | None:
    """One runbook from its text; None, and everything that is wrong added to `mistakes`, when it is not valid."""
    before = len(mistakes)
    try:
        document = yaml.load(text, Loader=_StrictLoader)  # noqa: S506 - _StrictLoader is a SafeLoader
    except yaml.YAMLError as error:
        mistakes.append(Mistake(file, "", f"not valid YAML: {' '.join(str(error).split())}"))
        return None
    except RecursionError:
        mistakes.append(Mistake(file, "", "nested too deeply"))
        return None
    try:
        model = RunbookModel.model_validate(document)
    except ValidationError as error:
        mistakes.extend(_schema_mistakes(error, file))
        return None
    mistakes.extend(_names_wrong(model, file, known))
    for index, step in enumerate(model.steps):
        mistakes.extend(_step_wrong(step, f"steps[{index}]", file, model, known))
    if len(mistakes) > before:
        return None
    return _runbook(model, file, known)


def _runbook(model: RunbookModel, file: str, known: Catalogue) -> Runbook:
    canonical = json.dumps(model.model_dump(mode="json", by_alias=True), sort_keys=True, separators=(",", ":"))
    return Runbook(
        id=model.id,
        title=model.title,
        explain=model.explain,
        findings=tuple(model.findings),
        engines=tuple(model.engines),
        limits=Limits(model.limits.cooldown, model.limits.max_runs, model.limits.within),
        steps=tuple(
            Step(
                step.name, step.use, step.parameters, step.timeout, step.best_effort, step.spans_reboot, step.rehearsed
            )
            for step in model.steps
        ),
        verify=Verify(model.verify.check, model.verify.within, tuple(model.verify.also)) if model.verify else None,
        on_failure="" if isinstance(model.on_failure, str) else model.on_failure.run,
        inputs=model.inputs,
        risk=max((known.actions[step.use].risk for step in model.steps), key=RISKS.index),
        consent=model.consent,
        hash=hashlib.sha256(canonical.encode()).hexdigest(),
        file=file,
        rehearsal_every_s=model.rehearsal.every if model.rehearsal else None,
        replaces_program=any(known.actions[step.use].replaces_program for step in model.steps),
    )


# --- files ---------------------------------------------------------------------------------------------------


def _names(files: Files, directory: str, owner: int | None, mistakes: list[Mistake]) -> list[str]:
    try:
        if not files.exists(directory):
            return []
        directory = files.realpath(directory)
        if _refused(files, directory, owner, mistakes):
            return []
        return [f"{directory}/{name}" for name in files.listdir(directory) if name.endswith((".yaml", ".yml"))]
    except FileTrouble as error:
        mistakes.append(Mistake(directory, "", error.message))
        return []


def _load_one(files: Files, name: str, owner: int | None, known: Catalogue, mistakes: list[Mistake]) -> Runbook | None:
    try:
        if _refused(files, name, owner, mistakes):
            return None
        text = files.read_text(name, 64 << 10)
    except FileTrouble as error:
        mistakes.append(Mistake(name, "", error.message))
        return None
    return parse(text, name, known, mistakes)


def _refused(files: Files, name: str, owner: int | None, mistakes: list[Mistake]) -> bool:
    wrong = ownership.mistake(files, name, owner) if owner is not None else None
    mistakes += [wrong] if wrong is not None else []
    return wrong is not None


class _StrictLoader(yaml.SafeLoader):
    """YAML without silent duplicates."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is set twice", key.start_mark)
            if isinstance(key.value, str):
                seen.add(key.value)
        return super().construct_mapping(node, deep)


# --- what may be wrong ---------------------------------------------------------------------------------------


def _schema_mistakes(error: ValidationError, file: str) -> Iterator[Mistake]:
    for each in error.errors():
        allowed = str(each.get("ctx", {}).get("expected", ""))
        if each["type"] == "extra_forbidden":
            yield Mistake(file, _loc(each["loc"]), "unknown key")
        elif each["type"] == "missing":
            yield Mistake(file, _loc(each["loc"]), "missing")
        else:
            yield Mistake(file, _loc(each["loc"]), each["msg"], "" if allowed in each["msg"] else allowed)


def _names_wrong(model: RunbookModel, file: str, known: Catalogue) -> Iterator[Mistake]:
    lists: tuple[tuple[str, Sequence[str], frozenset[str], Literal["finding", "kind of engine"]], ...] = (
        ("for", model.findings, known.findings, "finding"),
        ("engines", model.engines, known.engines, "kind of engine"),
    )
    for key, given, allowed, what in lists:
        for index, name in enumerate(given):
            if name not in allowed:
                wrong = f"unknown {what} {name!r}" + nearest(name, allowed)
                yield Mistake(file, f"{key}[{index}]", wrong, ", ".join(sorted(allowed)))
    named = [("verify.check", model.verify.check)] if model.verify else []
    named += [(f"verify.also[{index}]", name) for index, name in enumerate(model.verify.also if model.verify else ())]
    for place, name in named:
        if name not in known.checks:
            wrong = f"unknown check {name!r}" + nearest(name, known.checks)
            yield Mistake(file, place, wrong, ", ".join(sorted(known.checks)))


def _step_wrong(step: StepModel, path: str, file: str, model: RunbookModel, known: Catalogue) -> Iterator[Mistake]:
    action = known.actions.get(step.use)
    if action is None:
        wrong = f"unknown action {step.use!r}" + nearest(step.use, known.actions)
        yield Mistake(file, f"{path}.use", wrong, ", ".join(sorted(known.actions)))
        return
    templated: set[str] = set()
    for key, value in step.parameters.items():
        for place, text in template.strings(value, f"{path}.with.{key}"):
            if template.is_template(text):
                templated.add(key)
                for wrong in template.mistakes(text, model.inputs):
                    yield Mistake(file, place, wrong, "{{ engine.X }}, {{ host.X }}, {{ lock.X }} or {{ inputs.X }}")
    try:
        action.params.model_validate(step.parameters)
    except ValidationError as error:
        for each in error.errors():
            if each["type"] == "extra_forbidden":
                allowed = ", ".join(action.params.model_fields)
                yield Mistake(file, f"{path}.with.{_loc(each['loc'])}", "unknown parameter", allowed)
            elif each["type"] == "missing":
                yield Mistake(file, f"{path}.with.{_loc(each['loc'])}", f"missing: {step.use} needs it")
            elif each["loc"] and each["loc"][0] not in templated:
                yield Mistake(file, f"{path}.with.{_loc(each['loc'])}", each["msg"])


def _between(found: Mapping[str, Runbook]) -> Iterator[Mistake]:
    """What is wrong between runbooks: two for the same finding, a successor that does not exist, a circle."""
    owners: dict[tuple[str, str], Runbook] = {}
    for runbook in found.values():
        for finding in runbook.findings:
            for kind in runbook.engines or ("",):
                other = owners.setdefault((finding, kind), runbook)
                if other is not runbook:
                    wrong = f"{finding} already has {other.id} ({other.file}), which is as specific"
                    yield Mistake(runbook.file, "for", wrong)
        if runbook.on_failure and runbook.on_failure not in found:
            yield Mistake(runbook.file, "on_failure.run", f"unknown runbook {runbook.on_failure!r}", ", ".join(found))
        chain, successor = {runbook.id}, runbook.on_failure
        while successor in found:
            if successor in chain:
                yield Mistake(runbook.file, "on_failure.run", f"leads back to {successor}: a circle never ends")
                break
            chain.add(successor)
            successor = found[successor].on_failure


def _loc(location: tuple[str | int, ...]) -> str:
    words = ""
    for part in location:
        if isinstance(part, int):
            words += f"[{part}]"
        else:
            words += f".{part}" if words else str(part)
    return words
