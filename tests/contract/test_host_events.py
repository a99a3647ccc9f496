"""Real processes that end while they are watched."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator

import pytest

from agent.host.events import RealEvents


@pytest.fixture
def events() -> Iterator[RealEvents]:
    watching = RealEvents()
    yield watching
    watching.close()


def test_a_process_that_ends_ends_the_wait(events: RealEvents) -> None:
    sleeper = subprocess.Popen(["sleep", "600"])
    events.watch_process(sleeper.pid, "engine:chat")
    assert events.wait(0.05) == []
    threading.Timer(0.2, sleeper.kill).start()
    assert events.wait(600) == ["engine:chat"]
    sleeper.wait()
    assert events.wait(0.05) == []  # told once


def test_a_process_that_is_gone_already_is_told(events: RealEvents) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    events.watch_process(gone.pid, "engine:chat")
    assert events.wait(5) == ["engine:chat"]


def test_what_is_forgotten_is_not_told(events: RealEvents) -> None:
    with subprocess.Popen(["sleep", "600"]) as sleeper:
        events.watch_process(sleeper.pid, "a")
        events.watch_process(sleeper.pid, "a")
        events.watch_process(sleeper.pid, "b")
        events.forget("a")
        sleeper.kill()
        assert events.wait(5) == ["b"]


def test_waking_ends_a_wait_and_waiting_costs_nothing(events: RealEvents) -> None:
    threading.Timer(0.3, events.wake).start()
    cpu = time.thread_time()
    assert events.wait(600) == []
    assert time.thread_time() - cpu < 0.02
