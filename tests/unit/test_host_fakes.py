"""The fakes and the recorder: what is not known is objected to, and what was recorded answers the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.errors import CommandFailed, FileTrouble, Unreachable
from agent.host import Completed, Host, Reply, Space
from agent.model import Moment
from tests.support.fake_host import FakeHost, File, Link, Special, in_turn, timed_out, unreachable
from tests.support.recorder import Recorder


def test_a_question_without_an_answer_is_objected_to() -> None:
    host = FakeHost.build()
    with pytest.raises(AssertionError, match="systemctl show x"):
        host.run(["systemctl", "show", "x"], timeout_s=1)
    with pytest.raises(AssertionError, match="http://a/b"):
        host.http("GET", "http://a/b", timeout_s=1)
    with pytest.raises(AssertionError, match="nvml"):
        host.child.ask("nvml", deadline_s=1)
    with pytest.raises(AssertionError, match="/run/x"):
        host.ipc.connect("/run/x", timeout_s=1)
    with pytest.raises(AssertionError, match="/var"):
        host.files.space("/var")


def test_commands_fit_by_word_and_by_rest() -> None:
    host = FakeHost.build(
        commands={"a * c": "one", "b ...": 3, ("d", "e f"): Completed((), 0, "x", "", 0), "t": timed_out()}
    )
    assert host.run(["a", "b", "c"], timeout_s=1).stdout == "one"
    assert host.run(["b", "x", "y"], timeout_s=1).rc == 3
    assert host.run(["d", "e f"], timeout_s=1).stdout == "x"
    with pytest.raises(CommandFailed):
        host.run(["t"], timeout_s=1)
    with pytest.raises(AssertionError):
        host.run(["a", "b"], timeout_s=1)
    assert host.run.calls[0] == ("a", "b", "c")


def test_answers_come_in_turn_and_the_last_stays() -> None:
    host = FakeHost.build(http={"http://a/": in_turn(503, unreachable("timeout"), {"ok": True})})
    assert host.http("GET", "http://a/", timeout_s=1).status == 503
    with pytest.raises(Unreachable):
        host.http("GET", "http://a/", timeout_s=1)
    assert host.http("GET", "http://a/", timeout_s=1).json() == {"ok": True}
    assert host.http("GET", "http://a/", timeout_s=1).json() == {"ok": True}


def test_a_reply_over_the_callers_limit_is_too_large() -> None:
    host = FakeHost.build(http={"POST http://a/*": "x" * 100})
    with pytest.raises(Unreachable):
        host.http("POST", "http://a/b", timeout_s=1, limit=99)


def test_the_clock_moves_only_when_told() -> None:
    clock = FakeHost.build().clock
    start = clock.now()
    assert clock.now() == start
    clock.sleep(5)
    assert clock.now().since(start) == 5
    clock.advance(1, wall_step=-3600)
    assert clock.now().since(start) == 6
    clock.reboot()
    assert clock.now().boot_id != start.boot_id


def test_files_in_memory_answer_as_real_ones() -> None:
    host = FakeHost.build(
        {
            "/etc/a": "x",
            "/etc/l": Link("a"),
            "/etc/f": Special(),
            "/etc/m": File("y", 0o600, 7),
            "/etc/d": FileTrouble("no", kind="denied"),
        }
    )
    assert host.files.listdir("/etc") == ["a", "d", "f", "l", "m"]
    assert host.files.read_text("/etc/l") == "x"
    assert host.files.realpath("/etc/l") == "/etc/a"
    assert host.files.stat("/etc/l").is_link
    assert (host.files.stat("/etc/m").mode, host.files.stat("/etc/m").uid) == (0o600, 7)
    assert host.files.stat("/etc").is_dir
    for path, kind in {"/etc/f": "other", "/etc/d": "denied", "/x": "missing", "/etc": "other"}.items():
        with pytest.raises(FileTrouble) as trouble:
            host.files.read_text(path)
        assert trouble.value.kind == kind
    host.files.append_durable("/var/lib/log", "one")
    host.files.append_durable("/var/lib/log", "two")
    assert host.files.read_text("/var/lib/log") == "one\ntwo\n"
    host.files.full = True
    with pytest.raises(FileTrouble):
        host.files.write_atomic("/etc/a", "y")
    assert host.files.read_text("/etc/a") == "x"


def ask_everything(host: Host) -> list[object]:
    said: list[object] = [
        host.files.read_text("/lib/a"),
        host.files.exists("/etc/b"),
        host.files.exists("/etc/none"),
        host.files.listdir("/usr/lib"),
        host.files.realpath("/lib/a"),
        host.files.space("/var"),
        host.clock.now(),
        host.run(["echo", "hi"], timeout_s=1).stdout,
        host.run(["echo", "hi"], timeout_s=1).stdout,
        host.http("POST", "http://a/", timeout_s=1, json={"n": 1}).json(),
        host.child.ask("nvml", deadline_s=1),
    ]
    for act in (
        lambda: host.http("GET", "http://a/x", timeout_s=1),
        lambda: host.run(["sleep"], timeout_s=1),
        lambda: host.files.read_text("/etc/denied"),
    ):
        with pytest.raises((Unreachable, CommandFailed, FileTrouble)) as raised:
            act()
        said.append((type(raised.value), getattr(raised.value, "kind", raised.value.code)))
    return said


def test_what_was_recorded_answers_the_same(tmp_path: Path) -> None:
    real = FakeHost.build(
        {"/usr/lib/a": "text\r\n", "/lib": Link("usr/lib"), "/etc/b": "b",
         "/etc/denied": FileTrouble("no", kind="denied")},
        commands={"echo hi": in_turn("one\n", "two\n"), "sleep": timed_out()},
        http={"POST http://a/": Reply(200, b'{"a": [1]}', {"content-type": "application/json"}),
              "http://a/x": unreachable("refused")},
        child={"nvml": {"code": 9}},
        spaces={"/var": Space(10, 5, 3, 2, read_only=False)},
        moments=[Moment(1.5, 2.5, "b")],
    )  # fmt: skip
    recorder = Recorder(real)
    said = ask_everything(recorder.host)
    recorder.write(tmp_path)
    assert ask_everything(FakeHost.load(tmp_path)) == said


def test_a_recorded_host_objects_to_what_was_not_recorded(tmp_path: Path) -> None:
    host = FakeHost.load(tmp_path)
    with pytest.raises(AssertionError):
        host.run(["echo"], timeout_s=1)
    with pytest.raises(AssertionError):
        host.files.write_atomic("/x", "y")
    with pytest.raises(AssertionError):
        host.files.space("/")
