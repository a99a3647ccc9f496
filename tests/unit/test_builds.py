"""Building llama.cpp: names, source, toolchain, preconditions, the log, what is taken over, and the plans."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import plugin
from agent.engines.llama_cpp import LlamaCppSettings
from agent.errors import CommandFailed, HostError
from agent.host import (
    Completed,
    Space,
    build_log,
    build_needs,
    build_options,
    build_result,
    build_unit,
    builds,
    llama_source,
    toolchain,
)
from agent.host.build_unit import Limits, Watch
from agent.host.builds import Past
from agent.host.recipe import Recipe
from agent.model import Json
from agent.plugin import Command, Plan, Read, Refuse, Target, Wait, WriteFile
from agent.steps import Performer, StepFailed, by_hand
from tests.support.fake_host import Directory, FakeHost, Link, in_turn

COMMIT = "1d7ab2b94abc1d7ab2b94abc1d7ab2b94abc1d7a"
OTHER = "2" * 40
SOURCE = "/opt/llama.cpp/src"
RELEASES = "/opt/llama.cpp/releases"
WORK = "/var/cache/holdfast-build/chat/work"
GIT = (
    "env", "HOME=/nonexistent", "GIT_CONFIG_NOSYSTEM=1", "git", "--no-replace-objects", f"--git-dir={SOURCE}/.git",
    "-c", "core.autocrlf=false", "-c", "protocol.allow=never",
)  # fmt: skip
ROOM = Space(200 << 30, 100 << 30, 1000, 900, False)
MEMINFO = "MemTotal:       16777216 kB\nMemFree:         1000000 kB\nMemAvailable:   12582912 kB\n"
NVCC = "nvcc: NVIDIA (R) Cuda compiler driver\nCuda compilation tools, release 12.8, V12.8.93\n"
ARCHES = "compute_75\ncompute_86\ncompute_89\ncompute_90\ncompute_120\n"
TRIED = ("-E", "-x", "cu", "-include", "cublas_v2.h", "/dev/null", "-o", "/dev/null")
UNIT = "holdfast-build-chat.service"
NAME = f"b9272-{COMMIT[:12]}+cpu"


def recipe(**changes: Any) -> Recipe:
    rebuild: dict[str, Any] = {"source": SOURCE, "commit": COMMIT, **changes}
    return settings(**rebuild).rebuild.recipe("chat")  # type: ignore[union-attr]


def settings(**rebuild: Any) -> LlamaCppSettings:
    return LlamaCppSettings.model_validate(
        {
            "name": "chat",
            "kind": "llama.cpp",
            "url": "http://127.0.0.1:8080",
            "unit": "llama-server.service",
            "rebuild": rebuild or None,
        }
    )


def card(capability: str | None, number: int = 0) -> dict[str, Json]:
    return {
        "uuid": f"GPU-{number}", "name": "a card", "memory_used_bytes": 0, "memory_total_bytes": 1,
        "utilisation_percent": 0, "pids": [], "compute_capability": capability,
    }  # fmt: skip


def nvml(*capabilities: str | None) -> dict[str, Json]:
    gpus = [card(each, number) for number, each in enumerate(capabilities)]
    return {"code": 0, "meaning": "", "driver_version": "570.86.15", "gpus": gpus}


def missing(name: str) -> CommandFailed:
    return CommandFailed(f"{name}: not found", code="command-not-found")


def box(files: Mapping[str, Any] | None = None, cards: Any = None, **commands: Any) -> FakeHost:
    """A host that can build for the CPU; `commands` replaces answers: git words joined by "_", or a tool's name."""
    tools = {name: commands.pop(name, f"{name} 1.2.3\n") for name in ("cmake", "git", "tar", "make", "ccache")}
    tools["c++"] = commands.pop("compiler", "c++ (Debian) 12.2.0\n")
    tools["ninja"] = commands.pop("ninja", missing("ninja"))
    tools["nvcc"] = commands.pop("nvcc", missing("nvcc"))
    answers: dict[Any, Any] = {
        (*GIT, "cat-file", "-t", COMMIT): commands.pop("kind", "commit\n"),
        (*GIT, "rev-list", "--objects", "--missing=print", f"{COMMIT}^{{tree}}"): commands.pop("objects", "abc f\n"),
        (*GIT, "tag", "--points-at", COMMIT): commands.pop("tags", "nightly\nb9272\n"),
        (*GIT, "rev-parse", "--is-shallow-repository"): commands.pop("shallow", "false\n"),
        (*GIT, "rev-list", "--count", COMMIT): commands.pop("count", "9272\n"),
        (*GIT, "rev-parse", "--verify", "--quiet", "refs/tags/b9272^{commit}"): commands.pop("points", f"{COMMIT}\n"),
        ("id", "--user", "holdfast-build"): commands.pop("user", "990\n"),
        ("nproc",): "8\n",
        ("systemctl", "show", "--property=ExecStart", "--", "llama-server.service"): commands.pop(
            "execstart",
            "ExecStart={ path=/opt/llama.cpp/current/bin/llama-server ; argv[]=/opt/x --api-key s3cret ; }\n",
        ),
        **{(name, "--version"): answer for name, answer in tools.items()},
        ("nvcc", "--list-gpu-arch"): ARCHES,
        ("nvcc", *TRIED): commands.pop("tried", ""),
        **{(path, "--version"): missing(path) for path in toolchain.CUDA_PLACES},
    }
    assert not commands, commands
    known: dict[str, Any] = {
        f"{SOURCE}/.git": Directory(),
        "/proc/meminfo": MEMINFO,
        "/sys/fs/cgroup/cgroup.controllers": "cpu memory\n",
        build_unit.WALLS: "[Service]\n",
        build_unit.TRIAL_WALLS: "[Service]\n",
        f"{RELEASES}/b1-old+cpu/bin/llama-server": "",
        "/opt/llama.cpp/current": Link("releases/b1-old+cpu"),
        **(files or {}),
    }
    return FakeHost.build(
        known,
        commands=answers,
        units={
            UNIT: {"LoadState": "not-found", "ActiveState": "inactive"},
            "llama-server.service": {"ActiveState": "active"},
        },
        spaces={"/": ROOM, "/var": ROOM, "/opt": ROOM, RELEASES: ROOM, "/var/cache": ROOM},
        child={"nvml": cards if cards is not None else nvml()},
    )


