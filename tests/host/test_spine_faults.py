"""The faults of a Sunday, really injected, on a booted host with the installed package and a real llama-server."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable

import pytest
from bed import BootedHost, freeze_thread, kill, stopped
from spine import Page, Watched, watched

Boot = Callable[..., BootedHost]
SUITES = ("bookworm", "trixie")
NOTHING_MORE_S = 20.0
"""Long enough for every check that is due within it to have looked again at least twice."""


def repaired(scene: Watched, finding: str, *, told_within_s: float = 60) -> Page:
    """The page that told the cause, once the repair is proven, told as over, and the engine serves."""
    page = scene.triggered(finding, told_within_s)
    scene.resolved(finding, 120)
    assert scene.engine.generates()
    assert scene.starts() == 1
    outcomes = [record["data"]["outcome"] for record in scene.ledger("outcome")]
    assert outcomes == ["succeeded"]
    assert {each.finding for each in scene.pages()} == {finding}
    return page


@pytest.mark.parametrize("suite", SUITES)
def test_a_killed_engine_without_restart_is_paged_restarted_proven_and_resolved(host: Boot, suite: str) -> None:
    scene = watched(host, suite)
    kill(scene.host, scene.engine.pid)
    assert "killed by SIGKILL" in repaired(scene, "engine-dead").message


@pytest.mark.parametrize("suite", SUITES)
def test_an_engine_that_exits_0_stays_dead_under_restart_on_failure_and_is_restarted(host: Boot, suite: str) -> None:
    scene = watched(host, suite, restart="on-failure")
    kill(scene.host, scene.engine.pid, signal.SIGTERM)
    assert "exit 0" in repaired(scene, "engine-dead").message


@pytest.mark.parametrize("suite", SUITES)
def test_a_crash_that_systemd_repairs_is_told_once_quietly_and_nothing_is_done(host: Boot, suite: str) -> None:
    scene = watched(host, suite, restart="on-failure")
    before = scene.engine.pid
    kill(scene.host, before)
    page = scene.triggered("engine-crashed", 30)
    assert page.severity == "info"
    assert "killed by SIGKILL" in page.summary + page.message
    scene.engine.wait_until_generates()
    after = scene.engine.pid
    time.sleep(NOTHING_MORE_S)
    assert scene.engine.pid == after
    told = [page for page in scene.pages() if page.action == "trigger"]
    assert [(page.finding, page.severity) for page in told] == [("engine-crashed", "info")]
    assert scene.starts() == 0


@pytest.mark.parametrize("suite", SUITES)
def test_a_stopped_process_is_wedged_and_restarted(host: Boot, suite: str) -> None:
    scene = watched(host, suite)
    with stopped(scene.host, scene.engine.pid):
        page = repaired(scene, "engine-wedged")
    assert "produces no tokens" in page.message
    assert "stillness" in page.message


@pytest.mark.parametrize("suite", SUITES)
def test_a_frozen_inference_thread_is_found_by_its_stillness_although_health_says_ok(host: Boot, suite: str) -> None:
    scene = watched(host, suite)
    with freeze_thread(scene.host, scene.engine.pid):
        assert scene.engine.client.get("/health").status == 200
        assert "stillness" in repaired(scene, "engine-wedged").message


def test_a_thread_frozen_in_the_middle_of_a_request_is_wedged_although_slots_answers(host: Boot) -> None:
    scene = watched(host, model="big", parallel=1)
    client = scene.engine.client
    with client.hung(1, n=3000), contextlib.ExitStack() as fault:
        scene.host.wait_for(lambda: '"is_processing":true' in client.get("/slots").body, 30, "the request to run")
        # Frozen at a bad moment /slots hangs as well; that is the idle case, so another moment is taken.
        for _ in range(20):
            held = fault.enter_context(freeze_thread(scene.host, scene.engine.pid))
            if client.get("/slots", timeout=1).ok:
                break
            held.release()
        first, second = client.get("/slots", timeout=1), client.get("/slots", timeout=1)
        assert first.ok
        assert first.body == second.body
        page = repaired(scene, "engine-wedged")
    assert "1 request without progress" in page.message
    assert "stillness" in page.message


def test_a_frozen_thread_is_found_under_20_requests_a_second(host: Boot) -> None:
    scene = watched(host)
    with scene.engine.client.load(20) as load:
        scene.host.wait_for(lambda: len(load.successes()) > 40, 30, "the load to run")
        with freeze_thread(scene.host, scene.engine.pid):
            assert "stillness" in repaired(scene, "engine-wedged").message
        repaired_at = time.time()
        scene.host.wait_for(lambda: any(at > repaired_at for at in load.successes()), 30, "users to be served again")
