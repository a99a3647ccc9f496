"""Whether llama.cpp can be built here: names, source, toolchain, preconditions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from agent.errors import CommandFailed
from agent.host import (
    Completed,
    Space,
    build_options,
    build_unit,
    builds,
    llama_source,
    toolchain,
)
from agent.host.build_unit import Limits
from agent.host.builds import Past
from tests.support.build_box import (
    ARCHES,
    COMMIT,
    MEMINFO,
    NAME,
    NVCC,
    OTHER,
    RELEASES,
    SOURCE,
    box,
    missing,
    nvml,
    recipe,
    survey,
)
from tests.support.fake_host import Directory, FakeHost, Link

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
