"""Walks the command line's parser: every verb with its help, arguments and options, as plain data."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import typer

from agent.cli import _main
from agent.cli._session import Session, enter


@dataclass(frozen=True)
class Option:
    """One option or argument: how it is written, and what it does."""

    spelled: str
    text: str
    argument: bool


@dataclass(frozen=True)
class Command:
    """One command: "lock write", how it is called, what it does."""

    path: str
    usage: str
    first: str
    rest: str
    options: tuple[Option, ...]
    group: bool


def commands() -> Iterator[Command]:
    """Every command in the order of the help, the root first."""
    enter(Session())
    root = _main.tree()
    yield from _walk(root, typer.Context(root, info_name=_main.PROGRAM))


def _walk(command: Any, context: Any) -> Iterator[Command]:
    text = inspect.cleandoc(command.help or "")
    first, _, rest = text.partition("\n")
    group = hasattr(command, "list_commands")
    yield Command(
        path=context.command_path,
        usage=" ".join(command.collect_usage_pieces(context)),
        first=first.strip(),
        rest=rest.strip(),
        options=tuple(_options(command, context)),
        group=group,
    )
    for name in command.list_commands(context) if group else ():
        inner = command.get_command(context, name)
        yield from _walk(inner, typer.Context(inner, info_name=name, parent=context))


def _options(command: Any, context: Any) -> Iterator[Option]:
    for parameter in command.get_params(context):
        if parameter.param_type_name == "argument":
            yield Option(parameter.display_name_raw, parameter.help or "", argument=True)
            continue
        record = parameter.get_help_record(context)
        if record is not None:
            yield Option(record[0], record[1], argument=False)
