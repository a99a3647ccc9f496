"""Long commands made short to type: what is repeated gets a name first, and each command then says the name.

Folders and long words become variables (`A=/var/cache/…`, said as `$A`), runs of words become arrays (`a=(--x …)`, said
as `"${a[@]}"`). The shell, bash, makes the very same words of both. Pure.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterator, Sequence

from agent.views.shell_lines import words

Segments = list[list[str]]
"""Commands in words; one that is joined of several by operators is several segments and the operators between them."""

WORTH = 40
"""A name must save so many letters in all; less is not worth remembering it."""
MOST_WORDS = 8
MOST_RUNS = 4
LEAST_WORDS = 4
"""A shorter run of words is no shorter as an array."""
_PLAIN = re.compile(r"[A-Za-z0-9_@%+=:,./$-]+")
"""Words that need no quotes: only in these is a folder replaced, because within quotes it may mean something else."""
_FOLDER = re.compile(r"(?<![A-Za-z0-9_.$/+-])(?:\$[A-Z](?=/)|(?=/[A-Za-z0-9_.+,@-]+/))(?:/[A-Za-z0-9_.+,@-]+)+")
_WORD = re.compile(r"(?<![A-Za-z0-9_.$/+,@-])[A-Za-z0-9][A-Za-z0-9_.+@-]{11,}(?![A-Za-z0-9_.+,@/-])")
"""A unit, a commit: words that are no path and long enough to be worth a name."""
_OPERATORS = frozenset({"&&", "||", "|", ";", ">", ">>", "<", "&"})


def named(commands: Sequence[str]) -> tuple[list[str], list[str]]:
    """What to type first, and the commands with the names in them. Without anything worth a name: ([], as they are)."""
    split = [words(command) for command in commands]
    if any(re.search(r"\$[A-Za-z]", word) for each in split for word in each if _PLAIN.fullmatch(word)):
        return [], list(commands)  # names of somebody else, with which ours could be confused
    before: list[str] = []
    for letter in string.ascii_uppercase[:MOST_WORDS]:
        found = _often(split)
        if not found:
            break
        before.append(f"{letter}={found}")
        split = [[_said(word, found, letter) for word in each] for each in split]
    for letter in string.ascii_lowercase[:MOST_RUNS]:
        run = _run([segment for each in split for segment in _segments(each)])
        if not run:
            break
        before.append(f"{letter}=({' '.join(run)})")
        split = [
            [word for part in _segments(each) for word in _shortened(part, run, f'"${{{letter}[@]}}"')]
            for each in split
        ]
    return before, [" ".join(each) for each in split]


def _segments(command: Sequence[str]) -> Segments:
    """The commands that this one is joined of, each operator as a segment of its own."""
    found: Segments = [[]]
    for word in command:
        if word in _OPERATORS:
            found += [[word], []]
        else:
            found[-1].append(word)
    return [each for each in found if each]


def _often(split: Sequence[Sequence[str]]) -> str:
    """The folder or word whose name saves most, "" when none is worth it."""
    seen: Counter[str] = Counter()
    for word in (word for each in split for word in each if _PLAIN.fullmatch(word)):
        seen.update(_WORD.findall(word))
        for found in _FOLDER.findall(word):
            head, *parts = found.split("/")
            least = 1 if head else 2
            seen.update("/".join((head, *parts[:count])) for count in range(least, len(parts) + 1))
    best = max(seen, key=lambda each: (_saved(each, seen[each]), each), default="")
    return best if best and _saved(best, seen[best]) >= WORTH else ""


def _saved(word: str, count: int) -> int:
    return count * (len(word) - 2) - len(word) - 3


def _said(word: str, found: str, letter: str) -> str:
    """The word with the name in place of what it stands for: a folder may go on with a slash, a word may not."""
    if not _PLAIN.fullmatch(word):
        return word
    after = "" if "/" in found else "/"
    return re.sub(rf"(?<![A-Za-z0-9_.$/+,@-]){re.escape(found)}(?![A-Za-z0-9_.+,@{after}-])", f"${letter}", word)


def _run(segments: Segments) -> list[str]:
    """The run of words that is repeated and saves most, [] when none is worth it."""
    best: list[str] = []
    gain = WORTH
    seen: set[tuple[str, ...]] = set()
    for first, one in enumerate(segments):
        for other in segments[first + 1 :]:
            for run in _common(one, other):
                if tuple(run) in seen:
                    continue
                seen.add(tuple(run))
                count = sum(_count(each, run) for each in segments)
                saved = count * (len(" ".join(run)) - 9) - len(" ".join(run)) - 5
                if saved >= gain:
                    best, gain = run, saved + 1
    return best


def _common(one: Sequence[str], other: Sequence[str]) -> Iterator[list[str]]:
    """The longest runs that two commands share.

    What is run behind a `--` stays to be read: a run from amid a command ends there, one from its start goes on only
    with more than a name.
    """
    for start in range(len(one)):
        for place in range(len(other)):
            if one[start] != other[place] or (start and place and one[start - 1] == other[place - 1]):
                continue
            length = 0
            while start + length < len(one) and place + length < len(other):
                word = one[start + length]
                if word != other[place + length] or word.startswith('"${'):
                    break
                length += 1
                if word == "--" and start:
                    break
            run = list(one[start : start + length])
            if "--" in run[:-1] and run[-2] == "--":
                run.pop()
            if len(run) >= LEAST_WORDS:
                yield run


def _count(segment: Sequence[str], run: Sequence[str]) -> int:
    return sum(list(segment[at : at + len(run)]) == run for at in range(len(segment)))


def _shortened(segment: Sequence[str], run: Sequence[str], name: str) -> Iterator[str]:
    at = 0
    while at < len(segment):
        if list(segment[at : at + len(run)]) == run:
            yield name
            at += len(run)
        else:
            yield segment[at]
            at += 1
