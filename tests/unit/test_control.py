"""The control socket: who is believed."""

from __future__ import annotations

import pytest

from agent.control import on_behalf_of


@pytest.mark.parametrize(
    ("who", "claimed", "believed"),
    [
        ("root", "ada", "ada"),
        ("root", "", "root"),
        ("root", None, "root"),
        ("root", "ada\x1b[2J", "root"),
        ("eve", "ada", "eve"),
        ("eve", "root", "eve"),
    ],
)
def test_only_root_may_say_for_whom_it_asks(who: str, claimed: object, believed: str) -> None:
    assert on_behalf_of(who, claimed) == believed
