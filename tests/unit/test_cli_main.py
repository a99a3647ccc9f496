"""The wrapper: what a verb returns or raises becomes output and one of our exit codes, never a traceback."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest

import agent
from agent.cli import _main, main
from agent.cli._result import Progress, Result, plain
from agent.cli._session import Session
from agent.cli._verb import Verb
from agent.errors import (
    CommandFailed,
    ConfigurationError,
    DaemonUnreachable,
    FileTrouble,
    InternalError,
    Mistake,
    PermissionRefused,
    Refused,
    StoreError,
    UsageError,
)
from tests.support.cli import Said, holdfast
from tests.support.fake_host import FakeHost


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], None]:
    """Replaces every verb by one called `status` that does what it is given."""

    def install(function: Callable[[], Any]) -> None:
        def status() -> Any:
            """Do it."""
            return function()

        monkeypatch.setattr(_main, "verbs", lambda: ("status",))
        monkeypatch.setattr(_main, "load", lambda _name: Verb(commands=(status,)))

    return install


def raising(error: BaseException) -> Callable[[], Any]:
    def function() -> Any:
        raise error

    return function


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("what"), 64),
        (DaemonUnreachable("what"), 69),
        (InternalError("what"), 70),
        (StoreError("what"), 70),
        (FileTrouble("what", kind="other"), 70),
        (CommandFailed("what"), 70),
        (PermissionRefused("what"), 77),
        (Refused("what"), 77),
        (ConfigurationError([Mistake("file", "path", "what")]), 78),
        (ValueError("what"), 70),
        (AssertionError("what"), 70),
        (SystemError("what"), 70),
    ],
)
def test_every_error_has_its_exit_code_and_no_traceback(verb: Any, error: Exception, code: int) -> None:
    verb(raising(error))
    said = holdfast("status")
    assert said.code == code
    assert said.out == ""
    assert said.err.startswith("holdfast: ")
    assert "Traceback" not in said.err


def test_an_error_says_what_where_and_what_to_do(verb: Any) -> None:
    verb(raising(DaemonUnreachable("it does not answer", where="/run/x.sock", hint="systemctl start x")))
    said = holdfast("status")
    assert said.err == (
        "holdfast: it does not answer [daemon-unreachable]\n  where: /run/x.sock\n  do:    systemctl start x\n"
    )


def test_all_mistakes_of_a_configuration_are_told_at_once(verb: Any) -> None:
    verb(raising(ConfigurationError([Mistake("a.toml", "x", "wrong", "1, 2"), Mistake("b.toml", "", "worse")])))
    said = holdfast("status", "--json")
    assert said.code == 78
    assert [(each["where"], each["message"]) for each in said.json["errors"]] == [
        ("a.toml: x", "wrong (allowed: 1, 2)"),
        ("b.toml", "worse"),
    ]


def test_each_mistake_of_a_configuration_is_one_line_and_the_hint_stands_once(verb: Any) -> None:
    mistakes = [Mistake("a.toml", "x", "wrong", "1, 2"), Mistake("b.toml", "", "worse")]
    verb(raising(ConfigurationError(mistakes, hint="correct these")))
    assert holdfast("status").err == (
        "holdfast: a.toml: x: wrong (allowed: 1, 2) [configuration]\n"
        "holdfast: b.toml: worse [configuration]\n"
        "  do:    correct these\n"
    )


def test_a_bug_shows_its_traceback_only_when_asked_for(verb: Any) -> None:
    verb(raising(ZeroDivisionError("a prompt could stand here")))
    quiet, loud = holdfast("status"), holdfast("status", environ={"HOLDFAST_DEBUG": "1"})
    assert "ZeroDivisionError" in quiet.err
    assert "prompt" not in quiet.err
    assert "Traceback" not in quiet.err
    assert "Traceback" in loud.err
    assert quiet.code == loud.code == 70


def test_a_bug_is_told_even_when_the_host_cannot_be_made(verb: Any) -> None:
    def broken() -> Any:
        raise RuntimeError

    verb(raising(UsageError("what")))
    err = io.StringIO()
    session = Session(make_host=broken, stdout=io.StringIO(), stderr=err, environ={})
    assert main(["status", "--json"], session) == 70
    assert "[internal]" in err.getvalue()


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["--nonsense"],
        ["status", "--nonsense"],
        ["status", "too", "many"],
        ["lock"],
        ["lock", "nonsense"],
        ["explain"],
        ["pause", "2h"],
        ["init", "--autonomy", "yolo"],
        ["incident", "list", "--limit", "0"],
        [],
    ],
)
def test_what_cannot_be_meant_is_64_with_a_hint(arguments: list[str]) -> None:
    said = holdfast(*arguments)
    assert said.code == 64
    assert "[usage]" in said.err
    assert "do:    holdfast" in said.err


def test_a_usage_error_is_an_envelope_too_under_json() -> None:
    said = holdfast("status", "--nonsense", "--json")
    assert said.code == 64
    assert said.json["data"] is None
    assert said.json["errors"][0]["code"] == "usage"


def test_the_version_is_that_of_the_project() -> None:
    said = holdfast("--version")
    assert (said.code, said.out) == (0, f"holdfast {agent.__version__}\n")
    assert holdfast("--version", "--json").json["data"] == {"version": agent.__version__}


def test_help_is_no_error() -> None:
    for arguments in (["--help"], ["-h"], ["lock", "--help"], ["run", "-h"]):
        said = holdfast(*arguments)
        assert said.code == 0
        assert "Usage: holdfast" in said.out


def test_a_result_is_printed_and_its_exit_code_returned(verb: Any) -> None:
    verb(lambda: Result("status", {"a": 1}, plain("all is well"), exit_code=1))
    assert holdfast("status") == Said(1, "all is well\n", "")
    document = holdfast("status", "--json").json
    assert document["schema"] == "holdfast/1"
    assert document["kind"] == "status"
    assert document["data"] == {"a": 1}
    assert document["at"] == "2027-01-15T08:00:00.000Z"


def test_json_may_stand_before_the_verb(verb: Any) -> None:
    verb(lambda: Result("status", {"a": 1}, plain("text")))
    assert holdfast("--json", "status").json["data"] == {"a": 1}


def test_progress_goes_before_the_result_and_transient_lines_only_to_a_terminal(verb: Any) -> None:
    def live() -> Any:
        yield Progress("step 1", transient=True)
        yield Progress("step 1: OK")
        return Result("run", {}, plain("SUCCEEDED"))

    verb(live)
    assert holdfast("status").out == "step 1: OK\nSUCCEEDED\n"
    assert "step 1\r\x1b[K" in holdfast("status", typed="").out
    assert holdfast("status", "--json").json["kind"] == "run"


def test_an_error_in_the_middle_of_progress_is_an_error_like_any_other(verb: Any) -> None:
    def live() -> Any:
        yield Progress("step 1: OK")
        raise Refused("not now", hint="later")

    verb(live)
    said = holdfast("status")
    assert said.code == 77
    assert said.out == "step 1: OK\n"
    assert "do:    later" in said.err


class Closed(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError

    def fileno(self) -> int:
        raise ValueError


def test_a_reader_that_has_seen_enough_changes_nothing(verb: Any) -> None:
    verb(lambda: Result("status", {}, plain("text"), exit_code=2))
    err = io.StringIO()
    assert main(["status"], Session(make_host=FakeHost.build, stdout=Closed(), stderr=err, environ={})) == 2
    assert err.getvalue() == ""


def test_an_interrupted_verb_is_130(verb: Any) -> None:
    verb(raising(KeyboardInterrupt()))
    assert holdfast("status").code == 130


def test_what_an_engine_or_a_caller_said_cannot_steer_the_terminal(verb: Any) -> None:
    def live() -> Any:
        yield Progress("model \x1b]0;mine\x07")
        return Result("status", {}, plain("héllo\x1b[2J\tthere\x9b1m\n"))

    verb(live)
    said = holdfast("status").out
    assert not [letter for letter in said if not letter.isprintable() and letter not in "\n\t"]
    assert "héllo" in said


def test_an_error_cannot_steer_the_terminal_either(verb: Any) -> None:
    def wrong() -> Any:
        raise UsageError("no runbook '\x1b[2J'")

    verb(wrong)
    assert "\x1b" not in holdfast("status").err


def test_words_of_status_are_coloured_on_a_terminal_only(verb: Any) -> None:
    verb(lambda: Result("status", {}, plain("CRITICAL x")))
    assert holdfast("status", typed="").out == "\x1b[31mCRITICAL\x1b[0m x\n"
    assert holdfast("status", typed="", environ={"NO_COLOR": "1"}).out == "CRITICAL x\n"
    assert holdfast("status").out == "CRITICAL x\n"
