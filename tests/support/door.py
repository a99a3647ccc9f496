"""A runner's door in this process: performs the shipped runbooks on a fake host, step by step, and undoes what fails.

What the real runner does around a run (ledger, locks, recovery) is left out; tests/unit/test_runner.py shows that.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from agent import execution, facts, runbook
from agent.config import Config
from agent.errors import HoldfastError
from agent.execution import Begun, Result, Work
from agent.host.files import RealFiles
from agent.model import Outcome
from agent.protocol import Event
from agent.steps import Performer, StepRefused
from agent.transcript import Transcript
from tests.support.fake_host import FakeHost, FakeIpc

SOCKET = "/run/holdfast-runner.sock"
RUNBOOKS = Path(__file__).resolve().parents[2] / "runbooks"


class Door:
    """The runner's end of the socket. asked: every request. leave_out: actions whose steps are passed over."""

    def __init__(self, host: FakeHost, config: Config, leave_out: Collection[str] = ()) -> None:
        self.host = host
        self.config = config
        self.leave_out = leave_out
        self.asked: list[Mapping[str, Any]] = []
        self._events: list[Event] = []

    def __enter__(self) -> Door:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def close(self) -> None:
        return None

    def send(self, line: bytes) -> bool:
        """One request, done at once."""
        request = json.loads(line)
        self.asked.append(request)
        book = runbook.load(RealFiles(), directories=(str(RUNBOOKS),)).by_id[request["runbook"]]
        kept = tuple(step for step in book.steps if step.use not in self.leave_out)
        transcript = Transcript(self.host, request["id"], self._events.append)
        inputs = book.resolved_inputs(request["args"])
        self._run(
            Work(
                self.host,
                self.config,
                replace(book, steps=kept),
                request["subject"],
                inputs,
                request["id"],
                transcript,
            )
        )
        return True

    def receive(self, timeout_s: float, limit: int = 0) -> bytes | None:
        """The next event; None when all is said."""
        return self._events.pop(0).model_dump_json().encode() if self._events else None

    def _run(self, work: Work) -> None:
        say, begun = work.transcript.write, list[Begun]()
        say("accepted", runbook=work.runbook.id, subject=work.subject)
        known = facts.seen_by_templates(work.host, work.config, work.subject, work.inputs)
        try:
            for index, step in enumerate(work.runbook.steps):
                place: dict[str, Any] = {"step": index, "name": step.name, "use": step.use}
                say("step_started", **place)
                action, target, plan = execution.planned(work, step, known)
                values = target.params.model_dump(mode="json")
                say("planned", **place, parameters=values, before=plan.before)
                if action.undo is not None and plan.before is not None:
                    begun.append(Begun(index, step, values, plan.before))
                done = Performer(work.host).perform(plan, step.timeout_s)
                say("step_ended", **place, ok=True, summary=done.summary, duration_s=0.0, output=done.output)
        except StepRefused as error:
            result = execution.undone(work, Result(Outcome.FAILED, error.message, code=error.code), begun)
            if begun:
                say("ended", outcome=result.outcome.value, summary=result.summary, code=result.code)
            else:
                say("refused", code=error.code, reason=error.message, not_before=None)
            return
        except HoldfastError as error:
            result = execution.undone(work, Result(Outcome.FAILED, error.message, code=error.code), begun)
            say("ended", outcome=result.outcome.value, summary=result.summary, code=result.code)
            return
        say("ended", outcome="succeeded", summary="all steps done", code="")


def with_door(
    host: FakeHost, config: Config | None = None, *, leave_out: Collection[str] = ()
) -> tuple[FakeHost, Door]:
    """The same host with a runner behind its socket, and that runner."""
    ends: dict[str, Any] = {}
    known = replace(host, ipc=FakeIpc(ends))
    door = Door(known, config or Config(), leave_out)
    known.ipc.ends[SOCKET] = door
    return known, door
