"""How a sheet fits on one A4 page: the largest type, in one or two columns, at which all of it does. Pure.

Commands are set in Courier, whose letters are all 0.6 of its size wide, or a little narrower; all else in Helvetica,
whose widths are those of Adobe's font metrics (Core 14 AFM, Helvetica and Helvetica-Bold). Lengths are points, 1/72
inch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from agent.views.sheet import Line, Part, Sheet
from agent.views.shell_lines import wrapped
from agent.views.shell_names import named

WIDTH, HEIGHT = 595.28, 841.89
"""A4."""
MARGIN = 32.0
"""12 mm at the sides, for a binder's holes."""
EDGE = 22.0
"""8 mm above and below: office printers leave 4 to 6 mm blank."""
GAP = 12.0
"""Between two columns."""
LEADING = 1.08
"""Height of a line, as a multiple of its size."""
INDENT = 6.0
"""Of what stands below a step's name."""
PLAIN = ((11.5, 1, 1.0), (10.0, 1, 1.0), (9.5, 1, 1.0), (9.0, 1, 1.0), (9.0, 2, 1.0), (8.5, 1, 1.0), (8.5, 2, 1.0))
"""Sizes, numbers of columns and widths of Courier's letters (1: as they are), the best to read first."""
DENSE = (*PLAIN, (8.0, 1, 1.0), (8.0, 2, 1.0), (8.5, 2, 0.84), (8.0, 2, 0.84), (8.0, 2, 0.78))
"""The same with names for what is repeated. Nothing smaller than 8 points is legible at arm's length."""
_HELVETICA = (
    278, 278, 355, 556, 556, 889, 667, 191, 333, 333, 389, 584, 278, 333, 278, 278, 556, 556, 556, 556, 556, 556, 556,
    556, 556, 556, 278, 278, 584, 584, 584, 556, 1015, 667, 667, 722, 722, 667, 611, 778, 722, 278, 500, 667, 556, 833,
    722, 778, 667, 778, 722, 667, 611, 722, 667, 944, 667, 667, 611, 278, 278, 278, 469, 556, 333, 556, 556, 500, 556,
    556, 278, 556, 556, 222, 222, 500, 222, 833, 556, 556, 556, 556, 333, 500, 278, 556, 500, 722, 500, 500, 500, 334,
    260, 334, 584,
)  # fmt: skip
"""Thousandths of the size, from space to tilde."""
BRIEF = 250
"""Letters of what a long runbook is for; the rest of it stands in its file and in every other format."""
BOLD_IS_WIDER = 1.08
"""Helvetica-Bold's lower-case letters are up to a tenth wider."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of type. font: "mono", "text" or "bold"; above: space before it; keep: not the last of its column.

    tail: words behind a command, in text. stretch: how wide Courier's letters are set.
    """

    font: str
    size: float
    text: str
    indent: float = 0.0
    above: float = 0.0
    keep: bool = False
    tail: str = ""
    stretch: float = 1.0

    @property
    def height(self) -> float:
        """What it takes of a column."""
        return self.above + self.size * LEADING


@dataclass(frozen=True, slots=True)
class Laid:
    """A sheet in rows: those across the page at its top, then its columns, and the last line at its foot.

    count: how many columns a page has; there are more where it does not fit on one.
    """

    size: float
    head: tuple[Row, ...]
    columns: tuple[tuple[Row, ...], ...]
    foot: tuple[Row, ...]
    count: int
    fits: bool = True


def laid(sheet: Sheet) -> Laid:
    """The sheet in the largest type in which it fits on one page. `fits` is False where not even the smallest does."""
    shorter = shortened(sheet)
    for each, style in [(sheet, style) for style in PLAIN] + [(shorter, style) for style in DENSE]:
        found = _laid(each, *style)
        if found.fits:
            return found
    return _laid(shorter, *DENSE[-1])


def shortened(sheet: Sheet) -> Sheet:
    """The same sheet with names for what its commands repeat, where that is worth it."""
    before, commands = named([line.command for part in sheet.parts for line in part.lines if line.command])
    if not before:
        return sheet
    left = iter(commands)
    values = _values(before)

    def short(line: Line) -> Line:
        words = line.words
        for name, value in values:
            words = re.sub(rf"{re.escape(value)}(?![A-Za-z0-9_+-])", f"${name}", words)
        return Line(next(left) if line.command else "", words)

    parts = tuple(replace(part, lines=tuple(map(short, part.lines))) for part in sheet.parts)
    folders, arrays = [[each for each in before if ("=(" in each) is of] for of in (False, True)]
    said = [" ".join(folders), *arrays] if folders else arrays
    names = Part(0, "First, in the same bash", lines=tuple(map(Line, said)))
    brief = tuple((label, _brief(words)) for label, words in sheet.before)
    return replace(sheet, before=brief, parts=(names, *parts))


