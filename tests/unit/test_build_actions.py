"""What a build leads to: the plans, and what root takes over."""

from __future__ import annotations

import pytest

from agent import plugin
from agent.errors import HostError
from agent.host import (
    build_options,
    build_result,
    builds,
)
from agent.host.build_unit import Limits
from agent.plugin import Command, Plan, Read, Refuse, Target, Wait, WriteFile
from agent.steps import Performer, StepFailed, by_hand
from tests.support.build_box import (
    COMMIT,
    GIT,
    NAME,
    RELEASES,
    SOURCE,
    UNIT,
    WORK,
    box,
    missing,
    plan,
    recipe,
    settings,
)
from tests.support.fake_host import FakeHost

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
