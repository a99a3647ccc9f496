"""Reads what cmake, make, ninja and compilers print: how far a build is, and the first thing that went wrong. Pure.

Only known forms are quoted: a log may hold whatever a build script prints.
"""

from __future__ import annotations

import re

QUOTED = 240
"""Characters of an error that go into a page."""
_PERCENT = re.compile(r"^\[ {0,2}(\d{1,3})%\]", re.MULTILINE)
_NINJA = re.compile(r"^\[(\d{1,6})/(\d{1,6})\]", re.MULTILINE)
_ERRORS = (
    # gcc, clang: FILE:LINE:COLUMN: error: …  ("fatal error" for a missing header, a full disk)
    re.compile(r"^\S+:\d+:(?:\d+:)? (?:fatal )?error: .+$"),
    # nvcc's front end: FILE(LINE): error: …, error #20: …
    re.compile(r"^\S+\(\d+\): (?:catastrophic )?error(?: #\S+)?: .+$"),
    re.compile(r"^nvcc (?:fatal|error) *: .+$"),
    re.compile(r"^ptxas (?:fatal|error) *: .+$"),
    re.compile(r"^CMake Error(?: at \S+(?: \(\w+\))?)?:.*$"),
    # a compiler driver that lost its compiler: killed for memory, no room for its output
    re.compile(r"^(?:\S*/)?(?:cc|gcc|clang|[cg]\+\+|clang\+\+|cc1plus|cc1)(?:-[\d.]+)?: (?:fatal )?error: .+$"),
    re.compile(
        r"^(?:\S*/)?(?:ld|ld\.\w+|collect2|as|ar|ccache)(?:-[\d.]+)?: .*(?:error|cannot|failed|undefined|No space).*$"
    ),
    re.compile(r"^\{standard input\}: .*$"),
    re.compile(r"^\S.*: undefined reference to .+$"),
    re.compile(r"^.*No space left on device.*$"),
)
_LAST_RESORTS = (
    re.compile(r"^ninja: error: .+$"),
    re.compile(r"^make(?:\[\d+\])?: \*\*\* .+$"),
    re.compile(r"^ninja: build stopped: .+$"),
)


def percent(text: str) -> float | None:
    """How far the build is by the last line that says so: make's `[ 42%]` or ninja's `[12/340]`; None for neither."""
    made = [(match.start(), float(match[1])) for match in _PERCENT.finditer(text)]
    ran = [(found.start(), 100.0 * int(found[1]) / max(1, int(found[2]))) for found in _NINJA.finditer(text)]
    known = max((*made, *ran), default=None)
    return None if known is None else min(100.0, known[1])


def first_error(text: str, folder: str = "") -> str:
    """The first error in a log, one line, without our own `folder` in its paths; "" when none is known."""
    lines = text.splitlines()
    for patterns in (_ERRORS, _LAST_RESORTS):
        for index, line in enumerate(lines):
            if any(pattern.match(line) for pattern in patterns):
                return _quoted(lines, index, folder)
    return ""


def _quoted(lines: list[str], index: int, folder: str) -> str:
    """The line, and with CMake's the message that it indents below."""
    words = [lines[index].strip()]
    if words[0].startswith("CMake Error"):
        for line in lines[index + 1 : index + 8]:
            if line.strip() and not line.startswith(" "):
                break
            words.append(line.strip())
    text = " ".join(filter(None, words))
    if folder:
        text = text.replace(folder.rstrip("/") + "/", "")
    return text if len(text) <= QUOTED else f"{text[: QUOTED - 1]}…"
