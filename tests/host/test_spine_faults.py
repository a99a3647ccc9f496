"""The faults of a Sunday, really injected, on a booted host with the installed package and a real llama-server."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from bed import BootedHost, freeze_thread, kill
from spine import watched

Boot = Callable[..., BootedHost]


@pytest.mark.parametrize("suite", ["bookworm", "trixie"])
def test_a_killed_engine_without_restart_is_paged_restarted_proven_and_resolved(host: Boot, suite: str) -> None:
    scene = watched(host, suite)
    kill(scene.host, scene.engine.pid, 9)
    page = scene.triggered("engine-dead", 30)
    assert "killed by SIGKILL" in page.message
    scene.resolved("engine-dead", 60)
    assert scene.engine.generates()
    assert scene.starts() == 1


def test_a_frozen_inference_thread_is_found_by_its_stillness_although_health_says_ok(host: Boot) -> None:
    scene = watched(host)
    with freeze_thread(scene.host, scene.engine.pid):
        assert scene.engine.client.get("/health").status == 200
        page = scene.triggered("engine-wedged", 60)
        assert "stillness" in page.message
        scene.resolved("engine-wedged", 60)
    assert scene.engine.generates()
