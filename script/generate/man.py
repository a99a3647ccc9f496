"""Prints holdfast(1) in roff (man(7)), made from the command line's parser."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from tree import Command, commands

import agent

EXIT_CODES = (
    ("0", "OK"),
    ("1", "WARNING"),
    ("2", "CRITICAL"),
    ("3", "UNKNOWN: it cannot be told"),
    ("64", "usage: what was typed cannot be meant"),
    ("69", "the daemon or the runner is out of reach"),
    ("70", "a mistake of ours, or the machine did not do what was asked"),
    ("77", "the caller may not do this, or the runner refused"),
    ("78", "configuration or runbooks hold mistakes"),
    ("130", "interrupted"),
)
FILES = (
    ("/etc/holdfast/holdfast.toml", "the configuration; holdfast init writes it, holdfast check --config proves it"),
    ("/etc/holdfast/conf.d/*.toml", "more configuration, merged with it"),
    ("/etc/holdfast/driver.lock", "the driver version this host must run"),
    ("/etc/holdfast/runbooks.d/*.yaml", "local runbooks; the same id replaces a shipped one"),
    ("/usr/share/holdfast/runbooks", "shipped runbooks"),
    ("/var/lib/holdfast", "what the daemon remembers"),
    ("/var/lib/holdfast-runner", "the record of every action"),
)


def escape(text: str) -> str:
    """Text that roff prints as it is."""
    safe = text.replace("\\", "\\e").replace("-", "\\-").replace("…", "...").replace("’", "'")
    return "\n".join(f"\\&{line}" if line.startswith((".", "'")) else line for line in safe.splitlines())


def page() -> Iterator[str]:
    """The page, line by line."""
    root, *rest = commands()
    yield f'.TH HOLDFAST 1 "" "holdfast {agent.__version__}" "Holdfast"'
    yield from (".SH NAME", "holdfast \\- keep one GPU inference box serving")
    yield from (".SH SYNOPSIS", ".B holdfast", f".I {escape('[OPTIONS] COMMAND [ARGS]...')}")
    yield from (".SH DESCRIPTION", *_paragraphs(f"{root.first}\n\n{root.rest}"))
    yield from _paragraphs(
        "Every command that answers takes --json and then prints one document: schema, kind, host, at, data, errors.",
        first=".PP",
    )
    yield ".SH COMMANDS"
    for command in rest:
        yield from _command(command)
    yield ".SH EXIT STATUS"
    for code, meaning in EXIT_CODES:
        yield from (".TP", f".B {code}", escape(meaning))
    yield ".SH FILES"
    for path, meaning in FILES:
        yield from (".TP", f".I {escape(path)}", escape(meaning))
    yield ".SH ENVIRONMENT"
    for name, meaning in (
        ("HOLDFAST_DEBUG", "1 prints the traceback of a mistake of ours"),
        ("NO_COLOR", "any value: no colours"),
        ("COLUMNS", "the width of the text"),
    ):
        yield from (".TP", f".B {name}", escape(meaning))
    yield from (".SH SEE ALSO", ".BR systemctl (1),", ".BR journalctl (1),", ".BR nvidia\\-smi (1)")


def _command(command: Command) -> Iterator[str]:
    if command.group:
        return
    yield f'.SS "{escape(command.path)}"'
    yield f".B {escape(command.path)}"
    yield f"{escape(command.usage)}"
    yield from (".PP", *_paragraphs(f"{command.first}\n\n{command.rest}"))
    for option in command.options:
        if option.spelled.startswith(("-h,", "--help", "--json")):
            continue
        mark = ".I" if option.argument else ".B"
        yield from (".TP", f"{mark} {escape(option.spelled)}", escape(" ".join(option.text.split())) or "\\&")


def _paragraphs(text: str, first: str = "") -> Iterator[str]:
    parts = [part for part in text.split("\n\n") if part.strip()]
    for index, part in enumerate(parts):
        if index or first:
            yield first if index == 0 else ".PP"
        yield escape(" ".join(part.split()))


if __name__ == "__main__":
    sys.stdout.write("\n".join(page()) + "\n")
