"""What every verb of the command line is held to, now and when one is added."""

from __future__ import annotations

import ast
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import AwareDatetime, BaseModel, ConfigDict

import agent
from agent import control, errors, plugin
from agent.cli import _main, _sockets
from agent.cli._verb import Verb, build, command_name
from agent.errors import FileTrouble, HostError
from agent.host import Host
from agent.host.ipc import RealIpc
from agent.host.web import RealHttp
from agent.model import Json
from agent.protocol import Control
from agent.views import metrics
from tests.support.cli import absent, holdfast, tree
from tests.support.fake_host import FakeHost
from tests.unit.test_cli_run import FILES

ROOT = Path(__file__).resolve().parents[2]
EXIT_CODES = {0, 1, 2, 3, 64, 69, 70, 77, 78, 130}
VERBS = _main.verbs()

READS: Mapping[str, list[str]] = {
    "status": [],
    "check": ["host.disk"],
    "explain": ["engine-wedged"],
    "doctor": [],
    "incident list": [],
    "incident show": [],
    "runbook list": [],
    "runbook show": ["restart-engine"],
    "runbook print": ["restart-engine"],
    "lock show": [],
    "lock verify": [],
    "change status": [],
    "hold": ["--explain"],
    "audit show": [],
    "audit verify": [],
    "init": ["--print"],
    "completion": ["bash"],
}
"""Every command that only reads, with the arguments it needs."""
WRITES: Mapping[str, list[str]] = {
    "run": ["restart-engine"],
    "rehearse": ["restart-engine"],
    "stop": [],
    "pause": ["1h", "--reason", "x"],
    "resume": [],
    "lock write": [],
    "change begin": ["--to", "580.178.04", "--reason", "x"],
    "change finish": [],
    "change abort": [],
    "unhold": [],
    "incident ack": [],
    "incident approve": [],
    "pager test": [],
    "daemon": [],
}


