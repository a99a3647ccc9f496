"""The daemon's own thread, asked from another one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent import daemon
from agent.daemon import Daemon, Paths
from agent.errors import DaemonUnreachable
from agent.model import Alert, Status, Urgency
from agent.pager import last_words
from agent.protocol import Request
from agent.views.note import REHEARSALS
from tests.support.cli import RUN
from tests.support.fake_host import FakeHost

CONFIG = """
[[engine]]
name = "chat"
kind = "llama.cpp"
url = "http://127.0.0.1:8080"
[[receiver]]
name = "hook"
kind = "webhook"
url = "http://hook.test/"
"""
FILES = {"/etc/holdfast/holdfast.toml": CONFIG, last_words.MACHINE_ID: "0123456789abcdef\n"}


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(daemon.sdnotify, "SystemdNotifier", object)
    host = FakeHost.build(FILES)
    known = Daemon(host, Paths(store=str(tmp_path / "holdfast.db"), runbooks=()))
    yield known
    known._events.close()
    known._courier.stop()
    known._store.close()


def test_a_main_thread_that_is_stuck_is_an_answer_and_no_crash(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "MAIN_S", 0.01)
    with pytest.raises(DaemonUnreachable, match="busy"):
        made._in_main(lambda: None)


def test_what_is_no_longer_configured_leaves_no_series(made: Any) -> None:
    alert = Alert("a", "holdfast/01234567/x/host", "trigger", Urgency.INFO, "t", "b", "box", "host", "x", 1.0, 1.0)
    made._store.commit(enqueue=[("gone", alert), ("hook", alert)])
    made._tokens = {"chat": 1.0, "old": 2.0}
    seen = made._snapshot()
    assert dict(seen.last_token_at) == {"chat": 1.0}
    assert dict(seen.outbox_depth) == {"hook": 1}


def test_a_rehearsal_that_did_not_work_is_told_once_it_is_known(made: Any) -> None:
    key = ("holdfast.rehearsal", "host")
    made._report_on_ourselves(made._host.clock.now())
    assert key not in made._reconciler.results, "nothing is known before the first look"
    made._rehearser.lines, made._rehearser.trouble = (), "a rebuild of chat did not work when it was rehearsed"
    made._report_on_ourselves(made._host.clock.now())
    assert made._reconciler.results[key].status is Status.WARNING
    assert [each.finding for each in made._reconciler.open_incidents()] == ["rehearsal-failing"]
    made._rehearser.trouble = ""
    made._report_on_ourselves(made._host.clock.now())
    assert made._reconciler.open_incidents() == []


def test_a_rehearsal_that_is_due_is_asked_for_and_what_is_said_of_it_is_kept(
    made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Request] = []
    due = Request(do="rehearse", id=RUN, runbook="rebuild-lab", subject="engine:chat")

    def tick(*_: object) -> Request:
        made._rehearser.lines = ("a rebuild of chat has never been proven by a rehearsal",)
        return due

    monkeypatch.setattr(made._rehearser, "tick", tick)
    monkeypatch.setattr(made, "_follow_rehearsal", asked.append)
    made._rehearse(made._host.clock.now())
    while not asked:
        time.sleep(0.01)
    assert asked == [due]
    assert made._store.get(REHEARSALS) == ["a rebuild of chat has never been proven by a rehearsal"]
