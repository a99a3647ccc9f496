"""What README and docs tell people to type is what the command line takes, and every link leads somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.exceptions import TyperException

from agent.cli._main import tree

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md"]
COMMAND = re.compile(r"(^ {4}(?:\$ )?|`|&& )(?:sudo )?holdfast ([a-z][^`\n]*?)(?= {2,}|`|$| &&| *#)", re.MULTILINE)
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


def commands() -> list[tuple[str, str, bool]]:
    """Every command of ours that a page shows: the page, the command, whether it only names a verb in a sentence."""
    found = []
    for page in PAGES:
        if page.parent.name == "reference":  # generated from the parser itself
            continue
        text = page.read_text(encoding="utf-8").replace("\\|", "|")
        name = str(page.relative_to(ROOT))
        found += [(name, command.strip(), before == "`") for before, command in COMMAND.findall(text)]
    return found


def parse(command: str) -> None:
    """Take a command line apart as the program does, and run nothing. Raises for what it does not take."""
    words = shlex.split(command.replace("observe|ask|act", "ask"))
    name, parser = "holdfast", tree()
    while words and hasattr(parser, "get_command"):
        context = parser.make_context(name, list(words))
        name = words.pop(0)
        parser = parser.get_command(context, name)
        if parser is None:
            raise LookupError(f"there is no {name!r} in: holdfast {command}")
    if not hasattr(parser, "get_command"):
        parser.make_context(name, list(words))


@pytest.mark.parametrize(("page", "command", "in_a_sentence"), commands())
def test_a_command_that_a_page_shows_is_understood(page: str, command: str, in_a_sentence: bool) -> None:
    try:
        parse(command)
    except TyperException as error:
        if not (in_a_sentence and "Missing" in str(error)):
            raise


@pytest.mark.parametrize("command", ["reboot", "incident forget", "status --nope", "pause", "audit show 1 2"])
def test_a_command_that_does_not_exist_is_not_understood(command: str) -> None:
    with pytest.raises(Exception, match=r"[Nn]o such|there is no|Missing|unexpected|required"):
        parse(command)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_there_are_commands_to_check() -> None:
    assert len(commands()) > 30
