"""Commands on paper: a long one is broken with backslashes, so that what is typed line by line is still that command.

Pure functions over lines as `agent.steps.by_hand` writes them.
"""

from __future__ import annotations

import re

INDENT = "    "
"""Before a line that goes on with the next word. Where a word itself is broken there is none: it would become part."""
_WORD = re.compile(r"""(?:[^\s'"\\]|\\.|'[^']*'|"(?:\\.|[^"\\])*")+""")
_NOTE = "    # "
_BACK = 24
"""How many letters before its end a line may be broken, to break a word where one would expect it."""


def words(command: str) -> list[str]:
    """The words of a shell command, each quoted as it was written."""
    return _WORD.findall(command)


def parted(line: str) -> tuple[str, str]:
    """A line's command and the notes behind it; one of them is "" where there is none."""
    if line.startswith("#"):
        return "", line.lstrip("# ")
    spent = 0
    for word in _WORD.finditer(line):
        if word.group().startswith("#") and line[max(0, word.start() - 4) : word.start() + 2] == _NOTE:
            spent = word.start()
            break
    if not spent:
        return line, ""
    return line[:spent].rstrip(), ", ".join(part.strip() for part in line[spent + 2 :].split(_NOTE))


def wrapped(command: str, columns: int) -> list[str]:
    """The command in lines of at most so many columns (20 at least), to be typed as they stand."""
    columns = max(20, columns)
    lines: list[str] = []
    now = ""
    for word in words(command):
        lead = f"{now} " if now.strip() else now
        if len(lead) + len(word) + 2 <= columns:
            now = lead + word
            continue
        if now.strip():
            lines.append(f"{now} \\")
            now = INDENT
        if len(now) + len(word) + 2 > columns >= len(word) + 2 and not now.strip():
            now = word  # without its indent it fits; the blank before the backslash keeps it a word of its own
        elif len(now) + len(word) + 2 > columns:
            *whole, now = _pieces(now, word, columns)
            lines += [f"{piece}\\" for piece in whole]
        else:
            now += word
    lines += [now] if now.strip() or not lines else []
    return [row for line in lines for row in line.split("\n")]


def _pieces(lead: str, word: str, columns: int) -> list[str]:
    """A word that is longer than a line, in pieces; the first stands behind `lead`, the others begin their lines.

    A quotation is closed at the end of a piece and opened again in the next.
    """
    pieces = [lead]
    for atom in re.findall(r"""\\.|'[^']*'|"(?:\\.|[^"\\])*"|[^'"\\]""", word):
        if len(pieces[-1]) + len(atom) + 2 <= columns:
            pieces[-1] += atom
        elif len(atom) <= 2:
            pieces[-1:] = [*_broken(pieces[-1]), atom]
            pieces[-2:] = ["".join(pieces[-2:])]
        else:
            _fill(pieces, atom, columns)
    return pieces


def _broken(piece: str) -> tuple[str, str]:
    """A full line, broken where one would expect it: behind a slash, comma, colon or equals sign near its end."""
    cut = max(piece.rfind(mark) + 1 for mark in "/,=:")
    near = cut > len(piece) - _BACK and not set("'\"") & set(piece) and piece[:cut].strip()
    return (piece[:cut], piece[cut:]) if near else (piece, "")


def _fill(pieces: list[str], quoted: str, columns: int) -> None:
    """Add a quotation to the pieces, over as many as it takes."""
    mark, inside = quoted[0], quoted[1:-1]
    units = re.findall(r"\\.|.", inside) if mark == '"' else list(inside)
    if len(pieces[-1]) + 5 > columns:
        pieces.append("")
    pieces[-1] += mark
    for unit in units:
        if len(pieces[-1]) + len(unit) + 3 > columns:
            pieces[-1] += mark
            pieces.append(mark)
        pieces[-1] += unit
    pieces[-1] += mark
