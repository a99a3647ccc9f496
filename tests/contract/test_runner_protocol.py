"""The runner as real processes on real sockets: killed at every act, flooded, stopped, left by its client."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent import ledger, protocol, recover, runner, transcript
from agent.host import ipc, spawn
from agent.host.commands import PATH
from agent.host.ipc import Lines
from agent.ledger import Kind
from agent.protocol import Request
from tests.support.child import Child
from tests.support.world import UNIT, QuickClock, World, ended, refused, sigkill

ACTS = range(1, 61)
"""A restart has fewer: tests/unit/test_recover.py makes sure."""
REPOSITORY = Path(__file__).resolve().parents[2]


class RealSleep(QuickClock):
    """Sleeps for real, so that a test can act while a run waits."""

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


def run_in_child(world: World) -> Child:
    def act(there: Lines) -> int:
        signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
        return runner.answer(world.host(), there, lambda: bool(asked))

    asked: list[int] = []
    return Child(act)


def records(world: World, kind: Kind) -> list[ledger.Record]:
    contents = ledger.read(world.host())
    assert ledger.verify(contents) == ()
    return [record for record in contents.records if record.kind is kind]


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


# --- killed ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("act", ACTS)
def test_a_runner_that_is_sigkilled_at_any_act_leaves_one_outcome(
    tmp_path: Path, act: int, children: list[Child]
) -> None:
    world = World(tmp_path, healthy=False)
    world.systemd.set(ignores_sigterm=True)
    world.acts.die_at, world.acts.die = act, sigkill
    children.append(run_in_child(world))
    request = world.request()
    children[0].say(request)
    told = list(children[0].events())
    killed = children[0].wait() == -signal.SIGKILL
    again = world.restarted()
    children.append(Child(lambda _: recover.main(again.host())))
    assert children[1].wait() == 0
    outcomes = records(again, Kind.OUTCOME)
    assert len(outcomes) == len(records(again, Kind.ATTEMPT))
    state = again.systemd.state()
    assert state["ActiveState"] == "active"
    assert state["starts"] <= 1
    assert killed or ended(told)["outcome"] == "succeeded"
    if outcomes:
        kept = transcript.events(again.host(), request.id)
        assert [event.event for event in kept].count("ended") == 1
        assert kept[: len(told)] == tuple(told)


def test_two_recoveries_at_once_record_one_outcome(tmp_path: Path, children: list[Child]) -> None:
    world = World(tmp_path, healthy=False)
    undisturbed = World(tmp_path / "undisturbed", healthy=False)
    undisturbed.ask(undisturbed.request())
    world.acts.die = sigkill
    world.acts.die_at = undisturbed.acts.seen.index(f"after systemctl stop --no-block {UNIT}") + 1
    children.append(run_in_child(world))
    children[0].say(world.request())
    assert children[0].wait() == -signal.SIGKILL
    again = world.restarted()
    children.extend(Child(lambda _: recover.main(again.host())) for _ in range(4))
    assert [child.wait() for child in children[1:]] == [0, 0, 0, 0]
    assert len(records(again, Kind.OUTCOME)) == 1
    assert again.systemd.state()["starts"] == 1


# --- in flight ---------------------------------------------------------------------------------------------------


@pytest.fixture
def waiting(tmp_path: Path) -> World:
    """A world whose engine survives SIGKILL, so that a run waits for half a minute."""
    world = World(tmp_path, healthy=False)
    world.systemd.set(ignores_sigterm=True, unkillable=True)
    world.clock = RealSleep()
    stat = (Path("/proc") / str(os.getpid()) / "stat").read_text()
    world.write("proc/1/stat", stat)
    return world


def begin(world: World, children: list[Child]) -> Request:
    """Start a run and come back when it waits for the processes to die."""
    children.append(run_in_child(world))
    request = world.request()
    children[-1].say(request)
    world.write(f"proc/{children[-1].pid}/stat", Path(f"/proc/{children[-1].pid}/stat").read_text())
    until(lambda: bool(world.systemd.state()["stops"]))
    return request


def test_a_second_run_on_the_same_engine_is_refused_and_names_the_first(waiting: World, children: list[Child]) -> None:
    request = begin(waiting, children)
    children.append(run_in_child(waiting))
    children[-1].say(waiting.request())
    answer = list(children[-1].events())
    assert refused(answer) == "run-in-flight"
    assert request.id in answer[0].data["reason"]
    assert len(records(waiting, Kind.ATTEMPT)) == 1


def test_a_recovery_leaves_a_run_alone_that_still_lives(waiting: World, children: list[Child]) -> None:
    begin(waiting, children)
    children.append(Child(lambda _: recover.main(waiting.host())))
    assert children[-1].wait() == 0
    assert records(waiting, Kind.OUTCOME) == []


def test_a_client_that_hangs_up_does_not_end_the_run(waiting: World, children: list[Child]) -> None:
    begin(waiting, children)
    children[0].here.close()
    waiting.systemd.set(unkillable=False, ActiveState="failed", SubState="failed", Result="signal", MainPID=0)
    assert children[0].wait() == 0
    assert [record.data["outcome"] for record in records(waiting, Kind.OUTCOME)] == ["succeeded"]


def test_a_follower_sees_the_run_from_its_beginning_to_its_end(waiting: World, children: list[Child]) -> None:
    request = begin(waiting, children)
    children.append(run_in_child(waiting))
    children[-1].say(waiting.request("follow", id=request.id))
    waiting.systemd.set(unkillable=False, ActiveState="failed", SubState="failed", Result="signal", MainPID=0)
    seen = list(children[-1].events())
    assert seen[0].event == "accepted"
    assert ended(seen)["outcome"] == "succeeded"
    assert seen == list(children[0].events())


def test_a_run_that_is_told_to_stop_undoes_what_it_began(waiting: World, children: list[Child]) -> None:
    request = begin(waiting, children)
    children.append(run_in_child(waiting))
    children[-1].say(waiting.request("stop", id=request.id))
    until(lambda: bool(records(waiting, Kind.STOP)))
    waiting.systemd.set(unkillable=False, ActiveState="failed", SubState="failed", Result="signal", MainPID=0)
    assert ended(list(children[-1].events()))["outcome"] == "stopped"
    assert waiting.systemd.state()["ActiveState"] == "active"
    assert waiting.systemd.state()["starts"] == 1


# --- the real entry point ----------------------------------------------------------------------------------------


ENTRY = """
import sys
from agent import runner
from agent.host.real import real_host
sys.exit(runner.main(real_host(sys.argv[1])))
"""


def test_the_runner_answers_on_descriptor_nought(tmp_path: Path) -> None:
    """As systemd starts it: the socket is fd 0. Here it may only refuse: this host has no runner's directory."""
    here, there = ipc.pair()
    program = [
        sys.executable, "-c",
        ENTRY, str(tmp_path),
    ]  # fmt: skip
    process = subprocess.Popen(program, stdin=there.fileno(), cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
    there.close()
    here.send(b"rm -rf /")
    answer = here.receive(20.0)
    assert answer is not None
    assert json.loads(answer)["data"]["code"] == "request-invalid"
    _, said = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "request-invalid" in said
    here.close()


def test_a_flood_of_connections_that_say_nothing_useful_is_counted_and_the_runner_still_serves(
    tmp_path: Path, children: list[Child]
) -> None:
    world = World(tmp_path, healthy=False)
    for _ in range(100):
        child = run_in_child(world)
        children.append(child)
        child.here.send(b"{}")
    for child in children:
        child.wait()
    assert len(records(world, Kind.REFUSED)) == 1
    children.append(run_in_child(world))
    children[-1].say(world.request())
    assert ended(list(children[-1].events()))["outcome"] == "succeeded"


def test_a_connection_that_says_nothing_does_not_hold_its_place(
    tmp_path: Path, children: list[Child], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "REQUEST_S", 0.2)
    children.append(run_in_child(World(tmp_path)))
    children[0].here.send(b"{" + b" " * 100)
    assert children[0].wait() == 0
    children.append(run_in_child(World(tmp_path)))
    assert refused(list(children[1].events())) == "no-request"


def test_a_request_without_end_is_refused(tmp_path: Path, children: list[Child]) -> None:
    children.append(run_in_child(World(tmp_path)))
    children[0].here.send(b"x" * (protocol.MAX_REQUEST_BYTES + 10))
    assert refused(list(children[0].events())) == "request-too-large"


def test_a_runner_that_the_command_line_starts_has_an_environment_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    started: dict[str, Any] = {}
    monkeypatch.setenv("LD_PRELOAD", "/home/x/evil.so")
    monkeypatch.setenv("HOLDFAST_BOOT_ID", "abc")
    monkeypatch.setattr(spawn.subprocess, "Popen", lambda argv, **options: started.update(options))
    spawn.runner().close()
    assert started["env"] == {"PATH": PATH, "LC_ALL": "C.UTF-8", "HOLDFAST_BOOT_ID": "abc"}
