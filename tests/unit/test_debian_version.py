"""Debian's order of versions: its own examples. The contract tier compares with dpkg itself."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.host.debian_version import compare, newest_last

VERSIONS = st.from_regex(r"([0-9]{1,2}:)?[0-9][0-9A-Za-z.+~]{0,8}(-[0-9A-Za-z.+~]{1,6}){0,2}", fullmatch=True)


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ("6.1.0-9-amd64", "6.1.0-40-amd64"),
        ("6.8.0-31-generic", "6.8.0-149-generic"),
        ("6.8.0-31-generic", "6.8.0-31-lowlatency"),
        ("1.0~rc1", "1.0"),
        ("1.0", "1.0+b1"),
        ("1.0~~", "1.0~"),
        ("9:1", "10:0"),
        ("550.54.15", "550.120"),
        ("1.0-1", "1.0-1.1"),
        ("1.0a", "1.0+"),
    ],
)
def test_the_newer_version_is_greater(older: str, newer: str) -> None:
    assert compare(older, newer) < 0 < compare(newer, older)
    assert max(older, newer, key=newest_last) == newer


@pytest.mark.parametrize(("left", "right"), [("1.0", "0:1.0"), ("1.0", "1.00"), ("1.0", "1.0-0"), ("a", "a")])
def test_what_dpkg_takes_for_the_same_is_equal(left: str, right: str) -> None:
    assert compare(left, right) == 0


@given(VERSIONS, VERSIONS, VERSIONS)
def test_it_is_an_order(a: str, b: str, c: str) -> None:
    assert (compare(a, b) > 0) == (compare(b, a) < 0)
    if compare(a, b) <= 0 and compare(b, c) <= 0:
        assert compare(a, c) <= 0
