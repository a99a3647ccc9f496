"""The daemon's own thread, asked from another one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent import daemon
from agent.daemon import Daemon, Paths
from agent.errors import DaemonUnreachable
from agent.model import Alert, Urgency
from agent.pager import last_words
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