def _values(before: Sequence[str]) -> list[tuple[str, str]]:
    """What each name of a folder or word stands for, the longest first."""
    found: dict[str, str] = {}
    for name, _, value in (each.partition("=") for each in before if "=(" not in each):
        found[name] = re.sub(r"\$([A-Z])", lambda inner: found[inner[1]], value)
    return sorted(found.items(), key=lambda each: -len(each[1]))


def _brief(words: str) -> str:
    """The first sentences of a text: as many as stand in about two lines."""
    sentences: list[str] = re.findall(r".+?[.](?:\s|$)", f"{words} ") or [words]
    kept = sentences[0]
    for each in sentences[1:]:
        if len(kept) + len(each) > BRIEF:
            break
        kept += each
    return kept.strip()


def top(head: Sequence[Row]) -> float:
    """How high the columns begin, from the bottom of the page; a rule is drawn just above."""
    return HEIGHT - EDGE - sum(row.height for row in head) - 8.0


def column_width(columns: int) -> float:
    """The width of each column."""
    return (WIDTH - 2 * MARGIN - GAP * (columns - 1)) / columns


def _laid(sheet: Sheet, size: float, count: int, stretch: float) -> Laid:
    head = tuple(_head(sheet, size))
    foot = tuple(_said("text", 7.0, sheet.foot, WIDTH - 2 * MARGIN))
    rows = list(_body((*sheet.parts, *sheet.after), size, column_width(count), stretch))
    room = top(head) - EDGE - sum(row.height for row in foot) - 6.0
    columns: list[tuple[Row, ...]] = []
    while rows:
        taken = _taken(rows, room)
        columns.append(tuple(rows[:taken]))
        rows = rows[taken:]
    fits = len(columns) <= count
    return Laid(size, head, tuple(columns), foot, count, fits)


def _taken(rows: Sequence[Row], room: float) -> int:
    """How many rows a column takes; a step's name is not left alone at its end."""
    used, taken = 0.0, 0
    for row in rows:
        used += row.height - (row.above if not taken else 0.0)
        if used > room:
            break
        taken += 1
    while 1 < taken < len(rows) and rows[taken - 1].keep:
        taken -= 1
    return max(1, taken)


def _head(sheet: Sheet, size: float) -> Iterator[Row]:
    width = WIDTH - 2 * MARGIN
    yield from _said("bold", size + 5.0, sheet.title, width)
    about = "  ·  ".join(f"{label}: {words}" for label, words in sheet.about)
    yield from _said("text", size, about, width, above=2.0)
    for label, words in sheet.before:
        yield from _said("text", size, f"{label}: {words}", width, above=2.0)


def _body(parts: Iterable[Part], size: float, width: float, stretch: float) -> Iterator[Row]:
    letter = 0.6 * size * stretch
    columns = int((width - INDENT) / letter)
    for part in parts:
        name = f"{part.number}. {part.name}" if part.number else part.name
        name += f" ({part.mark})" if part.mark else ""
        yield from _said("bold", size + 0.5, name, width, above=size * 0.3, keep=True)
        for line in part.lines:
            rows = wrapped(line.command, columns) if line.command else []
            note = f"– {line.words}" if line.command and line.words else line.words
            left = width - INDENT - letter * (len(rows[-1]) + 1) if rows else 0.0
            tail = note if rows and width_of(note, size) <= left else ""
            for index, row in enumerate(rows):
                last = index == len(rows) - 1
                above = 0.0 if index else size * 0.06
                yield Row("mono", size, row, INDENT, above, not last, tail if last else "", stretch)
            if note and not tail:
                yield from _said("text", size, note, width, indent=INDENT * 2 if rows else INDENT)


def _said(
    font: str, size: float, text: str, width: float, *, indent: float = 0.0, above: float = 0.0, keep: bool = False
) -> Iterator[Row]:
    """Words as rows; only the first has space above."""
    now = ""
    for word in text.split():
        longer = f"{now} {word}" if now else word
        if now and width_of(longer, size, bold=font == "bold") > width - indent:
            yield Row(font, size, now, indent, above, keep)
            now, above = word, 0.0
        else:
            now = longer
    yield Row(font, size, now, indent, above, keep)


def width_of(text: str, size: float, *, bold: bool = False) -> float:
    """How wide words in Helvetica are; letters that are not in the table count as wide ones."""
    units = sum(_HELVETICA[ord(each) - 32] if " " <= each <= "~" else 700 for each in text)
    return units * size / 1000 * (BOLD_IS_WIDER if bold else 1.0)
