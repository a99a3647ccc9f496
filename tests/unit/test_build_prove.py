"""A fresh build is asked before anyone depends on it; the arguments it is asked with never show."""

from __future__ import annotations

import importlib.util
import json
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

import pytest

from agent import plugin, steps
from agent.actions._trial import Trial, on_card, prepared
from agent.actions._trial import steps as trial_steps
from agent.errors import CommandFailed, HostError
from agent.host import Completed, binary_proof, ports, unit_command
from agent.host.binary_proof import Version
from agent.host.unit_command import UnitCommand
from agent.plugin import Command, Plan, Refuse, Target
from tests.support.fake_host import FakeHost, Link, in_turn, systemctl_show

REPOSITORY = Path(__file__).resolve().parents[2]
PROVE = plugin.actions()["build.prove"]
COMMIT = "930e2fa59c" + "0" * 30
RELEASES = "/opt/llama.cpp/releases"
SERVER = f"{RELEASES}/.untagged-{COMMIT[:12]}+cpu.new/bin/llama-server"
OLD = f"{RELEASES}/old/bin/llama-server"
VERSION = "version: 0.4.1-dev (build 10991, commit 930e2fa59)\nbuilt with GNU 13.3.0 for Linux x86_64\n"
FILES: dict[str, Any] = {
    "/sys/fs/cgroup/cgroup.controllers": "cpu",
    "/sys/fs/cgroup/system.slice/chat.service/cgroup.procs": "42\n",
    "/proc/42/exe": Link(OLD),
    "/proc/42/cmdline": f"{OLD}\0--model\0/m.gguf\0--api-key\0hush-hush\0--no-mmap\0",
    "/proc/42/environ": "LLAMA_ARG_CTX_SIZE=4096\0HF_TOKEN=hf_123\0NOTIFY_SOCKET=/run/x\0INVOCATION_ID=1\0",
    "/proc/42/cwd": Link("/srv"),
    "/srv/x": "",
    "/opt/llama.cpp/current": Link("releases/old"),
    OLD: "",
    "/etc/passwd": "root:x:0:0::/root:/bin/sh\nllama:x:990:990::/srv:/bin/false\n",
    "/proc/net/tcp": "  sl  local_address rem_address   st\n   0: 0100007F:4830 00000000:0000 0A 00\n",
}


def completed(rc: int = 0, out: str = "", err: str = "") -> Completed:
    return Completed(("llama-server",), rc, out, err, 0.1)


def command(*arguments: str, user: str = "", environment: dict[str, str] | None = None) -> UnitCommand:
    return UnitCommand("/x/llama-server", arguments, environment or {}, "/", user, "process")


def host(**answers: Any) -> FakeHost:
    """A host whose engine serves, and what the new binary says."""
    return FakeHost.build(
        files={**FILES, SERVER: ""},
        units={"chat.service": {"User": "llama"}},
        commands={
            (SERVER, "--version"): answers.get("version", completed(err=VERSION)),
            (SERVER, "--model", ...): answers.get("arguments", completed(err=VERSION)),
            ("env", ...): 128,
            ("systemctl", "show", "*", "--", "holdfast-prove-chat.service"): answers.get("trial", ""),
        },
    )


# --- the version ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "build", "commit"),
    [
        ("version: 9272 (1d7ab2b94)\n", 9272, "1d7ab2b94"),
        (VERSION, 10991, "930e2fa59"),
        ("version: 0.5.0-dev (build 0, commit unknown)\n", 0, "unknown"),
    ],
)
def test_every_form_of_the_version_is_read(said: str, build: int, commit: str) -> None:
    known = FakeHost.build(commands={("/s", "--version"): completed(err=said)})
    found = binary_proof.version(known, "/s", "nobody")
    assert (found.build, found.commit) == (build, commit)
    assert known.run.users == ["nobody"]


def test_a_build_of_another_commit_is_told_and_one_that_does_not_say_is_not() -> None:
    assert Version("", 1, "930e2fa59").is_of(COMMIT) is True
    assert Version("", 1, "1d7ab2b94").is_of(COMMIT) is False
    assert Version("", 1, "unknown").is_of(COMMIT) is None


