"""Asking the runner: an answer that cannot be understood is no answer, and never the end of the one who asked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from agent import runs
from agent.errors import DaemonUnreachable
from agent.model import Outcome
from agent.protocol import Request
from tests.support.fake_host import FakeHost

RUN = "01J0000000000000000000000A"


class Answers:
    """A runner that says these events and hangs up."""

    def __init__(self, *data: Mapping[str, Any], event: str = "ended") -> None:
        self._lines = [
            json.dumps({"id": RUN, "seq": n, "at": 1.0, "event": event, "data": dict(each)}).encode()
            for n, each in enumerate(data)
        ]

    def __enter__(self) -> Answers:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def send(self, line: bytes) -> bool:
        return bool(line)

    def receive(self, timeout_s: float) -> bytes | None:
        return self._lines.pop(0) if timeout_s and self._lines else None


class Ipc:
    def __init__(self, answers: Answers) -> None:
        self._answers = answers

    def connect(self, path: str, *, timeout_s: float) -> Answers:
        assert (path, timeout_s) == (runs.SOCKET, runs.CONNECT_S)
        return self._answers


def ask(*data: Mapping[str, Any], event: str = "ended") -> Any:
    host = FakeHost.build()
    object.__setattr__(host, "ipc", Ipc(Answers(*data, event=event)))
    return runs.ask(host, Request(do="run", id=RUN, runbook="restart-engine", subject="engine:chat"))


def test_the_end_of_a_run_is_its_outcome() -> None:
    run, decision = ask({"outcome": "succeeded", "summary": "1 token"})
    assert (run.outcome, run.summary, decision) == (Outcome.SUCCEEDED, "1 token", None)


@pytest.mark.parametrize("data", [{}, {"outcome": "vanished"}])
def test_an_outcome_of_another_version_is_an_error_that_the_asker_handles(data: Mapping[str, Any]) -> None:
    with pytest.raises(DaemonUnreachable, match="not known here"):
        ask(data)


def test_a_runner_that_hangs_up_has_said_nothing() -> None:
    assert ask() == (None, None)


def test_a_run_that_waits_for_a_reboot_has_no_outcome() -> None:
    run, decision = ask({"summary": "reboot at a quiet hour", "boot_id": "b"}, event="parked")
    assert (run.outcome, run.summary, decision) == (None, "reboot at a quiet hour", None)
