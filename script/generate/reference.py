"""Writes docs/reference/*.md from the plug-ins' docstrings and parameters, the parser and the configuration's models.

With --check nothing is written, and the exit status is 1 when a page is not up to date.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import get_args

from man import EXIT_CODES
from pydantic import BaseModel
from tree import commands

from agent import config, errors, plugin, runbook
from agent.cli._catalogue import Entry, Parameter, entries, parameters, xid_entries
from agent.host.files import RealFiles
from agent.views.metrics import Snapshot, exposition

TOP = Path(__file__).resolve().parents[2]
TARGET = TOP / "docs" / "reference"
MADE = "<!-- Made by script/gen-reference from the program's own words: change those, not this file. -->"


def pages() -> Iterator[tuple[str, str]]:
    """Every page: file name and text."""
    books = runbook.load(RealFiles(), directories=(str(TOP / "runbooks"),)).by_id
    found = list(entries(books))
    for kind, name, title in (
        ("check", "checks", "Checks"),
        ("cause", "causes", "Causes"),
        ("action", "actions", "Actions"),
        ("runbook", "runbooks", "Runbooks"),
        ("engine", "engines", "Engines"),
        ("receiver", "receivers", "Receivers"),
    ):
        yield f"{name}.md", _page(title, (_entry(each) for each in found if each.kind == kind))
    yield "xid.md", _page("Messages of the NVIDIA driver", _xids())
    yield "commands.md", _page("Commands", _commands())
    yield "configuration.md", _page("Configuration", _configuration())
    yield "exit-codes.md", _page("Exit codes and errors", _codes())
    yield "metrics.md", _page("Metrics", _metrics())


def _page(title: str, parts: Iterable[str]) -> str:
    return "\n\n".join([f"# {title}", MADE, *parts]) + "\n"


def _entry(entry: Entry) -> str:
    lines = [f"## `{entry.id}`", "", entry.title]
    if entry.text:
        lines += ["", entry.text]
    if entry.facts:
        lines += ["", *(f"- {label}: {words}" for label, words in entry.facts)]
    if entry.parameters:
        lines += ["", *_table(entry.parameters)]
    if entry.commands:
        lines += ["", "```sh", *entry.commands, "```"]
    return "\n".join(lines)


def _table(rows: Iterable[Parameter]) -> list[str]:
    lines = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    for each in rows:
        default = "must be given" if each.default is None else f"`{each.default}`"
        cells = (f"`{each.name}`", f"`{each.type}`", default, " ".join(each.text.split()))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return lines


def _xids() -> Iterator[str]:
    """Codes that say the same share one entry."""
    yield (
        "What `holdfast explain xid CODE` says of each code, and of the messages that carry none. The card's own\n"
        "recovery action (Xid 154) wins over this table. Severity is for the card: a program's fault is a note here."
    )
    same: dict[tuple[object, ...], list[Entry]] = {}
    for entry in xid_entries():
        same.setdefault((entry.title, entry.text, entry.facts), []).append(entry)
    for title, kind in (("Xid codes", "Xid code"), ("Messages without a code", "kernel message")):
        yield f"## {title}"
        for alike in same.values():
            if alike[0].kind == kind:
                names = ", ".join(f"`{each.id}`" for each in alike)
                lines = [f"### {names} {alike[0].title}", "", alike[0].text, ""]
                yield "\n".join([*lines, *(f"- {label}: {words}" for label, words in alike[0].facts)])


def _commands() -> Iterator[str]:
    for command in commands():
        if command.group and command.path != "holdfast":
            continue
        lines = [f"## `{command.path}`", "", f"    {command.path} {command.usage}", "", command.first]
        if command.rest:
            lines += ["", command.rest]
        if command.options:
            lines += ["", "| option | meaning |", "| --- | --- |"]
        for option in command.options:
            text = " ".join(option.text.split()).replace("|", "\\|")
            spelled = option.spelled.replace("|", "\\|")
            lines.append(f"| `{spelled}` | {text} |")
        yield "\n".join(lines)


def _configuration() -> Iterator[str]:
    yield (
        f"`{config.CONFIG_FILE}`, then `{config.CONFIG_DIRECTORY}/*.toml`: tables merge, arrays of tables append, and\n"
        "a value that is set twice is a mistake. `holdfast check --config` reports every mistake at once."
    )
    tables = (
        ("[autonomy]", config.AutonomySettings),
        ("[daemon]", config.DaemonSettings),
        ("[pager]", config.PagerSettings),
        ("[heartbeat]", config.HeartbeatSettings),
        ("[rehearsal]", config.RehearsalSettings),
    )
    for title, model in tables:
        yield "\n".join([f"## `{title}`", "", " ".join((model.__doc__ or "").split()), "", *_table(parameters(model))])
    for title, models in (
        ("[[engine]]", {kind: each.settings for kind, each in plugin.engines().items()}),
        ("[[receiver]]", {kind: each.settings for kind, each in plugin.receivers().items()}),
        ('[check."ID"]', {kind: each.params for kind, each in plugin.checks().items()}),
    ):
        for kind, model in models.items():
            rows = list(_table(parameters(model)))
            if title.startswith("[check"):
                rows = [
                    "Besides `enabled` and `every_s`:" if len(rows) > 2 else "Only `enabled` and `every_s`.",
                    "",
                    *(rows if len(rows) > 2 else []),
                ]
            yield "\n".join([f"## `{title}` {kind}", "", *rows]).rstrip()
            for name, inner in _tables_within(model):
                words = " ".join((inner.__doc__ or "").split())
                inside = f"[{title.strip('[]')}.{name}]"
                yield "\n".join([f"## `{inside}` {kind}", "", words, "", *_table(parameters(inner))])


def _tables_within(model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    """The settings that are tables of their own."""
    for name, field in model.model_fields.items():
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield name, kind


def _codes() -> Iterator[str]:
    yield "\n".join(
        ["| exit code | meaning |", "| --- | --- |", *(f"| {code} | {text} |" for code, text in EXIT_CODES)]
    )
    rows = ["| error | code | exit code | meaning |", "| --- | --- | --- | --- |"]
    for each in _tree(errors.HoldfastError):
        first = (each.__doc__ or "").strip().splitlines()[0]
        rows.append(f"| {each.__name__} | `{each.code}` | {each.exit_code} | {first} |")
    yield "\n".join(
        ["## Errors", "", "What `errors[].code` says under `--json` when nothing more exact is known.", "", *rows]
    )


def _tree(kind: type[errors.HoldfastError]) -> Iterator[type[errors.HoldfastError]]:
    yield kind
    for each in sorted(kind.__subclasses__(), key=lambda one: one.__name__):
        if each.__module__ == errors.__name__:
            yield from _tree(each)


def _metrics() -> Iterator[str]:
    yield "Served at `[daemon] metrics_listen`, loopback only."
    rows = ["| metric | type | meaning |", "| --- | --- | --- |"]
    text = exposition(Snapshot(driver_matches=True)).decode()
    kinds = dict(line.split()[2:4] for line in text.splitlines() if line.startswith("# TYPE"))
    for line in text.splitlines():
        if line.startswith("# HELP"):
            _, _, name, words = line.split(maxsplit=3)
            rows.append(f"| `{name}` | {kinds[name]} | {words} |")
    yield "\n".join(rows)


def main() -> int:
    """Write all pages, or with --check say which are not up to date."""
    check = sys.argv[1:] == ["--check"]
    stale = 0
    for name, text in pages():
        path = TARGET / name
        if path.exists() and path.read_text() == text:
            continue
        stale += 1
        if check:
            sys.stderr.write(f"{path.relative_to(TOP)} is not up to date: script/gen-reference\n")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    return int(check and stale > 0)


if __name__ == "__main__":
    sys.exit(main())