@pytest.mark.parametrize(
    ("done", "words"),
    [
        (completed(rc=-4), "killed by SIGILL"),
        (completed(rc=127, err="llama-server: error while loading shared libraries: libcudart.so.12: x"), "libcudart"),
        (completed(rc=0, out="hello"), "exit 0"),
    ],
)
def test_a_binary_that_does_not_say_its_version_is_told_by_its_end(done: Completed, words: str) -> None:
    with pytest.raises(HostError, match=words):
        binary_proof.version(FakeHost.build(commands={("/s", "--version"): done}), "/s", None)


# --- the devices ---------------------------------------------------------------------------------------------


def test_the_gpus_that_a_build_sees_are_read() -> None:
    said = "Available devices:\n  CUDA0: NVIDIA GeForce RTX 4090 (24210 MiB, 23800 MiB free)\n"
    known = FakeHost.build(commands={("/s", "--list-devices"): completed(out=said)})
    assert binary_proof.devices(known, "/s", None) == (("CUDA0", "NVIDIA GeForce RTX 4090"),)


@pytest.mark.parametrize("said", ["Available devices:\n", "Available devices:\n  (none)\n"])
def test_a_build_that_sees_no_gpu_is_told(said: str) -> None:
    known = FakeHost.build(commands={("/s", "--list-devices"): completed(out=said)})
    assert binary_proof.devices(known, "/s", None) == ()


def test_a_build_that_knows_no_such_question_is_no_fault() -> None:
    done = completed(rc=1, err="error: invalid argument: --list-devices\n")
    assert binary_proof.devices(FakeHost.build(commands={("/s", "--list-devices"): done}), "/s", None) is None


# --- the unit's arguments ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("done", "words", "sure"),
    [
        (completed(err=VERSION), "", True),
        (completed(rc=1, err="error: invalid argument: --no-mmap\n"), "it does not know the argument --no-mmap", True),
        (
            completed(rc=1, err="error while handling argument \"-fa\": error: unknown value: 'hush'\n"),
            "it does not accept what the unit says for -fa",
            True,
        ),
        (
            completed(rc=1, err='error while handling environment variable "LLAMA_ARG_CTX_SIZE": stoi\n'),
            "it does not accept the environment variable LLAMA_ARG_CTX_SIZE",
            True,
        ),
        (
            completed(rc=1, err='error while handling argument "--api-key-file": error: failed to open file\n'),
            "it does not accept what the unit says for --api-key-file",
            False,
        ),
        (completed(rc=-11), "killed by SIGSEGV", True),
        (CommandFailed("llama-server hush did not end", code="command-timeout"), "it could not be asked", True),
        (CommandFailed("hush not found", code="command-not-found"), "it could not be asked", False),
    ],
)
def test_what_a_build_does_not_understand_is_named_and_nothing_is_quoted(done: Any, words: str, sure: bool) -> None:
    known = FakeHost.build(files={"/x": ""}, commands={("/s", ...): done})
    said, certain = binary_proof.misunderstood(known, "/s", command("--x", "hush", user="llama"), "holdfast-build")
    assert said.startswith(words) if words else said == ""
    assert certain is sure
    assert "hush" not in said


def test_a_file_that_the_units_own_user_cannot_read_is_a_fault() -> None:
    done = completed(rc=1, err='error while handling argument "--api-key-file": error: failed to open file\n')
    known = FakeHost.build(files={"/x": ""}, commands={("/s", ...): done})
    assert binary_proof.misunderstood(known, "/s", command(user="llama"), "llama")[1]


def test_the_arguments_come_from_the_process_without_its_secrets() -> None:
    found = unit_command.read(host(), "chat.service", "/opt/llama.cpp/current/bin/llama-server")
    assert found is not None
    assert found.arguments == ("--model", "/m.gguf", "--api-key", "[redacted]", "--no-mmap")
    assert found.environment == {"LLAMA_ARG_CTX_SIZE": "4096"}
    assert (found.folder, found.user, found.source) == ("/srv", "llama", "process")


def unit_says(argv: list[str], environment: list[str], files: list[list[Any]] | None = None) -> str:
    start = [[argv[0], argv, False, 0, 0, 0, 0, 0, 0, 0]]
    told = (("a(sasbttttuii)", start), ("as", environment), ("a(sb)", files or []), ("s", "!/srv"))
    return "".join(json.dumps({"type": kind, "data": data}) + "\n" for kind, data in told)