class Problem(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    code: str
    message: str
    hint: str
    where: str


class Envelope(BaseModel):
    """The document of design.md section 8."""

    model_config = ConfigDict(extra="forbid")
    schema_: str
    kind: str
    host: str
    at: AwareDatetime
    data: Any
    errors: list[Problem]


def envelope(text: str) -> Envelope:
    raw = json.loads(text)
    raw["schema_"] = raw.pop("schema")
    found = Envelope.model_validate(raw)
    assert found.schema_ == "holdfast/1"
    assert raw["at"].endswith("Z")
    return found


def every_command() -> Iterator[tuple[str, Any]]:
    for name in VERBS:
        verb = _main.load(name)
        for function in verb.commands:
            yield f"{name} {command_name(function)}" if verb.group else name, function


# --- the tree -------------------------------------------------------------------------------------------------


def test_every_file_is_one_verb_of_its_name() -> None:
    folder = ROOT / "agent" / "cli"
    assert set(VERBS) == {path.stem for path in folder.glob("*.py") if not path.stem.startswith("_")}
    for name in VERBS:
        verb = _main.load(name)
        assert isinstance(verb, Verb)
        assert verb.group or command_name(verb.commands[0]) == name
        assert not verb.group or verb.help.endswith(".")


def test_every_command_is_either_a_read_or_a_write() -> None:
    assert {path for path, _ in every_command()} == {*READS, *WRITES}


@pytest.mark.parametrize("path", [path for path, _ in every_command()])
def test_every_command_has_help_for_itself_and_each_option(path: str) -> None:
    function = dict(every_command())[path]
    first = (function.__doc__ or "").splitlines()[0]
    assert re.fullmatch(r"[A-Z].*\.", first), first
    said = holdfast(*path.split(), "--help")
    assert said.code == 0
    assert first.split()[0] in said.out
    name, _, inner = path.partition(" ")
    command = build(name, _main.load(name))
    for parameter in (command.commands[inner] if inner else command).params:
        assert parameter.help.endswith((".", "2h, 1d12h.")), parameter.name


def test_nothing_in_the_command_line_prints_but_the_renderer() -> None:
    for path in (ROOT / "agent" / "cli").glob("*.py"):
        if path.stem in ("_main", "_session", "__main__"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
                allowed = path.stem == "init" and name == "write"  # the question to a person
                assert allowed or name not in ("print", "echo", "secho", "write", "exit", "_exit"), (
                    f"{path.name}:{node.lineno}"
                )


# --- exit codes -----------------------------------------------------------------------------------------------


def test_every_error_has_one_of_our_exit_codes_and_a_code_in_kebab_case() -> None:
    def kinds(kind: type[errors.HoldfastError]) -> Iterator[type[errors.HoldfastError]]:
        yield kind
        for each in kind.__subclasses__():
            yield from kinds(each)

    for kind in kinds(errors.HoldfastError):
        assert kind.exit_code in EXIT_CODES - {0, 1, 2, 3, 130}
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", kind.code)


def test_the_exit_codes_of_the_wrapper_are_those_of_the_design() -> None:
    pinned = {
        errors.UsageError: 64,
        errors.DaemonUnreachable: 69,
        errors.InternalError: 70,
        errors.PermissionRefused: 77,
        errors.ConfigurationError: 78,
    }
    assert {kind: kind.exit_code for kind in pinned} == pinned


# --- on a host where nothing works ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Broken:
    """A part of a host that fails at every use."""

    error: Exception
    root: Path = Path("/nowhere")

    def __getattr__(self, name: str) -> Any:
        def fail(*_: object, **__: object) -> Any:
            raise self.error

        return fail

    def __call__(self, *_: object, **__: object) -> Any:
        raise self.error


def broken(error: Exception) -> Any:
    part: Any = Broken(error)
    return Host(part, part, FakeHost.build().clock, part, part, part)


@pytest.mark.parametrize("path", [*READS, *WRITES])
@pytest.mark.parametrize(
    "error",
    [
        FileTrouble("it is denied", kind="denied", where="/x"),
        FileTrouble("it broke", kind="other"),
        HostError("the machine is on fire"),
        RuntimeError("a bug of ours"),
        MemoryError(),
    ],
    ids=["denied", "broken", "host", "bug", "memory"],
)
@pytest.mark.parametrize("uid", [0, 1000])
def test_no_verb_shows_a_traceback_whatever_fails(
    monkeypatch: pytest.MonkeyPatch, path: str, error: Exception, uid: int
) -> None:
    arguments = {**READS, **WRITES}[path]

    def fail() -> int:
        raise error

    import agent.daemon  # noqa: PLC0415 - replaced: the real one would start

    monkeypatch.setattr(agent.daemon, "run", fail)
    for extra in ([], ["--json"]):
        said = holdfast(*path.split(), *arguments, *extra, host=broken(error), uid=uid)
        assert said.code in EXIT_CODES
        assert "Traceback" not in said.out + said.err
        assert 'File "' not in said.out + said.err
        if extra:
            envelope(said.out)
        elif said.code >= 64:
            assert said.err.startswith("holdfast: ")


# --- envelopes ------------------------------------------------------------------------------------------------


@pytest.fixture
def box(tmp_path: Path) -> FakeHost:
    return tree(
        tmp_path,
        {
            **FILES,
            "/proc/net/tcp": "",
            "/etc/holdfast/driver.lock": "580.178.04\n",
            "/sys/module/nvidia/version": "580.178.04\n",
        },
        commands={"systemctl ...": "", "timedatectl ...": "yes", "journalctl ...": ""},
        ipc={"/run/holdfast-runner.sock": absent, "/run/holdfast/control.sock": absent},
        child={"nvml": None},
    )


@pytest.mark.parametrize("path", READS)
def test_every_read_verb_answers_in_the_envelope(box: FakeHost, path: str) -> None:
    said = holdfast(*path.split(), *READS[path], "--json", host=box)
    found = envelope(said.out)
    assert said.err == ""
    assert said.code in EXIT_CODES
    assert (found.data is None) == bool(said.code >= 64)
    assert found.data is not None or found.errors


@pytest.mark.parametrize("path", READS)
def test_every_time_in_an_envelope_is_rfc3339_in_utc(box: FakeHost, path: str) -> None:
    def times(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict):
            for key, each in value.items():
                yield from times(each, key)
        elif isinstance(value, list):
            for each in value:
                yield from times(each)
        elif name in ("at", "since", "until") or name.endswith("_at"):
            yield name, value

    document = holdfast(*path.split(), *READS[path], "--json", host=box).json
    for name, value in times(document):
        assert value is None or (
            isinstance(value, str) and re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", value)
        ), name


# --- what is generated ----------------------------------------------------------------------------------------


def generated(*command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": sys.executable}
    return subprocess.run(
        [str(ROOT / "script" / command[0]), *command[1:]], capture_output=True, text=True, env=environment, check=False
    )


def test_the_man_page_names_every_command_and_exit_code() -> None:
    said = generated("gen-man")
    assert said.returncode == 0, said.stderr
    text = said.stdout.replace("\\-", "-")
    for path, _ in every_command():
        assert f'.SS "holdfast {path}"' in text
    for code in EXIT_CODES:
        assert f".B {code}\n" in text
    assert text.startswith('.TH HOLDFAST 1 "" "holdfast ' + agent.__version__)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completions_are_for_the_installed_command(shell: str) -> None:
    said = generated("gen-completion", shell)
    assert said.returncode == 0, said.stderr
    assert f"_HOLDFAST_COMPLETE=complete_{shell}" in said.stdout


def test_an_unknown_shell_has_no_completion() -> None:
    assert generated("gen-completion", "tcsh").returncode != 0


def test_completion_offers_verbs_options_and_choices() -> None:
    def complete(words: str) -> list[str]:
        environment = {
            **os.environ,
            "_HOLDFAST_COMPLETE": "complete_bash",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split(" ")) - 1),
        }
        said = subprocess.run(
            [sys.executable, "-m", "agent.cli"], capture_output=True, text=True, env=environment, cwd=ROOT, check=True
        )
        return said.stdout.split()

    assert complete("holdfast st") == ["status", "stop"]
    assert complete("holdfast explain xid 7") == ["7", *(str(code) for code in range(70, 80))]
    assert complete("holdfast lock ") == ["show", "write", "verify"]
    assert "--dry-run" in complete("holdfast run --")
    assert "driver.lock" in complete("holdfast check dri")


def test_the_reference_pages_are_up_to_date() -> None:
    said = generated("gen-reference", "--check")
    assert said.returncode == 0, said.stderr


HEAVY = ("pydantic", "requests", "yaml", "jinja2", "rich", "prometheus_client", "apscheduler", "psutil")


def test_status_imports_nothing_heavy() -> None:
    program = f"import sys; from agent.cli import main; main(['status']); print(*set({HEAVY!r}) & set(sys.modules))"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert said.stdout.split() == []


def test_the_version_is_that_of_the_project_file() -> None:
    assert f'version = "{agent.__version__}"' in (ROOT / "pyproject.toml").read_text()


def test_every_plugin_is_in_the_reference() -> None:
    pages = "".join(path.read_text() for path in (ROOT / "docs" / "reference").glob("*.md"))
    for kind in (plugin.checks, plugin.rules, plugin.actions, plugin.engines, plugin.receivers):
        for identifier in kind():
            assert f"## `{identifier}`" in pages


# --- the daemon's control socket, both ends for real ------------------------------------------------------------


def test_the_command_line_understands_what_the_control_socket_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def handle(request: Control, _who: str) -> Mapping[str, Json]:
        if request.args.get("receiver"):
            raise control.unknown("such receiver")
        return {"receivers": [{"name": "hook", "state": "sent", "reason": "answered 200"}]}

    path = str(tmp_path / "control.sock")
    monkeypatch.setattr(_sockets, "CONTROL_SOCKET", path)
    host = dataclasses.replace(FakeHost.build({"/etc/holdfast/holdfast.toml": HOOK}), ipc=RealIpc())
    server = control.ControlServer(path, None, handle)
    try:
        taken = holdfast("pager", "test", host=host)
        refused = holdfast("pager", "test", "hook", host=host)
    finally:
        server.stop()
    assert (taken.code, taken.err) == (0, "")
    assert "taken: answered 200" in taken.out
    assert refused.code == 77
    assert "there is no such receiver [unknown]" in refused.err


HOOK = '[[receiver]]\nname = "hook"\nkind = "webhook"\nurl = "https://hook.example/x"\n'


def test_metrics_are_served_on_loopback_only_under_their_path() -> None:
    exporter = metrics.serve("127.0.0.1:0", lambda: metrics.Snapshot(version="9"))
    try:
        http = RealHttp()
        told = http("GET", f"http://127.0.0.1:{exporter.port}/metrics", timeout_s=5.0)
        other = http("GET", f"http://127.0.0.1:{exporter.port}/", timeout_s=5.0)
    finally:
        exporter.stop()
    assert 'holdfast_build_info{version="9"} 1.0' in told.text
    assert told.headers["content-type"].startswith("text/plain")
    assert other.status == 404


def test_a_port_that_is_taken_costs_the_metrics_and_nothing_else() -> None:
    first = metrics.serve("127.0.0.1:0", metrics.Snapshot)
    second = metrics.serve(f"127.0.0.1:{first.port}", metrics.Snapshot)
    try:
        assert "cannot listen" in second.problem
    finally:
        second.stop()
        first.stop()


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
def test_the_man_page_has_no_mistake_in_its_markup() -> None:
    page = generated("gen-man").stdout
    said = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww", "-z"], input=page, capture_output=True, text=True, check=True
    )
    assert said.stderr == ""


def test_bash_completes_with_the_script_we_ship(tmp_path: Path) -> None:
    command = tmp_path / "holdfast"
    command.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m agent.cli "$@"\n')
    command.chmod(0o755)
    script = generated("gen-completion", "bash").stdout
    asked = (
        f'{script}\nCOMP_WORDS=(holdfast lock w); COMP_CWORD=2; _holdfast_completion holdfast; echo "${{COMPREPLY[@]}}"'
    )
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    said = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, env=environment, check=True)
    assert said.stdout.split() == ["write"]
