"""The kernel's log on real descriptors: a file in its place, the device, and the inspector that hands it over."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from agent import inspector
from agent.errors import FileTrouble
from agent.host import kernel_log, kmsg
from agent.host.ipc import Lines
from agent.protocol import Hand, parse
from tests.support.child import Child
from tests.support.world import DAEMON_UID, READER_UID, Connection, World


class Socket:
    """The `Ipc` primitive with one connection, or none."""

    def __init__(self, end: Lines | None = None) -> None:
        self._end = end

    def connect(self, path: str, *, timeout_s: float) -> Lines:
        assert self._end is not None, "nobody should be asked"
        return self._end


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "kmsg"
    path.write_text("6,1,1000,-;first\n")
    return path


def daemon_that_may_not(
    world: World, log: Path, children: list[Child], monkeypatch: pytest.MonkeyPatch, uid: int
) -> kmsg.RealKmsg:
    """A daemon that may not open the log itself, connected to an inspector in a process of its own."""
    real = kmsg.open_log

    def act(there: Lines) -> int:
        monkeypatch.setattr(kmsg, "open_log", lambda: real(str(log)))
        asked = there.receive(5.0) or b""
        inspector._send(there, inspector.answer(world.host(), Connection(asked, uid)))  # type: ignore[arg-type]
        return 0

    children.append(Child(act))

    def denied(device: str) -> int:
        raise FileTrouble(f"{device}: Operation not permitted", kind="denied", where=device)

    monkeypatch.setattr(kmsg, "open_log", denied)
    return kmsg.RealKmsg(Socket(children[-1].here), str(log))


def test_a_read_goes_on_where_the_last_one_ended_and_rewind_begins_again(log: Path) -> None:
    reader = kmsg.RealKmsg(Socket(), str(log))
    assert reader.read() == b"6,1,1000,-;first\n"
    assert reader.read() == b""
    with log.open("a") as file:
        file.write("6,2,2000,-;second\n")
    assert reader.read() == b"6,2,2000,-;second\n"
    reader.rewind()
    assert reader.read().count(b"\n") == 2
    reader.close()


def test_waiting_ends_when_there_is_something_to_read_and_not_before(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = os.open(path, os.O_RDWR)
    reader = kmsg.RealKmsg(Socket(), str(path))
    assert reader.read() == b""
    assert not reader.wait(0.01)
    os.write(writer, b"6,1,1000,-;first\n")
    assert reader.wait(10.0)
    assert reader.read() == b"6,1,1000,-;first\n"
    assert not reader.wait(0.01)
    reader.close()
    os.close(writer)


def test_what_is_not_the_kernels_log_is_not_opened(tmp_path: Path) -> None:
    for path, kind in (("/dev/null", "missing"), (str(tmp_path / "absent"), "missing")):
        with pytest.raises(FileTrouble) as caught:
            kmsg.open_log(path)
        assert caught.value.kind == kind


def test_the_inspector_hands_over_the_open_log_once(
    log: Path, tmp_path: Path, children: list[Child], monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = daemon_that_may_not(World(tmp_path), log, children, monkeypatch, DAEMON_UID)
    assert daemon.read() == b"6,1,1000,-;first\n"
    assert children[-1].wait() == 0
    with log.open("a") as file:
        file.write("6,2,2000,-;second\n")
    assert daemon.read() == b"6,2,2000,-;second\n"  # the inspector is gone
    daemon.close()


def test_who_may_not_have_it_is_told_that_the_log_cannot_be_read(
    log: Path, tmp_path: Path, children: list[Child], monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = daemon_that_may_not(World(tmp_path), log, children, monkeypatch, READER_UID)
    with pytest.raises(FileTrouble) as caught:
        daemon.read()
    assert caught.value.kind == "denied"


def test_an_inspector_that_dies_is_a_log_that_cannot_be_read(
    log: Path, tmp_path: Path, children: list[Child], monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = daemon_that_may_not(World(tmp_path), log, children, monkeypatch, DAEMON_UID)
    os.kill(children[-1].pid, signal.SIGKILL)
    children[-1].wait()
    with pytest.raises(FileTrouble):
        daemon.read()


def test_the_question_is_what_the_protocol_says() -> None:
    assert parse(Hand, kmsg.QUESTION).hand == "kernel-log"


def test_only_the_daemon_and_root_get_it(tmp_path: Path) -> None:
    world = World(tmp_path)
    for uid, expected in ((DAEMON_UID, "hand"), (READER_UID, "error"), (0, "hand")):
        answer = inspector.answer(world.host(), Connection(kmsg.QUESTION, uid))  # type: ignore[arg-type]
        assert expected in answer


@pytest.mark.parametrize("said", [b'{"v":1,"hand":"memory"}', b'{"v":1,"hand":"kernel-log","path":"/etc/shadow"}'])
def test_nothing_else_is_handed_over(tmp_path: Path, said: bytes) -> None:
    answer = inspector.answer(World(tmp_path).host(), Connection(said, DAEMON_UID))  # type: ignore[arg-type]
    assert answer["error"]["code"] == "request-invalid"


def test_what_a_check_observed_before_is_no_question_for_the_log(tmp_path: Path) -> None:
    said = b'{"v":1,"check":"gpu.xid","subject":"host","before":{"hand":"kernel-log"}}'
    answer = inspector.answer(World(tmp_path).host(), Connection(said, DAEMON_UID))  # type: ignore[arg-type]
    assert answer["error"]["code"] == "unknown-check"


@pytest.mark.skipif(not os.access(kmsg.DEVICE, os.R_OK) or os.geteuid() != 0, reason="needs root and a kernel log")
def test_the_real_device_numbers_its_records_without_a_gap() -> None:
    reader = kmsg.RealKmsg(Socket())
    found = kernel_log.excerpt(reader.read())
    assert found.lost == 0
    assert found.last is None or found.first is not None
    assert kernel_log.excerpt(reader.read()).lost == 0
    reader.close()
