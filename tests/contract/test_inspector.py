"""The inspector on a real socket: root's observations for the daemon, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent import inspector, plugin
from agent.errors import DaemonUnreachable, HostError
from agent.host import Host
from agent.host.ipc import Lines
from agent.model import Judgement, Moment, Observation, Observed, Status
from agent.plugin import Check, Target
from tests.support.child import Child
from tests.support.world import DAEMON_UID, READER_UID, Connection, World


def seen(host: Host, target: Target, before: Observed | None) -> Iterable[Observation]:
    yield Observation("unit", target.unit)
    yield Observation("last", before.value("unit") if before is not None else None, "", (("a", "b"),))


def slow(host: Host, target: Target, before: Observed | None) -> Iterable[Observation]:
    while True:
        pass


def broken(host: Host, target: Target, before: Observed | None) -> Iterable[Observation]:
    raise ValueError("a prompt: CANARY")


def check(identifier: str, observe: Any, *, as_root: bool = True, timeout_s: float = 5.0) -> Check:
    return Check(
        id=identifier, scope="engine", every_s=5, timeout_s=timeout_s, observe=observe,
        judge=lambda now, before, params: Judgement(Status.OK, ""), as_root=as_root,
    )  # fmt: skip


CHECKS = {
    each.id: each
    for each in (
        check("test.seen", seen),
        check("test.plain", seen, as_root=False),
        check("test.slow", slow, timeout_s=0.2),
        check("test.broken", broken),
    )
}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(plugin, "checks", lambda: CHECKS)
    return World(tmp_path)


def inspect(world: World, children: list[Child], identifier: str, before: Observed | None = None) -> list[Observation]:
    """What root observes, asked by the daemon's own function."""
    children.append(Child(lambda there: _answered(world, there)))
    host = replace(world.host(), ipc=Socket(children[-1].here))
    return list(inspector.ask(host, CHECKS[identifier], Target("engine:chat", None, 5.0), before))


def _answered(world: World, there: Lines) -> int:
    there.send(json.dumps(inspector.answer(world.host(), there)).encode())
    return 0


class Socket:
    """The `Ipc` primitive with one connection."""

    def __init__(self, end: Lines) -> None:
        self._end = end

    def connect(self, path: str, *, timeout_s: float) -> Lines:
        return self._end


def refused(world: World, said: bytes, uid: int) -> str:
    answer = inspector.answer(world.host(), Connection(said, uid))  # type: ignore[arg-type]
    return str(answer["error"]["code"])


def question(**changes: object) -> bytes:
    return json.dumps({"v": 1, "check": "test.seen", "subject": "engine:chat", **changes}).encode()


def test_the_daemon_gets_roots_observations(world: World, children: list[Child]) -> None:
    found = inspect(world, children, "test.seen")
    assert found == [Observation("unit", "chat.service"), Observation("last", None, "", (("a", "b"),))]


def test_what_was_observed_before_is_handed_back(world: World, children: list[Child]) -> None:
    before = Observed(Moment(1.0, 2.0, "b"), (Observation("unit", "earlier"),))
    assert inspect(world, children, "test.seen", before)[1].value == "earlier"


def test_an_observation_that_does_not_end_is_ended(world: World, children: list[Child]) -> None:
    with pytest.raises(HostError, match=r"not observed within 0\.2 s"):
        inspect(world, children, "test.slow")


def test_a_crash_says_what_it_was_and_not_what_it_saw(world: World, children: list[Child]) -> None:
    with pytest.raises(HostError, match="crashed: ValueError") as caught:
        inspect(world, children, "test.broken")
    assert "CANARY" not in caught.value.message


def test_an_inspector_that_dies_is_told(world: World, children: list[Child]) -> None:
    children.append(Child(lambda _: 1))
    host = replace(world.host(), ipc=Socket(children[-1].here))
    with pytest.raises(DaemonUnreachable):
        inspector.ask(host, CHECKS["test.seen"], Target("engine:chat", None, 5.0), None)


@pytest.mark.parametrize(
    ("said", "uid", "code"),
    [
        (question(), READER_UID, "permission"),
        (question(check="test.plain"), DAEMON_UID, "unknown-check"),
        (question(check="test.nothing"), DAEMON_UID, "unknown-check"),
        (question(check="os.system"), DAEMON_UID, "unknown-check"),
        (question(subject="engine:other"), DAEMON_UID, "unknown-subject"),
        (question(subject="../etc"), DAEMON_UID, "request-invalid"),
        (question(before={"at": 1}), DAEMON_UID, "request-invalid"),
        (question(before=[]), DAEMON_UID, "request-invalid"),
        (question(params={"path": "/etc/shadow"}), DAEMON_UID, "request-invalid"),
        (b"", DAEMON_UID, "request-invalid"),
        (b"\xff", DAEMON_UID, "request-invalid"),
    ],
)
def test_anything_else_is_refused(world: World, said: bytes, uid: int, code: str) -> None:
    assert refused(world, said, uid) == code


def test_a_configuration_that_others_can_write_is_refused(world: World) -> None:
    (world.root / "etc/holdfast/holdfast.toml").chmod(0o666)
    assert refused(world, question(), DAEMON_UID) == "configuration"
