"""The one place where a verb's outcome becomes output and an exit code.

Exit codes: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN; 64 usage, 69 daemon out of reach, 70 our bug, 77 permission,
78 configuration; 130 when interrupted. Typer's own codes never get out. Nobody sees a traceback unless
HOLDFAST_DEBUG=1 asks for it.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import re
import sys
import traceback
from collections.abc import Sequence
from functools import cache
from inspect import isgenerator
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from typer.exceptions import Abort, TyperException

import agent.cli
from agent.cli._result import Problem, Progress, Result, envelope, plain, problems
from agent.cli._session import Session, current, enter
from agent.cli._verb import AsJson, LazyGroup, Verb
from agent.errors import ConfigurationError, HoldfastError, InternalError, UsageError

PROGRAM = "holdfast"
INTERRUPTED = 130
"""128 + SIGINT, as shells report it."""

ORDER = (
    *("status", "check", "explain", "doctor"),
    *("incident", "run", "rehearse", "stop", "runbook", "pause", "resume"),
    *("lock", "hold", "unhold", "pager", "audit", "init", "daemon", "completion"),
)
"""The order of the verbs in the help, most wanted on a bad day first; a verb not named here follows."""

HELP = """Keeps one GPU inference box serving: finds the cause, repairs, proves that tokens flow, pages.

Start with: holdfast status
"""


class _Enough(Exception):
    def __init__(self, result: Result) -> None:
        super().__init__()
        self.result = result


@cache
def verbs() -> tuple[str, ...]:
    """Every verb: the files of this folder without a leading underscore."""
    found = {entry.name for entry in pkgutil.iter_modules(agent.cli.__path__) if not entry.name.startswith("_")}
    return tuple(sorted(found, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name)))


def load(name: str) -> Verb:
    """The verb in the file of this name."""
    verb = getattr(importlib.import_module(f"agent.cli.{name}"), "VERB", None)
    if not isinstance(verb, Verb):
        raise InternalError(f"agent/cli/{name}.py does not end with VERB = Verb(…)")
    return verb


def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Say which version this is.")] = False,
    as_json: AsJson = False,
) -> None:
    current().as_json = as_json
    if version:
        number = agent.__version__
        raise _Enough(Result("version", {"version": number}, plain(f"{PROGRAM} {number}")))
    if context.invoked_subcommand is None:
        raise UsageError("no verb was given", hint="holdfast status, or holdfast --help for all verbs")


def tree() -> Any:
    """The parser of the whole command line."""
    app = typer.Typer(
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        cls=LazyGroup,
        no_args_is_help=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )
    app.callback(help=HELP, invoke_without_command=True)(_root)
    group = typer.main.get_group(app)
    if not isinstance(group, LazyGroup):
        raise InternalError("the command line is not the lazy group")
    group.use(verbs(), load)
    return group


def main(argv: Sequence[str] | None = None, session: Session | None = None) -> int:
    """Run one command line and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    session = session or Session()
    enter(session)
    try:
        code = _answer(arguments, session)
        session.stdout.flush()
    except BrokenPipeError:  # the reader (head, a closed pager) has seen enough; the outcome stands
        _silence(session.stdout)
        return session.exit_code
    except KeyboardInterrupt:
        session.stderr.write("\n")
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001 - even telling the error failed
        session.stderr.write(_spoken(problems(_bug(error))[0]))
        return InternalError.exit_code
    return code


def _answer(arguments: list[str], session: Session) -> int:
    try:
        result = _invoke(arguments, session)
        if not isinstance(result, Result):
            return result
        session.exit_code = result.exit_code
        _print_result(result, session)
    except HoldfastError as error:
        return _print_error(error, arguments, session)
    except Abort:
        return INTERRUPTED
    except (BrokenPipeError, KeyboardInterrupt):
        raise
    except Exception as error:  # noqa: BLE001 - the last line of defence: people see a code, not a traceback
        if session.environ.get("HOLDFAST_DEBUG") == "1":
            traceback.print_exc(file=session.stderr)
        return _print_error(_bug(error), arguments, session)
    return result.exit_code


def _invoke(arguments: list[str], session: Session) -> Result | int:
    """The verb's result; an int when the parser itself has answered (--help)."""
    try:
        outcome = _tree_main(arguments)
        while isgenerator(outcome):
            outcome = _follow(outcome, session)
    except _Enough as enough:
        return enough.result
    except TyperException as error:
        raise _usage(error) from None
    if isinstance(outcome, Result):
        return outcome
    if outcome == INTERRUPTED:
        raise KeyboardInterrupt
    return 0 if outcome == 0 else UsageError.exit_code


def _tree_main(arguments: list[str]) -> Any:
    if "_HOLDFAST_COMPLETE" in os.environ:
        from typer._completion_classes import completion_init

        completion_init()
    return tree().main(args=arguments, prog_name=PROGRAM, standalone_mode=False)