def survey(host: FakeHost, **changes: Any) -> build_needs.Survey:
    return build_needs.survey(host, recipe(**changes), "llama-server.service", COMMIT)


def plan(action: str, host: FakeHost, **rebuild: Any) -> Plan:
    found = plugin.actions()[action]
    params = found.params.model_validate({"engine": "chat"})
    known = settings(**({"source": SOURCE, "commit": COMMIT} | rebuild))
    return found.plan(host, Target("engine:chat", params, 0.0, settings=known), params)


# --- names -------------------------------------------------------------------------------------------------------


def test_a_release_is_called_after_tag_commit_toolkit_and_cards() -> None:
    assert builds.release_name(box(), recipe(), COMMIT) == NAME
    cuda = box(nvcc=NVCC, cards=nvml("8.9", "8.0"))
    name = builds.release_name(cuda, recipe(cmake=("-DGGML_CUDA=ON",)), COMMIT)
    assert name == f"b9272-{COMMIT[:12]}+cuda12.8+sm80-89"


def test_a_second_build_of_the_same_gets_a_number() -> None:
    there = {f"{RELEASES}/{NAME}/bin/llama-server": "", f"{RELEASES}/{NAME}.2/bin/llama-server": ""}
    assert builds.release_name(box(there), recipe(), COMMIT) == f"{NAME}.3"


def test_a_build_in_flight_keeps_its_name_although_it_has_been_installed() -> None:
    there = {f"{RELEASES}/{NAME}/bin/llama-server": "", builds.begun(recipe()): f"{COMMIT} {NAME}\n"}
    assert builds.release_name(box(there), recipe(), COMMIT) == NAME


@pytest.mark.parametrize("noted", [f"{OTHER} {NAME}", f"{COMMIT} b1-else+cpu", f"{COMMIT} {NAME}.2/../../x", ""])
def test_what_is_noted_of_another_build_does_not_count(noted: str) -> None:
    there = {f"{RELEASES}/{NAME}/bin/llama-server": "", builds.begun(recipe()): noted}
    assert builds.release_name(box(there), recipe(), COMMIT) == f"{NAME}.2"


def test_a_commit_without_a_tag_has_a_name_too() -> None:
    assert builds.release_name(box(tags="\n"), recipe(), COMMIT) == f"untagged-{COMMIT[:12]}+cpu"


