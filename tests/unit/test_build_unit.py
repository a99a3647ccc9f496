"""A build while it runs: its log and its unit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import CommandFailed, HostError
from agent.host import (
    build_log,
    build_unit,
)
from agent.host.build_unit import Limits, Watch
from tests.support.build_box import UNIT, WORK
from tests.support.fake_host import FakeHost, in_turn

# --- the log -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "percent"),
    [
        ("[  1%] Building\n[ 42%] Building CXX object a.o\nwarning: x\n", 42.0),
        ("[1/340] a\n[85/340] b\n", 25.0),
        ("-- Configuring done\n", None),
        ("[100%] Built target llama-server\n", 100.0),
        ("say [ 42%]\n", None),
    ],
)
def test_how_far_a_build_is_by_its_last_line(text: str, percent: float | None) -> None:
    assert build_log.percent(text) == percent


@pytest.mark.parametrize(
    ("log", "error"),
    [
        (
            f"[ 3%] Building\n{WORK}/src/a.cpp:7:12: error: 'x' was not declared here\nmake[2]: *** [a.o] Error 1\n",
            "src/a.cpp:7:12: error: 'x' was not declared here",
        ),
        ('a.cu(12): error: identifier "x" is undefined\n', 'a.cu(12): error: identifier "x" is undefined'),
        (
            "-- C\nCMake Error at CMakeLists.txt:2 (project):\n  No compiler.\n\n  Tell CMake where.\n\n--\n",
            "CMake Error at CMakeLists.txt:2 (project): No compiler. Tell CMake where.",
        ),
        ("nvcc fatal   : Unsupported gpu architecture 'compute_120'\n", None),
        ("/usr/bin/ld: final link failed: No space left on device\ncollect2: error: ld returned 1 exit status\n", None),
        ("c++: fatal error: Killed signal terminated program cc1plus\ncompilation terminated.\n", None),
        ("main.cpp:(.text+0x1d): undefined reference to `no_such()'\n", None),
        ("ninja: error: loading 'build.ninja': No such file or directory\n", None),
        ("make: *** No rule to make target 'llama-server'.  Stop.\n", None),
        ("[ 3%] Building\nfoo.h:3:1: warning: unused error: none\n[100%] Built\n", ""),
    ],
)
def test_the_first_error_is_quoted_as_the_tool_said_it(log: str, error: str | None) -> None:
    wanted = log.splitlines()[0] if error is None else error
    assert build_log.first_error(log, WORK) == wanted


def test_a_quoted_error_is_one_short_line() -> None:
    assert len(build_log.first_error("x.cpp:1:1: error: " + "a" * 5000)) == build_log.QUOTED


@given(st.text(max_size=2000))
def test_no_log_breaks_its_reader(text: str) -> None:
    assert "\n" not in build_log.first_error(text)
    percent = build_log.percent(text)
    assert percent is None or 0 <= percent <= 100


@given(st.floats(0, 100), st.floats(0, 1e5), st.one_of(st.none(), st.floats(0, 1e5)), st.floats(0, 1e4))
def test_what_is_left_is_never_negative(percent: float, spent: float, past: float | None, after: float) -> None:
    left = build_unit.remaining_s(percent, spent, past, after)
    assert left is None or left >= after


def test_what_is_left_comes_from_the_last_build_at_first_and_from_this_one_in_the_end() -> None:
    assert build_unit.remaining_s(None, 10.0, 110.0, 5.0) == 105.0
    assert build_unit.remaining_s(None, 10.0, None, 5.0) is None
    assert build_unit.remaining_s(50.0, 100.0, None, 0.0) == 100.0
    left = build_unit.remaining_s(90.0, 200.0, 100.0, 0.0)
    assert left is not None
    assert left == pytest.approx(20.0, abs=1.0)


# --- the unit ----------------------------------------------------------------------------------------------------


def watch(**changes: Any) -> Watch:
    return Watch(
        **{"unit": UNIT, "log": "/l", "folder": WORK, "words": "compiling", "limits": Limits(2, 4096), **changes}
    )


def test_a_part_has_ended_when_its_program_has_exited_well() -> None:
    host = FakeHost.build(
        units={
            UNIT: {
                "SubState": "exited",
                "MainPID": 0,
                "ExecMainStartTimestampMonotonic": "5000000",
                "ExecMainExitTimestampMonotonic": "65000000",
            }
        }
    )
    part = watch()
    assert part.ended(host)
    assert part.took_s == 60.0


@pytest.mark.parametrize(
    ("state", "log", "words"),
    [
        (
            {"Result": "exit-code", "ExecMainStatus": 2},
            "a.cpp:1:1: error: no\n",
            "compiling failed: a.cpp:1:1: error: no",
        ),
        ({"Result": "exit-code", "ExecMainStatus": 2}, "", "compiling failed (exit-code 2)"),
        ({"Result": "oom-kill"}, "", "took more than its 4096 MiB of memory"),
        ({"Result": "timeout"}, "", "did not end in time"),
    ],
)
def test_a_part_that_failed_says_why(state: Mapping[str, Any], log: str, words: str) -> None:
    host = FakeHost.build({"/l": log}, units={UNIT: {"ActiveState": "failed", **state}})
    with pytest.raises(HostError) as error:
        watch().ended(host)
    assert words in error.value.message
    assert "(log: /l)" in error.value.message


def test_a_part_that_somebody_stopped_is_told_from_one_that_ended() -> None:
    host = FakeHost.build(units={UNIT: {"LoadState": "not-found", "ActiveState": "inactive"}})
    with pytest.raises(HostError, match="was stopped"):
        watch().ended(host)


def test_systemd_is_not_asked_again_while_compilers_are_seen() -> None:
    group = "/sys/fs/cgroup/system.slice/holdfast-build-chat.service"
    host = FakeHost.build(
        {"/sys/fs/cgroup/cgroup.controllers": "", f"{group}/cgroup.procs": "77\n"}, units={UNIT: {"MainPID": 77}}
    )
    part = watch()
    for _ in range(20):
        assert not part.ended(host)
        host.clock.advance(0.2)
    assert len(host.run.calls) == 1
    host.clock.advance(build_unit.ASK_AGAIN_S)
    part.ended(host)
    assert len(host.run.calls) == 2


def test_a_build_is_not_given_up_because_systemd_is_slow_for_a_while() -> None:
    host = FakeHost.build(commands={"systemctl ...": in_turn(*[CommandFailed("no answer")] * 12, "LoadState=loaded\n")})
    part = watch()
    for _ in range(30):
        assert not part.ended(host)
        host.clock.advance(build_unit.ASK_AGAIN_S / 2)
    host.run.answer("systemctl ...", CommandFailed("no answer"))
    part.ended(host)
    host.clock.advance(build_unit.SILENT_S + 1)
    with pytest.raises(CommandFailed):
        part.ended(host)
