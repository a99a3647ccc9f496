from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent import ledger
from agent.errors import Unreachable
from tests.support.world import DAEMON_UID, OPERATOR_UID, READER_UID, World, ended, refused, ulid


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, healthy=False)


def test_a_wedged_engine_is_restarted_and_proven(world: World) -> None:
    events = world.ask(world.request())
    assert ended(events)["outcome"] == "succeeded", ended(events)
    assert world.systemd.state()["starts"] == 1
