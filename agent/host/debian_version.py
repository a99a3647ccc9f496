"""Comparing versions the way dpkg does (deb-version(7)), without asking dpkg: also how GRUB orders Debian's kernels."""

from __future__ import annotations

import re
from functools import cmp_to_key

_PART = re.compile(r"(\D*)(\d*)", re.ASCII)


def compare(left: str, right: str) -> int:
    """Negative when `left` is older, positive when it is newer, 0 when dpkg takes both for the same version."""
    left_epoch, left_upstream, left_revision = _split(left)
    right_epoch, right_upstream, right_revision = _split(right)
    return (
        left_epoch - right_epoch
        or _compare_part(left_upstream, right_upstream)
        or _compare_part(left_revision, right_revision)
    )


newest_last = cmp_to_key(compare)
"""A key for `sorted` and `max`: the newest version comes last."""


def _split(version: str) -> tuple[int, str, str]:
    """Epoch, upstream version and revision; without a revision it counts as 0, as dpkg has it."""
    epoch, colon, rest = version.partition(":")
    if not colon or not epoch.isascii() or not epoch.isdecimal():
        epoch, rest = "0", version
    upstream, _, revision = rest.rpartition("-") if "-" in rest else (rest, "", "")
    return int(epoch), upstream, revision


def _compare_part(left: str, right: str) -> int:
    """Alternating runs of other characters, by `_weight`, and of digits, as numbers."""
    left_runs, right_runs = _PART.findall(left), _PART.findall(right)
    for index in range(max(len(left_runs), len(right_runs))):
        left_text, left_digits = left_runs[index] if index < len(left_runs) else ("", "")
        right_text, right_digits = right_runs[index] if index < len(right_runs) else ("", "")
        for place in range(max(len(left_text), len(right_text))):
            difference = _weight(left_text[place : place + 1]) - _weight(right_text[place : place + 1])
            if difference:
                return difference
        number = int(left_digits or 0) - int(right_digits or 0)
        if number:
            return number
    return 0


def _weight(character: str) -> int:
    """A tilde sorts before the end, the end before letters, letters before everything else."""
    if character == "~":
        return -1
    if not character:
        return 0
    return ord(character) if character.isascii() and character.isalpha() else ord(character) + 256