def test_a_log_is_numbered_and_never_named_after_the_time() -> None:
    folder = builds.records(recipe())
    host = box({f"{folder}/000009-x.log": "", f"{folder}/000010-y.log": "", f"{folder}/history.json": "[]"})
    assert builds.next_log(host, recipe(), NAME) == f"{folder}/000011-{NAME}.log"


def test_history_keeps_the_newest_and_survives_what_it_does_not_understand() -> None:
    past = [Past(float(number), "r", COMMIT, False, 2, 1.0, 2.0, 3, 4) for number in range(20)]
    text = builds.history_text(past[1:], past[0])
    host = box({f"{builds.records(recipe())}/history.json": text})
    assert [each.at for each in builds.history(host, recipe())] == [float(number) for number in range(10)]
    assert builds.history(box({f"{builds.records(recipe())}/history.json": '[{"at": 1}]'}), recipe()) == ()
    assert builds.last(host, recipe(cmake=("-DGGML_CUDA=ON",))) is None, "another kind takes another time"


# --- source ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ({}, ""),
        ({"kind": Completed((), 128, "", "fatal: Not a valid object name 1d7", 0.0)}, "is not in /opt/llama.cpp/src"),
        ({"kind": Completed((), 128, "", "fatal: not a git repository: '/opt'", 0.0)}, "no git repository that"),
        ({"kind": "tag\n"}, "is a tag"),
        ({"kind": CommandFailed("there is no user")}, "cannot be run as holdfast-build"),
        ({"objects": "abc f\n?def\n?fed\n"}, "2 of its objects are missing"),
        ({"objects": Completed((), 128, "", "fatal: bad tree object", 0.0)}, "something of it is missing or damaged"),
    ],
)
def test_a_commit_is_usable_when_every_object_of_it_is_there(answers: Mapping[str, Any], words: str) -> None:
    said = llama_source.problem(box(**answers), recipe(), COMMIT)
    assert words in said
    assert bool(said) == bool(words)


def test_a_tag_that_was_moved_is_said_and_does_not_count() -> None:
    assert llama_source.moved_tag(box(), recipe(tag="b9272"), COMMIT) == ""
    host = box(points=f"{OTHER}\n")
    assert llama_source.moved_tag(host, recipe(tag="b9272"), COMMIT) == OTHER
    found = survey(host, tag="b9272")
    assert found.problems == ()
    assert found.notes == (f"tag b9272 points at {OTHER[:12]} by now: the commit counts",)
    assert builds.release_name(host, recipe(tag="b9272"), COMMIT) == NAME


def test_the_build_number_is_the_count_of_commits_or_that_of_the_tag() -> None:
    assert llama_source.identity(box(), recipe(), COMMIT).number == 9272
    assert llama_source.identity(box(shallow="true\n", tags="b77\n"), recipe(), COMMIT).number == 77
    assert llama_source.identity(box(shallow="true\n", tags="v1.0\n"), recipe(), COMMIT).number == 0


def test_a_bare_repository_is_one_too() -> None:
    host = FakeHost.build({f"{SOURCE}/HEAD": "ref: refs/heads/main\n"})
    assert f"--git-dir={SOURCE}" in llama_source.git(host, recipe(), "tag")


@pytest.mark.parametrize(
    ("options", "cuda"),
    [
        (("-DGGML_CUDA=ON",), True),
        (("-DGGML_CUDA:BOOL=on",), True),
        (("-DGGML_CUDA=1",), True),
        (("-DGGML_CUDA=OFF",), False),
        (("-DGGML_CUDA=ON", "-DGGML_CUDA=OFF"), False),
        (("-DGGML_CUDA_F16=ON",), False),
        ((), False),
    ],
)
def test_a_build_is_for_cards_when_cmake_would_say_so(options: tuple[str, ...], cuda: bool) -> None:
    assert recipe(cmake=options).cuda is cuda


# --- toolchain ---------------------------------------------------------------------------------------------------


def test_architectures_come_from_the_configuration_else_from_the_cards() -> None:
    cuda = ("-DGGML_CUDA=ON",)
    host = box(cards=nvml("12.0", "8.9", "8.9", None))
    assert toolchain.architectures(host, recipe(cmake=cuda)) == ("89", "120")
    assert toolchain.architectures(host, recipe(cmake=cuda, architectures=("86-real",))) == ("86-real",)
    named = (*cuda, "-DCMAKE_CUDA_ARCHITECTURES=75;86")
    assert toolchain.architectures(host, recipe(cmake=named)) == ("75", "86")
    assert toolchain.architectures(host, recipe()) == ()


