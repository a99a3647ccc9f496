"""The contract of a verb: one file in this folder that ends with `VERB = Verb(…)`, discovered by its name.

A verb's functions take what was typed and return a `Result` (or a `Live` generator); they never print and never
exit. Modules of verbs import only what their signatures need; everything else when the verb runs, so that
`holdfast status` stays fast.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from agent.cli._result import Live, Result
from agent.cli._session import current

Function = Callable[..., Result | Live]

AsJson = Annotated[bool, typer.Option("--json", help="Answer as one JSON document.")]


@dataclass(frozen=True)
class Verb:
    """One verb of the command line.

    commands: one function for a plain verb; for a verb with verbs of its own ("lock show") each of them, called
    by its function's name. reads: the commands that only read, which all answer under --json.
    help: the first line in `holdfast --help`; a plain verb says it in its function's docstring.
    """

    commands: tuple[Function, ...]
    help: str = ""
    group: bool = False


def command_name(function: Function) -> str:
    """The name a function is typed by."""
    return function.__name__.rstrip("_").replace("_", "-")


def build(name: str, verb: Verb) -> Any:
    """The parser of one verb: a command, or a group of commands."""
    app = _application(name=name, help=verb.help or None)
    for function in verb.commands:
        app.command(command_name(function) if verb.group else name, cls=_Command)(with_json(function))
    if verb.group:
        app.callback(help=verb.help)(_nothing)
    return typer.main.get_command(app)


def _application(**settings: Any) -> typer.Typer:
    """Typer without what would print for us: no rich help, no pretty exceptions, no completion options."""
    return typer.Typer(
        cls=_Group,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        no_args_is_help=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
        **settings,
    )


def _nothing() -> None:
    """A group does nothing before its command."""


def with_json(function: Function) -> Callable[..., Any]:
    """The function with the option --json, which the renderer, not the verb, acts upon."""

    @wraps(function)
    def command(*args: Any, as_json: bool = False, **kwargs: Any) -> Any:
        current().as_json = current().as_json or as_json
        return function(*args, **kwargs)

    # Not typing.get_type_hints: Python 3.10's wraps what defaults to None in Optional, which hides typer's metadata.
    signature = inspect.signature(function, eval_str=True)
    own = list(signature.parameters.values())
    extra = inspect.Parameter("as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=AsJson)
    command.__signature__ = signature.replace(parameters=[*own, extra])  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in (*own, extra)}
    del command.__wrapped__  # or the signature would be read from the function again
    return command


class _QuickHelp:
    """--help with a default: without one the parser would load pydantic, only to learn that nobody asked for help."""

    def get_help_option_names(self, ctx: Any) -> list[str]:
        """-h before --help; the parser keeps a set, whose order changes from run to run."""
        return sorted(super().get_help_option_names(ctx), key=len)  # type: ignore[misc]

    def get_help_option(self, ctx: Any) -> Any:
        """The option --help."""
        option = super().get_help_option(ctx)  # type: ignore[misc]
        if option is not None:
            option.default = False
        return option


class _Command(_QuickHelp, TyperCommand):
    """A command of ours."""


class _Group(_QuickHelp, TyperGroup):
    """A verb with commands of its own."""


class LazyGroup(_Group):
    """The tree of all verbs, which imports only the verb that was asked for."""

    _names: Sequence[str] = ()
    _load: Callable[[str], Verb] | None = None

    def use(self, names: Sequence[str], load: Callable[[str], Verb]) -> None:
        """Offer these verbs; `load` imports one by its name."""
        self._names, self._load = names, load

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 - the parser's interface
        """Every verb, in the order of the help."""
        return list(self._names)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002 - the parser's interface
        """The parser of one verb, or None when there is none of this name."""
        if cmd_name not in self._names or self._load is None:
            return None
        if cmd_name not in self.commands:
            self.commands[cmd_name] = build(cmd_name, self._load(cmd_name))
        return self.commands[cmd_name]
