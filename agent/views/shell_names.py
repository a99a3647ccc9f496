"""Long commands made short to type: what is repeated gets a name first, and each command then says the name.

Folders become variables (`A=/var/cache/…`, said as `$A`), runs of words become arrays (`a=(--property=… …)`, said as
`"${a[@]}"`). The shell, bash, makes the very same words of both. Pure.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterator, Sequence

from agent.views.shell_lines import words

WORTH = 60
"""A name must save so many letters in all; less is not worth remembering it."""
MOST_FOLDERS = 5
MOST_RUNS = 3
LEAST_WORDS = 4
"""A shorter run of words is no shorter as an array."""
_PLAIN = re.compile(r"[A-Za-z0-9_@%+=:,./$-]+")
"""Words that need no quotes: only in these is a folder replaced, because within quotes it may mean something else."""
_FOLDER = re.compile(r"(?<![A-Za-z0-9_.$/+-])(?:/[A-Za-z0-9_.+,@-]+){2,}")
_ENDS = frozenset({"&&", "||", "|", ";", ">", ">>", "<", "&", "--"})
"""A run of words does not go over these: operators are none, and what follows `--` is what is really run."""


def named(commands: Sequence[str]) -> tuple[list[str], list[str]]:
    """What to type first, and the commands with the names in them. Without anything worth a name: ([], as they are)."""
    split = [words(command) for command in commands]
    before: list[str] = []
    for letter in string.ascii_uppercase[:MOST_FOLDERS]:
        folder = _folder(split)
        if not folder:
            break
        before.append(f"{letter}={folder}")
        split = [[_said(word, folder, letter) for word in each] for each in split]
    for letter in string.ascii_lowercase[:MOST_RUNS]:
        run = _run(split)
        if not run:
            break
        before.append(f"{letter}=({' '.join(run)})")
        split = [list(_shortened(each, run, f'"${{{letter}[@]}}"')) for each in split]
    return before, [" ".join(each) for each in split]


def _folder(split: Sequence[Sequence[str]]) -> str:
    """The folder whose name saves most, "" when none is worth it."""
    seen: Counter[str] = Counter()
    for word in (word for each in split for word in each if _PLAIN.fullmatch(word)):
        for found in _FOLDER.findall(word):
            parts = found.split("/")
            seen.update("/".join(parts[:count]) for count in range(3, len(parts) + 1))
    best = max(seen, key=lambda each: (_saved(each, seen[each]), each), default="")
    return best if best and _saved(best, seen[best]) >= WORTH else ""


def _saved(folder: str, count: int) -> int:
    return count * (len(folder) - 2) - len(folder) - 3


def _said(word: str, folder: str, letter: str) -> str:
    """The word with the folder's name in place of the folder."""
    if not _PLAIN.fullmatch(word):
        return word
    return re.sub(rf"(?<![A-Za-z0-9_.$/+-]){re.escape(folder)}(?![A-Za-z0-9_.+,@-])", f"${letter}", word)


def _run(split: Sequence[Sequence[str]]) -> list[str]:
    """The run of words that is repeated and saves most, [] when none is worth it."""
    best: list[str] = []
    gain = WORTH
    for first, one in enumerate(split):
        for other in split[first + 1 :]:
            for run in _common(one, other):
                count = sum(_count(each, run) for each in split)
                saved = count * (len(" ".join(run)) - 9) - len(" ".join(run)) - 5
                if saved >= gain:
                    best, gain = run, saved + 1
    return best


def _common(one: Sequence[str], other: Sequence[str]) -> Iterator[list[str]]:
    """The longest runs that two commands share, their first words apart: what is run stays to be read."""
    for start in range(1, len(one)):
        for place in range(1, len(other)):
            if one[start] != other[place] or (one[start - 1] == other[place - 1] and start > 1 and place > 1):
                continue
            length = 0
            while (
                start + length < len(one)
                and place + length < len(other)
                and one[start + length] == other[place + length]
                and one[start + length] not in _ENDS
                and not one[start + length].startswith('"${')
            ):
                length += 1
            if length >= LEAST_WORDS:
                yield list(one[start : start + length])


def _count(command: Sequence[str], run: Sequence[str]) -> int:
    return sum(list(command[at : at + len(run)]) == run for at in range(1, len(command)))


def _shortened(command: Sequence[str], run: Sequence[str], name: str) -> Iterator[str]:
    at = 0
    while at < len(command):
        if at > 0 and list(command[at : at + len(run)]) == run:
            yield name
            at += len(run)
        else:
            yield command[at]
            at += 1
