"""Everything that has a name and an explanation: checks, causes, actions, engines, receivers and runbooks.

`holdfast explain` shows one entry, the reference pages show them all: there is one source, the plug-ins' own words.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from agent import plugin
from agent.host import xid

if TYPE_CHECKING:
    from agent.runbook import Runbook


@dataclass(frozen=True, slots=True)
class Parameter:
    """One setting of a plug-in or one input of a runbook. `default` is None where it must be given."""

    name: str
    type: str
    default: str | None
    text: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One name: what kind of thing it is, its title, its explanation, its facts in words, its settings."""

    id: str
    kind: str
    title: str
    text: str
    facts: tuple[tuple[str, str], ...] = ()
    parameters: tuple[Parameter, ...] = ()
    commands: tuple[str, ...] = ()


def entries(books: Mapping[str, Runbook]) -> Iterator[Entry]:
    """Every entry; `books` are the runbooks by id."""
    for check in plugin.checks().values():
        yield _check(check)
    for rule in plugin.rules().values():
        yield _rule(rule, books)
    for action in plugin.actions().values():
        yield _action(action, books)
    for engine in plugin.engines().values():
        yield _engine(engine)
    for receiver in plugin.receivers().values():
        yield _receiver(receiver)
    for book in books.values():
        yield _runbook(book)


def xid_entries() -> Iterator[Entry]:
    """Every Xid code, and the driver's messages that carry none."""
    found = xid.catalogue()
    for each in found.entries.values():
        facts = [("at once", f"{found.actions[each.immediate]}{_named(each.immediate)}")]
        if each.investigate:
            facts.append(("then", f"{found.actions[each.investigate]}{_named(each.investigate)}"))
        facts += [("usually", FAULTS[each.fault]), ("told", _told(each))]
        if each.follows:
            facts.append(("comes", "after another code, which is the reason"))
        facts.append(("source", SOURCES.get(each.source, each.source)))
        kind = "Xid code" if each.code is not None else "kernel message"
        next_command = f"holdfast explain {each.cause}" if each.cause else "holdfast check gpu.xid"
        yield Entry(each.key, kind, each.name, each.meaning, tuple(facts), (), (next_command,))


def _named(resolution: str) -> str:
    return f" (NVIDIA: {resolution})" if resolution else ""


def _told(entry: xid.Entry) -> str:
    if entry.cause:
        return f"as {entry.cause}, {entry.severity}"
    if entry.fatal_resets:
        return "a fatal one as gpu-reset-required, critical; else only in gpu.xid"
    if entry.severity == "note":
        engine = " as engine-gpu-fault where it hits an engine;" if entry.fault == "application" else ""
        return f"not by itself;{engine} gpu.xid shows it"
    return "once, as gpu-xid-noted"


def parameters(model: type[Any]) -> tuple[Parameter, ...]:
    """The settings that a pydantic model takes, with the words of its own documentation."""
    found = []
    for name, field in model.model_fields.items():
        default = None if field.is_required() else _default(field.get_default(call_default_factory=True))
        found.append(Parameter(name, _type(field.annotation), default, _limits(field)))
    return tuple(found)


def _limits(field: Any) -> str:
    """A field's description, with what else is demanded of it."""
    words = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
    limits = [
        f"{text} {getattr(each, name)}"
        for each in field.metadata
        for name, text in words.items()
        if getattr(each, name, None) is not None
    ]
    return " ".join(filter(None, [field.description or "", f"({', '.join(limits)})" if limits else ""]))


def _type(annotation: Any) -> str:
    """A type as a person writes it: words for choices, no module names."""
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return " | ".join(str(member.value) for member in annotation)
    if inspect.isclass(annotation) and not get_args(annotation):
        return annotation.__name__
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " | ".join(map(str, inner))
    if origin in (Union, UnionType):
        return " | ".join(_type(each) for each in inner if each is not type(None))
    if origin is Annotated:
        return _type(inner[0])
    names = ", ".join("…" if each is Ellipsis else _type(each) for each in inner)
    return f"{getattr(origin, '__name__', str(annotation))}[{names}]" if names else str(annotation)


def _default(value: Any) -> str:
    import json

    return "none" if value is None else json.dumps(value, default=str)


def _document(package: str, identifier: str) -> tuple[str, str]:
    """A plug-in's docstring as its first line and the rest."""
    module = importlib.import_module(f"{package}.{plugin.file_name(identifier)}")
    first, _, rest = inspect.cleandoc(module.__doc__ or "").partition("\n")
    return first.strip(), rest.strip()