@pytest.mark.parametrize(
    ("version", "cards", "driver", "words"),
    [
        ((12, 8), ("89",), "570.86.15", ""),
        ((12, 8), ("89-real", "90a"), None, ""),
        ((12, 8), ("89",), "535.183.01", "needs a driver from 550 on, loaded is 535.183.01"),
        ((12, 4), ("89",), "535.183.01", ""),
        ((12, 4), ("89",), "520.61.05", "from 525 on"),
        ((13, 0), ("89",), "570.86.15", "from 580 on"),
        ((11, 8), ("89",), "470.256.02", ""),
        ((12, 8), ("100",), "570.86.15", "cannot build for 100"),
    ],
)
def test_a_toolkit_must_suit_the_cards_and_the_driver(
    version: tuple[int, int], cards: tuple[str, ...], driver: str | None, words: str
) -> None:
    kit = toolchain.Toolkit("nvcc", *version, ("75", "86", "89", "90", "120"))
    said = toolchain.toolkit_problem(kit, cards, driver)
    assert words in said
    assert bool(said) == bool(words)


def test_the_newest_toolkit_is_found_where_nvidia_puts_it() -> None:
    host = box()
    host.run.answer(("/usr/local/cuda/bin/nvcc", "--version"), NVCC)
    host.run.answer(("/usr/local/cuda/bin/nvcc", "--list-gpu-arch"), ARCHES)
    kit = toolchain.cuda(host, recipe(cmake=("-DGGML_CUDA=ON",)))
    assert kit is not None
    assert (kit.version, kit.nvcc, kit.compiles_for[-1]) == ("12.8", "/usr/local/cuda/bin/nvcc", "120")
    options = build_options.options(host, recipe(cmake=("-DGGML_CUDA=ON",), architectures=("89",)), COMMIT)
    assert "-DCMAKE_CUDA_COMPILER=/usr/local/cuda/bin/nvcc" in options
    assert "-DCMAKE_CUDA_ARCHITECTURES=89" in options


# --- preconditions -----------------------------------------------------------------------------------------------


def test_a_host_that_has_everything_has_no_problem() -> None:
    found = survey(box())
    assert found.problems == ()
    assert found.source == f"b9272 ({COMMIT[:12]}, build 9272) is in {SOURCE}"
    assert found.room.endswith("7 compilers in 11264 MiB of memory")


def test_everything_that_is_wrong_is_said_at_once() -> None:
    small = Space(10 << 30, 100 << 20, 10, 9, False)
    host = box(
        {
            "/proc/meminfo": "MemTotal: 4194304 kB\nMemAvailable: 1048576 kB\n",
            "/opt/llama.cpp/current": Directory(),
            RELEASES: Directory(0o777, 1000),
        },
        kind=Completed((), 128, "", "fatal: Not a valid object name", 0.0),
        cmake=missing("cmake"),
        compiler=missing("c++"),
        make=missing("make"),
        execstart="ExecStart={ path=/usr/bin/python3 ; argv[]=python3 --token geheim ; }\n",
    )
    del host.files.entries[build_unit.WALLS]
    host.files.spaces = dict.fromkeys(host.files.spaces, small)
    words = "\n".join(survey(host).problems)
    for wanted in (
        f"commit {COMMIT} is not in", "cmake, c++, ninja or make", "is missing, and", "MiB free, a build needs about",
        "of memory are left for it", "is no link", "others than root can write it", "runs /usr/bin/python3, not",
    ):  # fmt: skip
        assert wanted in words, words
    assert "geheim" not in words


def test_without_its_user_nothing_is_asked_as_anybody_else() -> None:
    host = box(user=1)
    found = survey(host)
    assert "there is no user holdfast-build" in found.problems[0]
    assert not any("git" in call for call in host.run.calls)


def test_cuda_needs_nvcc_and_cards_that_are_known() -> None:
    found = survey(box(), cmake=("-DGGML_CUDA=ON",))
    assert "there is no nvcc" in found.problems[0]
    assert "no NVIDIA driver is loaded, and [engine.rebuild] architectures is empty" in found.problems[1]
    loaded = {"/sys/module/nvidia/version": "535.183.01\n"}
    old = survey(box(loaded, nvcc=NVCC, cards=nvml("8.9")), cmake=("-DGGML_CUDA=ON",))
    assert old.problems == ("CUDA 12.8 needs a driver from 550 on, loaded is 535.183.01: it would not run",)