def dead(said: str) -> FakeHost:
    return FakeHost.build(
        files={
            "/opt/llama.cpp/current": Link("releases/old"),
            OLD: "",
            "/etc/default/chat": '# says\nMODEL="/m one.gguf"\nEXTRA=--ctx-size 512\n',
        },
        units={"chat.service": {"ActiveState": "failed", "User": "root"}},
        commands={("busctl", ...): said},
    )


def test_of_a_unit_that_is_down_they_come_from_its_command_line_as_systemd_expands_it() -> None:
    server = "/opt/llama.cpp/current/bin/llama-server"
    argv = [server, "--model", "${MODEL}", "$EXTRA", "--alias", "a$$b", "--port", "80${PORT}"]
    known = dead(unit_says(argv, ["PORT=81"], [["/etc/default/chat", True], ["/etc/default/none", True]]))
    found = unit_command.read(known, "chat.service", server)
    assert found is not None
    assert found.arguments == (
        "--model", "/m one.gguf", "--ctx-size", "512", "--alias", "a$b", "--port", "8081",
    )  # fmt: skip
    assert (found.folder, found.user, found.source) == ("/srv", "", "unit")
    assert any("chat_2eservice" in word for call in known.run.calls for word in call)


@pytest.mark.parametrize("said", ["", "{}\n", unit_says(["/opt/run-llama"], [])])
def test_of_a_wrapper_that_is_down_they_are_not_known(said: str) -> None:
    assert unit_command.read(dead(said), "chat.service", "/opt/llama.cpp/current/bin/llama-server") is None


# --- the plan ------------------------------------------------------------------------------------------------


def planned(known: FakeHost, *cmake: str) -> tuple[Target, Plan]:
    kind = plugin.engines()["llama.cpp"]
    rebuild = {"source": "/src", "commit": COMMIT, "cmake": list(cmake), "architectures": ["89"] if cmake else []}
    told = {"name": "chat", "kind": "llama.cpp", "url": "http://127.0.0.1:8080", "unit": "chat.service"}
    settings = kind.settings.model_validate({**told, "rebuild": rebuild, "api_key_file": "/key"})
    target = Target("engine:chat", PROVE.params.model_validate({"engine": "chat"}), 0.0, kind, settings)
    return target, PROVE.plan(known, target, target.params)


def test_the_plan_shows_no_argument_of_the_unit_and_takes_a_port_that_is_free() -> None:
    _, plan = planned(host())
    lines = "\n".join(steps.by_hand(plan))
    assert "hush" not in lines
    assert "no-mmap" not in lines
    assert "--port 18481" in lines  # 0x4830 is 18480
    assert "--list-devices" not in lines


def test_an_engine_that_is_not_rebuilt_here_is_refused() -> None:
    kind = plugin.engines()["llama.cpp"]
    told = {"name": "chat", "kind": "llama.cpp", "url": "http://127.0.0.1:8080", "unit": "chat.service"}
    target = Target("engine:chat", PROVE.params.model_validate({"engine": "chat"}), 0.0, kind, kind.settings(**told))
    assert isinstance(PROVE.plan(FakeHost.build(), target, target.params).steps[0], Refuse)
    assert PROVE.unfit is not None
    assert "no [engine.rebuild]" in PROVE.unfit(target.settings)


def test_a_new_binary_that_refuses_an_argument_of_the_unit_fails_the_step_with_its_name() -> None:
    known = host(arguments=completed(rc=1, err="error: invalid argument: --no-mmap\n"))
    _, plan = planned(known)
    with pytest.raises(steps.StepFailed, match=r"would not start as chat\.service: .*--no-mmap$"):
        steps.Performer(known).perform(plan)
    asked = [call for call in known.run.calls if call[:2] == (SERVER, "--model")]
    assert asked == [(SERVER, "--model", "/m.gguf", "--api-key", "[redacted]", "--no-mmap", "--version")]
    assert known.run.users[known.run.calls.index(asked[0])] == "llama"


def test_a_binary_of_another_commit_fails_the_step() -> None:
    known = host(version=completed(err="version: 9272 (1d7ab2b94)\n"))
    with pytest.raises(steps.StepFailed, match="1d7ab2b94"):
        steps.Performer(known).perform(planned(known)[1])


