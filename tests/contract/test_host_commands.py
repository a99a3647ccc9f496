"""Real programs: stubborn, endless, in D state, leaving children behind."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import time
from pathlib import Path
from typing import Any

import pytest

from agent.errors import CommandFailed, Unreachable
from agent.host import commands
from agent.host.commands import RealCommands
from agent.host.web import RealHttp
from tests.support.loopback import Serve, answer_with, wait_until


def test_a_program_runs_in_a_clean_environment_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "x")
    run = RealCommands()
    done = run(["env"], timeout_s=5, env={"A": "b"})
    assert sorted(done.stdout.split()) == [
        "A=b",
        "LC_ALL=C",
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    ]
    assert run(["sh", "-c", "read x; echo end $?; ps -o sid= -p $$"], timeout_s=5).stdout.split()[1] == "1"
    done = run(["sh", "-c", "echo out; echo err >&2; kill -9 $$"], timeout_s=5)
    assert (done.rc, done.stdout, done.stderr) == (-9, "out\n", "err\n")
    assert run(["sh", "-c", "echo $1", "sh", "$(id); x"], timeout_s=5).stdout == "$(id); x\n"
    assert run(["pwd"], timeout_s=5, cwd="/usr").stdout == "/usr\n"


@pytest.mark.parametrize(
    ("argv", "options", "code"),
    [
        (["/no/such/program"], {}, "command-not-found"),
        (["true"], {"cwd": "/no/such/folder"}, "command-not-found"),
        (["/etc/passwd"], {}, "command-not-started"),
        (["true"], {"user": "no-such-user"}, "command-not-started"),
        ([], {}, "command-not-started"),
        ("true", {}, "command-not-started"),
        (["tr\0ue"], {}, "command-not-started"),
    ],
)
def test_what_cannot_be_started_says_why(argv: Any, options: dict[str, Any], code: str) -> None:
    with pytest.raises(CommandFailed) as failed:
        RealCommands()(argv, timeout_s=5, **options)
    assert failed.value.code == code


def test_a_program_that_ignores_sigterm_is_killed_with_all_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "TERM_GRACE_S", 0.3)
    pids = tmp_path / "pids"
    script = f"trap '' TERM; (trap '' TERM; echo $BASHPID >>{pids}; sleep 600) & echo $$ >>{pids}; sleep 600"
    with pytest.raises(CommandFailed) as failed:
        RealCommands()(["bash", "-c", script], timeout_s=0.5)
    assert failed.value.code == "command-timeout"
    time.sleep(0.1)
    for pid in pids.read_text().split():
        assert not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2]


def test_a_program_that_ends_on_sigterm_is_given_the_time(tmp_path: Path) -> None:
    tidied = tmp_path / "tidied"
    script = f"trap 'sleep 0.3; touch {tidied}; exit' TERM; sleep 600 & wait"
    with pytest.raises(CommandFailed):
        RealCommands()(["bash", "-c", script], timeout_s=0.5)
    assert tidied.exists()


def test_a_program_in_d_state_never_blocks_its_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "killpg", lambda group, number: None)  # as signals do nothing to a process in D state
    monkeypatch.setattr(commands, "TERM_GRACE_S", 0.1)
    monkeypatch.setattr(commands, "KILL_GRACE_S", 0.1)
    run = RealCommands()
    with pytest.raises(CommandFailed):
        run(["sleep", "5"], timeout_s=0.2)
    assert run.reap() == 1, "it still runs, and its caller did not wait for it"
    wait_until(lambda: run.reap() == 0)


def test_what_a_program_leaves_behind_does_not_hold_up_the_answer(tmp_path: Path) -> None:
    done = RealCommands()(["sh", "-c", f"(sleep 5; touch {tmp_path}/late) & echo now"], timeout_s=30)
    assert (done.stdout, done.truncated) == ("now\n", False)
    assert not (tmp_path / "late").exists()


def test_output_over_the_limit_is_read_and_dropped() -> None:
    done = RealCommands()(["sh", "-c", "head -c 3000000 /dev/zero; head -c 9 /dev/zero >&2"], timeout_s=20, limit=1000)
    assert (len(done.stdout), len(done.stderr), done.rc, done.truncated) == (1000, 9, 0, True)


def test_a_program_that_never_stops_talking_ends_at_the_deadline() -> None:
    with pytest.raises(CommandFailed) as failed:
        RealCommands()(["yes"], timeout_s=0.5, limit=1000)
    assert failed.value.code == "command-timeout"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become someone else")
def test_another_user_has_none_of_our_groups() -> None:
    nobody = pwd.getpwnam("nobody")
    done = RealCommands()(["id"], timeout_s=5, user="nobody")
    group = grp.getgrgid(nobody.pw_gid).gr_name
    assert (
        done.stdout.strip()
        == f"uid={nobody.pw_uid}(nobody) gid={nobody.pw_gid}({group}) groups={nobody.pw_gid}({group})"
    )


def test_no_descriptor_is_left_open(serve: Serve) -> None:
    url = serve(answer_with(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"))
    run, http = RealCommands(), RealHttp()

    def everything() -> int:
        run(["true"], timeout_s=5)
        http("GET", url, timeout_s=2)
        with contextlib.suppress(CommandFailed):
            run(["sleep", "9"], timeout_s=0.05)
        with contextlib.suppress(Unreachable):
            http("GET", url, timeout_s=2, limit=1)
        time.sleep(0.2)
        return len(list(Path("/proc/self/fd").iterdir()))

    assert everything() == everything()


def test_a_program_that_may_be_stopped_ends_soon_after_it_is_asked_to() -> None:
    started = time.monotonic()
    with pytest.raises(CommandFailed) as caught:
        RealCommands()(["sleep", "30"], timeout_s=30, stopping=lambda: time.monotonic() - started > 0.3)
    assert caught.value.code == "command-stopped"
    assert time.monotonic() - started < 5
    assert RealCommands()(["echo", "done"], timeout_s=5, stopping=lambda: False).stdout == "done\n"