@pytest.mark.parametrize(
    ("stderr", "words"),
    [
        ("<command-line>: fatal error: cublas_v2.h: No such file or directory\n", "no cuBLAS"),
        (
            "crt/host_config.h:143:2: error: #error -- unsupported GNU version! gcc later than 13\n",
            "is too new for CUDA",
        ),
        ("nvcc fatal   : Failed to preprocess host compiler properties.\n", "Failed to preprocess"),
        ("geheim\n", "fails on an empty file"),
    ],
)
def test_what_nvcc_lacks_is_found_out_on_an_empty_file(stderr: str, words: str) -> None:
    loaded = {"/sys/module/nvidia/version": "570.86.15\n"}
    host = box(loaded, nvcc=NVCC, cards=nvml("8.9"), tried=Completed((), 1, "", stderr, 0.1))
    (problem,) = survey(host, cmake=("-DGGML_CUDA=ON",)).problems
    assert words in problem
    assert "geheim" not in problem


def test_a_unit_that_starts_the_server_through_another_program_is_known_by_what_runs() -> None:
    host = box(
        {
            "/sys/fs/cgroup/cgroup.controllers": "cpu\n",
            "/sys/fs/cgroup/system.slice/llama-server.service/cgroup.procs": "42\n",
            "/proc/42/exe": Link(f"{RELEASES}/b1-old+cpu/bin/llama-server"),
        },
        execstart="ExecStart={ path=/usr/bin/numactl ; argv[]=numactl … ; }\n",
    )
    assert survey(host).problems == ()


def execstart(program: str) -> str:
    return f"ExecStart={{ path={program} ; argv[]={program} --port 8080 ; }}\n"


def test_a_unit_that_names_one_release_would_never_run_another() -> None:
    release = f"{RELEASES}/b1-old+cpu"
    running = {
        "/sys/fs/cgroup/system.slice/llama-server.service/cgroup.procs": "42\n",
        "/proc/42/exe": Link(f"{release}/bin/llama-server"),
        "/usr/local/bin/llama-server": Link(f"{release}/bin/llama-server"),
    }
    for program in (f"{release}/bin/llama-server", "/usr/local/bin/llama-server"):
        (problem,) = survey(box(running, execstart=execstart(program))).problems
        assert problem.startswith(f"llama-server.service runs {program}, not /opt/llama.cpp/current/bin/llama-server")


@pytest.mark.parametrize(
    "links",
    [
        {"/usr/local/bin/llama-server": Link("../../../opt/llama.cpp/current/bin/llama-server")},
        {"/usr/local/bin": Link("/srv/llama/bin"), "/srv/llama": Link("/opt/llama.cpp/current")},
    ],
    ids=["a-link-to-the-server", "links-of-folders"],
)
def test_a_unit_may_reach_the_link_through_other_links(links: Mapping[str, Any]) -> None:
    assert survey(box(links, execstart=execstart("/usr/local/bin/llama-server"))).problems == ()


def test_the_room_is_what_the_last_build_took() -> None:
    past = Past(1.0, "r", COMMIT, False, 2, 1.0, 2.0, 90 << 30, 20 << 30)
    host = box({f"{builds.records(recipe())}/history.json": builds.history_text((), past)})
    assert "a build needs about" in survey(host).problems[0]


def test_the_limits_leave_room_and_do_not_change_with_every_look() -> None:
    first = build_unit.limits(box(), recipe())
    second = build_unit.limits(box({"/proc/meminfo": MEMINFO.replace("12582912", "12500000")}), recipe())
    assert first.jobs <= 8
    assert first.memory_mib % 256 == 0
    assert first.memory_mib <= (12582912 >> 10) - build_unit.RESERVE_MIB
    assert abs(first.memory_mib - second.memory_mib) in (0, 1024)
    assert build_unit.limits(box(), recipe(jobs=3, memory_max_mib=2048)) == Limits(3, 2048)


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


# --- what is taken over ------------------------------------------------------------------------------------------