def test_undo_ends_the_trial() -> None:
    target, plan = planned(host())
    assert PROVE.undo is not None
    assert plan.before is not None
    undoing = PROVE.undo(host(), target, target.params, plan.before)
    assert [step.argv[1] for step in undoing.steps if isinstance(step, Command)] == ["stop", "reset-failed"]
    assert all("holdfast-prove-chat.service" in step.argv for step in undoing.steps if isinstance(step, Command))


# --- the card -------------------------------------------------------------------------------------------------


def card(uuid: str, used_mib: int, *pids: int) -> dict[str, Any]:
    sizes = {"memory_used_bytes": used_mib << 20, "memory_total_bytes": 8192 << 20, "utilisation_percent": 0}
    return {"uuid": uuid, "name": "T", **sizes, "pids": [[pid, 1] for pid in pids]}


def nvml(*cards: dict[str, Any]) -> dict[str, Any]:
    return {"code": 0, "meaning": "Success", "driver_version": "580.1", "gpus": list(cards)}


def on_a_gpu(*answers: Any) -> tuple[FakeHost, Target, Trial]:
    """A trial of a CUDA build on a host whose NVML gives these answers."""
    known = host()
    known.child.answers["nvml"] = in_turn(*answers)
    target, _ = planned(known)
    rebuild = target.settings.rebuild.model_copy(update={"cmake": ("-DGGML_CUDA=ON",)})
    settings = target.settings.model_copy(update={"rebuild": rebuild})
    return known, target, prepared(known, target, rebuild.recipe(settings.name), SERVER)


def test_the_card_with_the_most_free_memory_is_used_and_named_by_its_uuid() -> None:
    known, target, tried = on_a_gpu(nvml(card("GPU-1", 8000), card("GPU-2", 300), card("GPU-3", 500)))
    lines = "\n".join(steps.by_hand(Plan(tuple(trial_steps(known, target, tried)))))
    assert "--setenv=CUDA_VISIBLE_DEVICES=GPU-2" in lines
    assert "--n-gpu-layers 99" in lines


@pytest.mark.parametrize(
    ("answer", "why"), [(nvml(card("GPU-1", 7500)), "only 692 MiB"), (None, "does not say"), (nvml(), "does not say")]
)
def test_where_the_card_is_full_it_is_tried_on_the_processor_and_that_is_said(answer: Any, why: str) -> None:
    known, target, tried = on_a_gpu(answer)
    lines = "\n".join(steps.by_hand(Plan(tuple(trial_steps(known, target, tried)))))
    assert "--setenv=CUDA_VISIBLE_DEVICES= " in lines
    assert "--n-gpu-layers 0" in lines
    assert why in tried.why


@pytest.mark.parametrize(
    ("later", "there"),
    [
        (nvml(card("GPU-1", 300, 42)), True),
        (nvml(card("GPU-1", 900)), True),  # in a container NVML may not show the process
        (nvml(card("GPU-1", 310, 7)), False),
        (None, None),
    ],
)
def test_a_build_that_runs_on_the_processor_although_a_card_has_room_is_told(later: Any, there: bool | None) -> None:
    known, _, tried = on_a_gpu(nvml(card("GPU-1", 300)), later)
    known.run.answer(("systemctl", "show", "*", "--", tried.unit), systemctl_show(tried.unit, MainPID=42))
    assert on_card(known, tried) is there


# --- what it is tried with -----------------------------------------------------------------------------------


def test_a_spare_port_is_one_that_nobody_listens_on() -> None:
    row = "   0: 00000000:{:04X} 00000000:0000 {} 00\n"
    head = "  sl  local_address rem_address   st\n"
    known = FakeHost.build(
        files={
            "/proc/net/tcp": head + row.format(18480, "0A") + row.format(18481, "01"),
            "/proc/net/tcp6": head + row.format(18482, "0A").replace("00000000:", "0" * 32 + ":"),
        }
    )
    assert ports.listening(known) == {18480, 18482}
    assert ports.spare(known, 18480) == 18481
    with pytest.raises(HostError):
        ports.spare(known, 18480, 1)


def test_the_model_that_ships_is_what_its_script_writes_and_small() -> None:
    loader = SourceFileLoader("make_tiny_model", str(REPOSITORY / "script/make-tiny-model"))
    spec = importlib.util.spec_from_loader("make_tiny_model", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    kept, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = kept
    shipped = Path(binary_proof.model("")).read_bytes()
    assert shipped == module.content()
    assert len(shipped) < 200_000
    assert binary_proof.model("/own.gguf") == "/own.gguf"
