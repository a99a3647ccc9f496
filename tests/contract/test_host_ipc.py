"""Real Unix sockets: long lines, endless lines, peers that hang up or do not read."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.errors import DaemonUnreachable, HostError, Unreachable
from agent.host import ipc


def test_lines_go_both_ways_and_say_who_is_there(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with ipc.Server(path, mode=0o600) as server, ipc.connect(path, 2) as client:
        assert (Path(path).stat().st_mode & 0o777) == 0o600
        end = server.accept(2)
        assert end is not None
        with end:
            assert client.send(b'{"a": 1}')
            assert client.send(b'{"b": 2}\n')
            assert [end.receive(2), end.receive(2)] == [b'{"a": 1}', b'{"b": 2}']
            assert (end.peer().pid, end.peer().uid) == (os.getpid(), os.getuid())
            big = b"x" * 500_000
            writer = threading.Thread(target=end.send, args=(big,))
            writer.start()
            assert client.receive(5, limit=len(big)) == big
            writer.join()
    assert not Path(path).exists()


def test_a_line_that_is_too_long_and_a_line_that_never_ends_are_told_apart() -> None:
    one, other = ipc.pair()
    with one, other:
        one.send(b"x" * 2000)
        with pytest.raises(Unreachable) as raised:
            other.receive(1, limit=1000)
        assert raised.value.kind == "too-large"
    one, other = ipc.pair()
    with one, other:
        with pytest.raises(Unreachable) as raised:
            other.receive(0.2)
        assert raised.value.kind == "timeout"


def test_an_end_that_hung_up_is_an_end_and_never_a_signal() -> None:
    one, other = ipc.pair()
    with other:
        one.send(b"last")
        one.close()
        assert other.receive(1) == b"last"
        assert other.receive(1) is None
        assert other.send(b"x") is False
        assert other.send(b"x") is False


def test_a_line_that_was_torn_off_is_not_a_line() -> None:
    here, there = socket.socketpair()
    with ipc.Lines(here) as end:
        there.sendall(b"whole\nhal")
        there.close()
        assert end.receive(1) == b"whole"
        assert end.receive(1) is None


def test_a_peer_that_does_not_read_cannot_hold_up_the_sender() -> None:
    one, other = ipc.pair()
    with one, other:
        sent = 0
        while one.send(b"x" * 60_000, timeout_s=0.3):
            sent += 1
            assert sent < 1000, "no buffer holds that much"
        assert one.send(b"x") is False  # and not half a line after half a line


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.write_text(""), os.mkfifo])
def test_no_daemon_is_unreachable(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "s")
    with pytest.raises(DaemonUnreachable) as raised:
        ipc.connect(str(tmp_path / "s"), 1)
    assert raised.value.exit_code == 69


def test_a_path_too_long_for_a_socket_is_unreachable(tmp_path: Path) -> None:
    with pytest.raises(DaemonUnreachable):
        ipc.connect(str(tmp_path / ("x" * 200)), 1)
    with pytest.raises(HostError):
        ipc.Server(str(tmp_path / ("x" * 200)))


def test_a_socket_left_by_the_dead_is_replaced_and_one_in_use_is_not(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    with ipc.Server(path):
        with pytest.raises(HostError, match="someone else"):
            ipc.Server(path)
        with ipc.connect(path, 1):
            pass
    Path(path).write_text("precious")
    with pytest.raises(HostError, match="not a socket"):
        ipc.Server(path)
    assert Path(path).read_text() == "precious"


def test_a_socket_handed_over_by_systemd_is_taken() -> None:
    here, there = socket.socketpair()
    with ipc.from_fd(here.fileno()) as end:
        here.close()
        there.sendall(b"hello\n")
        assert end.receive(1) == b"hello"
        assert end.peer().uid == os.getuid()
    there.close()
    with Path("/dev/null").open() as null, pytest.raises(HostError):
        ipc.from_fd(null.fileno())