def _check(check: plugin.Check) -> Entry:
    title, text = _document("checks", check.id)
    read_by = sorted(rule.id for rule in plugin.rules().values() if check.id in (*rule.reads, *rule.explainers))
    runs = f"every {check.every_s:g} s" if check.every_s else "only when asked for"
    facts = [("runs", f"{runs}, or as often as {check.own_every_s} says" if check.own_every_s else runs)]
    if check.on_suspicion_s:
        facts.append(("when not OK", f"every {check.on_suspicion_s:g} s"))
    if check.due_when_changed:
        facts.append(("within seconds", f"when one of these changes: {', '.join(check.due_when_changed)}"))
    facts += [
        ("about", "each engine" if check.scope == "engine" else "the host"),
        ("observes as", "root, in the inspector" if check.as_root else "holdfast"),
        ("leads to", ", ".join(read_by) or "no cause"),
    ]
    return Entry(
        check.id, "check", title, text, tuple(facts), parameters(check.params), (f"holdfast check {check.id}",)
    )


def _rule(rule: plugin.Rule, books: Mapping[str, Runbook]) -> Entry:
    title, text = _document("agent.rules", rule.id)
    cures = [book.id for book in books.values() if rule.id in book.findings]
    confirm = rule.confirm
    how = (
        "at once"
        if confirm.samples <= 1 and not confirm.for_s
        else f"{confirm.samples} samples, {confirm.apart_s:g} s apart"
    )
    if confirm.for_s:
        how = f"after {confirm.for_s:g} s"
    facts = (
        ("rests on", ", ".join(rule.reads)),
        ("believed", how),
        ("runbook", ", ".join(cures) or ("none: a person acts" if rule.manual else "none")),
    )
    return Entry(
        rule.id,
        "cause",
        rule.title or title,
        text,
        facts,
        (),
        tuple(f"holdfast runbook print {cure}" for cure in cures),
    )


def _action(action: plugin.Action, books: Mapping[str, Runbook]) -> Entry:
    title, text = _document("agent.actions", action.id)
    users = [book.id for book in books.values() if any(step.use == action.id for step in book.steps)]
    facts = (
        ("risk", RISKS[action.risk.value]),
        ("undone", "yes, when the run fails" if action.undo else "needs no undo"),
        ("used by", ", ".join(users) or "no runbook"),
    )
    return Entry(action.id, "action", title, text, facts, parameters(action.params))


def _engine(engine: plugin.Engine) -> Entry:
    title, text = _document("agent.engines", engine.kind)
    facts = (("usual port", str(engine.default_port or "none")), ("known log lines", engine.signatures or "none"))
    return Entry(engine.kind, "engine", title, text, facts, parameters(engine.settings), ("sudo holdfast init",))


def _receiver(receiver: plugin.Receiver) -> Entry:
    title, text = _document("agent.pager.receivers", receiver.kind)
    return Entry(receiver.kind, "receiver", title, text, (), parameters(receiver.settings), ("holdfast pager test",))


def _runbook(book: Runbook) -> Entry:
    facts = (
        ("for", ", ".join(book.findings) or "a person, by name"),
        ("risk", RISKS[book.risk.value]),
        (
            "at most",
            f"{book.limits.max_runs} runs within {book.limits.within_s:g} s, {book.limits.cooldown_s:g} s apart",
        ),
        ("steps", "; ".join(f"{step.name} ({step.use})" for step in book.steps)),
    )
    return Entry(
        book.id,
        "runbook",
        book.title,
        book.explain.strip(),
        facts,
        (),
        (f"holdfast runbook print {book.id}", f"sudo holdfast run {book.id} --dry-run"),
    )


RISKS = {
    "none": "none: nothing changes for users",
    "service": "service: requests in flight may be lost",
    "host": "host: the whole host may go down",
}
FAULTS = {
    "application": "a fault of the program",
    "driver": "a fault of the driver or the card's firmware",
    "hardware": "a fault of the hardware",
    "none": "nobody's fault",
}
SOURCES = {
    "catalogue": "NVIDIA's Xid catalogue (docs.nvidia.com/deploy/xid-errors), as of October 2025",
    "nverror": "the driver's list of codes (nverror.h, 595); NVIDIA's catalogue does not have it yet",
}