def listing(*entries: str) -> FakeHost:
    lines = ["d\t700\t0\t60\t\t", "d\t755\t0\t60\tbin\t", *entries]
    return FakeHost.build(commands={"find ...": "\0".join(lines) + "\0"})


GOOD = (
    "f\t755\t0\t100\tbin/llama-server\t",
    "f\t644\t0\t50\tbin/libllama.so.0.0.1\t",
    "l\t777\t0\t9\tbin/libllama.so\tlibllama.so.0.0.1",
)


def test_plain_files_and_links_among_them_are_a_release() -> None:
    found = build_result.contents(listing(*GOOD), "/s")
    assert found.size == 150
    assert dict(found.links) == {"bin/libllama.so": "libllama.so.0.0.1"}


@pytest.mark.parametrize(
    "entry",
    [
        "f\t4755\t0\t1\tbin/own\t",
        "f\t755\t990\t1\tbin/own\t",
        "b\t644\t0\t0\tbin/sda\t",
        "p\t644\t0\t0\tbin/pipe\t",
        "l\t777\t0\t9\tbin/out\t/etc/shadow",
        "l\t777\t0\t9\tbin/out\t../../etc",
        "d\t755\t0\t9\tbin/more\t",
        "f\t644\t0\t9\telsewhere\t",
        "l\t777\t0\t9\tbin\t/etc",
        "f\t644\t0\t9\tbin/a b\t",
        "nonsense",
    ],
)
def test_anything_else_is_a_reason_to_trust_none_of_it(entry: str) -> None:
    with pytest.raises(HostError):
        build_result.contents(listing(*GOOD, entry), "/s")


def test_a_release_without_a_server_is_none() -> None:
    with pytest.raises(HostError, match="no bin/llama-server"):
        build_result.contents(listing(GOOD[1]), "/s")


# --- plans -------------------------------------------------------------------------------------------------------


def test_the_check_refuses_with_every_reason_or_says_what_it_would_build() -> None:
    good = plan("build.check", box())
    assert isinstance(good.steps[-1], Read)
    assert good.steps[-1].read(box()) == f"can build {NAME}"
    (bad,) = plan("build.check", box(cmake=missing("cmake"), kind="tree\n")).steps
    assert isinstance(bad, Refuse)
    assert "is a tree" in bad.reason
    assert "cmake" in bad.reason


@pytest.mark.parametrize("action", ["build.check", "build.export", "build.compile"])
def test_an_engine_without_a_recipe_is_not_built(action: str) -> None:
    found = plugin.actions()[action]
    params = found.params.model_validate({"engine": "chat"})
    (step,) = found.plan(box(), Target("engine:chat", params, 0.0, settings=settings()), params).steps
    assert isinstance(step, Refuse)
    assert found.unfit is not None
    assert found.unfit(settings()) == step.reason


def test_the_tree_is_taken_out_by_the_build_user_and_by_nothing_that_runs_hooks() -> None:
    found = plan("build.export", box())
    commands = [each for each in found.steps if isinstance(each, Command)]
    git = next(each for each in commands if "git" in each.argv)
    assert git.user == "holdfast-build"
    assert git.argv[len(GIT) :] == ("archive", "--format=tar", f"--output={WORK}/source.tar", COMMIT)
    assert all(each.user == "holdfast-build" for each in commands if each.argv[0] in ("tar", "mkdir"))
    assert found.before == {"release": NAME}
    noted = next(each for each in found.steps if isinstance(each, WriteFile))
    assert (noted.path, noted.content) == (builds.begun(recipe()), f"{COMMIT} {NAME}\n")


def test_the_compiler_cache_outlives_every_build() -> None:
    removed = [each for each in plan("build.export", box()).steps if isinstance(each, Command) and each.argv[0] == "rm"]
    assert removed
    assert not any("ccache" in word for each in removed for word in each.argv)


def test_a_build_runs_as_its_user_without_network_and_with_limits() -> None:
    lines = [line for line in by_hand(plan("build.compile", box())) if line.startswith("systemd-run")]
    assert len(lines) == 2
    for line in lines:
        words = ("--uid=holdfast-build", "PrivateNetwork=yes", "MemoryMax=", "RuntimeMaxSec=10800")
        assert all(wanted in line for wanted in (*words, f"ReadWritePaths={WORK}")), line
    assert "'-DCMAKE_INSTALL_RPATH=$ORIGIN'" in lines[0]
    assert f"-DLLAMA_BUILD_COMMIT={COMMIT[:12]} -DLLAMA_BUILD_NUMBER=9272" in lines[0]
    assert (
        lines[1].endswith(f"cmake --build {WORK}/build --target llama-server --parallel 7") or "--parallel" in lines[1]
    )
    open_wide = by_hand(plan("build.compile", box(), network=True))
    assert not any("PrivateNetwork" in line for line in open_wide)


