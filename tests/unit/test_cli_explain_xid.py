"""`holdfast explain xid`: one code, all codes, and codes that nobody knows."""

from __future__ import annotations

import pytest

from agent.host import xid
from tests.support.cli import holdfast
from tests.support.fake_host import FakeHost


def test_a_code_is_explained_with_what_nvidia_says_to_do() -> None:
    said = holdfast("explain", "xid", "79", host=FakeHost.build())
    assert said.code == 0
    for words in ("GPU has fallen off the bus", "RESTART_BM", "gpu-lost, critical", "hardware"):
        assert words in said.out


def test_every_code_and_message_of_the_catalogue_is_explained_within_the_width() -> None:
    for key in xid.catalogue().entries:
        said = holdfast("explain", "xid", key, host=FakeHost.build(), width=60)
        assert said.code == 0, key
        assert all(len(line) <= 60 or "http" in line for line in said.out.splitlines()), said.out


def test_all_codes_are_listed_as_text_and_as_json() -> None:
    said = holdfast("explain", "xid", host=FakeHost.build(), width=120)
    assert len(said.out.splitlines()) == len(xid.catalogue().entries) + 1
    codes = holdfast("explain", "xid", "--json", host=FakeHost.build()).json["data"]["codes"]
    assert {"key", "name", "meaning", "immediate", "cause", "source"} <= set(codes[0])
    assert len(codes) == len(xid.catalogue().entries)


def test_one_code_as_json() -> None:
    data = holdfast("explain", "xid", "079", "--json", host=FakeHost.build()).json["data"]
    assert (data["id"], data["kind"], data["commands"]) == ("79", "Xid code", ["holdfast explain gpu-lost"])


@pytest.mark.parametrize("words", [("xid", "999"), ("xid", "seventy"), ("engine-dead", "79")])
def test_what_is_not_known_is_a_usage_error_that_says_what_to_do(words: tuple[str, str]) -> None:
    said = holdfast("explain", *words, host=FakeHost.build())
    assert said.code == 64
    assert "holdfast explain" in said.err