def _follow(live: Any, session: Session) -> Any:
    """Print a verb's progress line by line; its return value is the outcome."""
    pending = False
    while True:
        try:
            line: Progress = next(live)
        except StopIteration as end:
            if pending:
                session.stdout.write("\r\x1b[K")
            return end.value
        if session.as_json:
            continue
        terminal = session.stdout.isatty()
        if line.transient and not terminal:
            if line.plain:
                session.stdout.write(_harmless(line.plain) + "\n")
                session.stdout.flush()
            continue
        text = _coloured(_harmless(_fitting(line, session.width)), session.colour)
        session.stdout.write(("\r\x1b[K" if pending else "") + text + ("" if line.transient else "\n"))
        session.stdout.flush()
        pending = line.transient


def _fitting(line: Progress, width: int) -> str:
    """A line's text; one that is to be replaced must not wrap, or only its last row would be."""
    if not line.transient or len(line.text) < width:
        return line.text
    return line.text[: width - 2] + "…"


def _print_result(result: Result, session: Session) -> None:
    if session.as_json:
        _print_envelope(result.kind, result.data, result.errors, session)
        return
    text = _harmless(result.text(session.width)).rstrip("\n")
    if result.raw is not None:
        _print_raw(result.raw, session)
    elif text:
        session.stdout.write(_coloured(text, session.colour) + "\n")
    for problem in () if result.told else result.errors:
        session.stderr.write(_spoken(problem))


def _print_raw(raw: bytes, session: Session) -> None:
    """Bytes for a file or a pipe."""
    if session.stdout.isatty():
        raise UsageError("this is no text for a terminal", hint="add --output FILE, or send it to a file or a printer")
    session.stdout.flush()
    sink: Any = getattr(session.stdout, "buffer", session.stdout)
    sink.write(raw)


def _print_error(error: HoldfastError, arguments: list[str], session: Session) -> int:
    found = problems(error)
    session.exit_code = error.exit_code
    if session.as_json or "--json" in arguments:
        kind = next((word for word in arguments if not word.startswith("-")), "error")
        _print_envelope(kind, None, found, session)
    else:
        session.stdout.flush()
        session.stderr.write(_mistakes(error) if isinstance(error, ConfigurationError) else _spoken(found[0]))
    return error.exit_code


def _print_envelope(kind: str, data: Any, found: tuple[Problem, ...], session: Session) -> None:
    document = envelope(kind, data, found, host=os.uname().nodename, at=session.host.clock.now().wall)
    session.stdout.write(json.dumps(document, ensure_ascii=False, indent=2) + "\n")


def _spoken(problem: Problem) -> str:
    """A problem for a person: what, where, what to do."""
    first, *rest = problem.message.split("\n")
    lines = [f"{PROGRAM}: {first} [{problem.code}]", *(f"  {line}" for line in rest)]
    if problem.where:
        lines.append(f"  where: {problem.where}")
    if problem.hint:
        lines.append(f"  do:    {problem.hint}")
    return _harmless("\n".join(lines)) + "\n"


def _harmless(text: str) -> str:
    """The text without what would steer a terminal: an engine names its models, a caller its reasons as it likes."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(each if each.isprintable() or each in "\n\t" else "\N{REPLACEMENT CHARACTER}" for each in text)


def _mistakes(error: ConfigurationError) -> str:
    """One line for each mistake, as `file: path: what is wrong (what is allowed)`; then what to do about them."""
    lines = [f"{PROGRAM}: {mistake} [{error.code}]" for mistake in error.mistakes]
    return "\n".join([*lines, *([f"  do:    {error.hint}"] if error.hint else [])]) + "\n"


def _usage(error: TyperException) -> UsageError:
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else PROGRAM
    message = " ".join(error.format_message().split()) or "the command is not complete"
    return UsageError(message, hint=f"{path} --help")


def _bug(error: Exception) -> InternalError:
    place = ""
    for frame in traceback.extract_tb(error.__traceback__):
        if f"{os.sep}agent{os.sep}" in frame.filename or f"{os.sep}checks{os.sep}" in frame.filename:
            place = f"{'/'.join(Path(frame.filename).parts[-3:])}:{frame.lineno}"
    return InternalError(
        f"a mistake of ours: {type(error).__name__}",
        where=place,
        hint="run it again with HOLDFAST_DEBUG=1 and report what it prints",
    )


_WORDS = {
    "31": r"CRITICAL|DEAD|WEDGED|ESCALATED|FAILED",
    "33": r"WARNING|DEGRADED|REFUSED|STOPPED|PAUSED",
    "32": r"OK|READY|RESOLVED|SUCCEEDED",
    "35": r"UNKNOWN",
}


def _coloured(text: str, colour: bool) -> str:
    if not colour:
        return text
    for number, words in _WORDS.items():
        text = re.sub(rf"\b({words})\b", f"\x1b[{number}m\\1\x1b[0m", text)
    return text


def _silence(stream: TextIO) -> None:
    """Send the rest of a broken stream nowhere, so that the interpreter's own flush at exit stays quiet."""
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)