def test_a_box_that_copies_one_binary_gets_one_that_stands_alone() -> None:
    changes = {"install": "copy", "binary": "/usr/local/bin/llama-server"}
    (line, _) = [line for line in by_hand(plan("build.compile", box(), **changes)) if line.startswith("systemd-run")]
    assert "-DBUILD_SHARED_LIBS=OFF" in line
    assert "ORIGIN" not in line


def test_the_recipes_own_options_come_last_and_win() -> None:
    options = build_options.options(box(), recipe(cmake=("-DLLAMA_CURL=ON", "-DGGML_NATIVE=OFF")), COMMIT)
    assert options[-2:] == ("-DLLAMA_CURL=ON", "-DGGML_NATIVE=OFF")
    assert "-DCMAKE_CXX_COMPILER_LAUNCHER=ccache" in options
    without = build_options.options(box(ccache=missing("ccache")), recipe(), COMMIT)
    assert not any("LAUNCHER" in each for each in without)


def test_two_looks_at_the_same_host_give_the_same_plan() -> None:
    host = box()
    first = by_hand(plan("build.compile", host))
    host.clock.advance(3600.0)
    assert by_hand(plan("build.compile", host)) == first


def test_root_unpacks_where_nobody_else_can_look_until_it_has_been_looked_at() -> None:
    steps = plan("build.compile", box()).steps
    commands = [each.argv if isinstance(each, Command) else () for each in steps]
    closed = commands.index(("install", "--directory", "--mode=0700", f"{RELEASES}/.{NAME}.new"))
    unpacked = next(number for number, argv in enumerate(commands) if argv[:2] == ("tar", "--extract"))
    opened = next(number for number, argv in enumerate(commands) if argv[:1] == ("chmod",))
    looked = max(number for number, each in enumerate(steps) if isinstance(each, Wait))
    assert closed < unpacked < looked < opened


def test_a_hostile_archive_fails_the_step_before_anybody_can_enter_the_folder() -> None:
    steps = plan("build.compile", box()).steps
    looks = [each for each in steps if isinstance(each, Wait)][-1]
    with pytest.raises(StepFailed, match="no plain file"):
        Performer(listing(*GOOD, "f\t4755\t0\t1\tbin/own\t")).perform(Plan((looks,)))


def test_undo_stops_the_build_and_removes_what_it_made() -> None:
    action = plugin.actions()["build.compile"]
    params = action.params.model_validate({"engine": "chat"})
    known = settings(source=SOURCE, commit=COMMIT)
    target = Target("engine:chat", params, 0.0, settings=known)
    before = action.plan(box(), target, params).before
    assert before is not None
    assert action.undo is not None
    lines = by_hand(action.undo(box(), target, params, before))
    assert lines[0] == f"systemctl stop {UNIT}"
    assert any(line.startswith("rm ") and f".{NAME}.new" in line for line in lines)


def test_what_is_known_of_a_release_says_what_it_was_made_of() -> None:
    host = box()
    folder = builds.staging(recipe(), NAME)
    digest = "a" * 64
    host.run.answer(("find", folder, ...), "\0".join(("d\t700\t0\t60\t\t", "d\t755\t0\t60\tbin\t", *GOOD)) + "\0")
    host.run.answer(
        ("sha256sum", "--zero", "--", "bin/llama-server", "bin/libllama.so.0.0.1"),
        f"{digest}  bin/llama-server\0{digest}  bin/libllama.so.0.0.1\0",
    )
    spent = build_result.Spent(3.21, 200.04)
    known = build_result.provenance(host, recipe(), COMMIT, NAME, Limits(4, 8192), spent)
    assert known["commit"] == COMMIT
    assert known["sha256"] == {"bin/llama-server": digest, "bin/libllama.so.0.0.1": digest}
    assert (known["configure_s"], known["compile_s"], known["bytes"]) == (3.2, 200.0, 150)
    assert known["compiler"] == "c++ (Debian) 12.2.0"
    assert known["at"] == host.clock.now().wall
