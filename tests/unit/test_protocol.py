"""Requests: what is wrong with one is said in few words, because the peer chose some of them."""

from __future__ import annotations

import json

import pytest

from agent.errors import UsageError
from agent.protocol import SAID_LIMIT, Request, parse


def test_what_is_said_about_a_request_is_bounded_whatever_its_keys_are_called() -> None:
    said = {"do": "run", "id": "x", **{f"{number} {'prompt ' * 100}": 1 for number in range(20)}}
    with pytest.raises(UsageError) as caught:
        parse(Request, json.dumps(said))
    assert len(caught.value.message) <= SAID_LIMIT
    assert caught.value.code == "request-invalid"
