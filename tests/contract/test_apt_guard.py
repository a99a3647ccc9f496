"""The apt guard as a process of its own: nothing but the standard library, two exit codes, one line in the log."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from agent.host import syslog
from agent.host.driver import LOCK_FILE

ROOT = Path(__file__).resolve().parents[2]
IMPORTED = (
    "import json, sys; sys.path.insert(0, sys.argv[1]); import agent.apt_guard; "
    "print(json.dumps([sorted(sys.modules), sorted(sys.stdlib_module_names)]))"
)
HEAVY = {"pydantic", "requests", "apscheduler", "psutil", "yaml", "jinja2", "typer", "rich", "asyncio", "sqlite3",
         "ssl", "urllib.request", "http.client", "email"}  # fmt: skip
OURS = {"agent", "agent.apt_guard", "agent.errors", "agent.host", "agent.model"}


def test_it_imports_the_standard_library_and_our_lowest_layers_only() -> None:
    # -IS: as its launcher runs it, without site-packages
    done = subprocess.run(
        [sys.executable, "-IS", "-c", IMPORTED, str(ROOT)], check=True, capture_output=True, text=True, timeout=30
    )
    found, standard = json.loads(done.stdout)
    assert HEAVY.isdisjoint(found)
    known = {*standard, "__main__"}
    foreign = [name for name in found if name.partition(".")[0] not in known and name.partition(".")[0] != "agent"]
    assert foreign == []
    ours = [name for name in found if name.partition(".")[0] == "agent"]
    assert [name for name in ours if ".".join(name.split(".")[:2]) not in OURS] == []


def guard(*, words: bytes = b"", root: Path = ROOT, lock: Path | None = None) -> subprocess.CompletedProcess[bytes]:
    """The launcher that the package ships, with its code at `root`, and with a lock of its own."""
    text = (ROOT / "packaging/deb/apt-guard").read_text(encoding="utf-8")
    code = text.replace('"/usr/lib/holdfast"', repr(str(root))).replace(repr(LOCK_FILE)[1:-1], str(lock or __file__))
    assert str(root) in code
    assert str(lock or __file__) in code
    return subprocess.run(
        [sys.executable, "-IS", "-c", code], input=words, check=False, capture_output=True, timeout=60
    )


def test_nothing_to_say_is_0() -> None:
    done = guard(words=b"VERSION 3\n\nhello - - none < 1.0 amd64 none /x.deb\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_without_a_lock_nothing_of_ours_is_even_imported(tmp_path: Path) -> None:
    many = b"VERSION 3\n\n" + b"nvidia-utils-580 - - none < 1.0 amd64 none /x.deb\n" * 10_000
    done = guard(root=tmp_path, words=many, lock=tmp_path / "driver.lock")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    (tmp_path / "driver.lock").symlink_to("nowhere")  # a lock that leads nowhere is one, and is told
    assert guard(root=tmp_path, words=many, lock=tmp_path / "driver.lock").stderr != b""


def broken(folder: Path, what: str) -> Path:
    if what == "no code":
        return folder
    for place in ("agent/__init__.py", "agent/apt_guard/__init__.py"):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).touch()
    text = {"syntax": "def main(:\n", "exit": "raise SystemExit(77)\n", "empty": "", "bug": "def main():\n    1 / 0\n"}
    (folder / "agent/apt_guard/__init__.py").write_text(text[what], encoding="utf-8")
    return folder


@pytest.mark.parametrize("what", ["no code", "syntax", "exit", "empty", "bug"])
def test_an_installation_that_is_broken_lets_everything_through_and_says_so(tmp_path: Path, what: str) -> None:
    done = guard(root=broken(tmp_path, what), words=b"VERSION 3\n\n")
    assert done.returncode == 0
    assert b"holdfast: warning: the apt guard does not work and lets everything through" in done.stderr


def test_the_first_word_of_the_hook_is_the_one_that_apt_looks_its_options_up_by() -> None:
    lines = (ROOT / "packaging/deb/apt.conf").read_text(encoding="utf-8").splitlines()
    hook = next(line for line in lines if line.startswith("DPkg::Pre-Install-Pkgs"))
    first = hook.partition('"')[2].partition(" ")[0]
    assert f'DPkg::Tools::Options::{first}::Version "3";' in lines


@pytest.mark.parametrize(("code", "passes"), [(0, True), (1, True), (77, False), (127, True), (None, True)])
def test_only_77_makes_the_hook_fail(tmp_path: Path, code: int | None, passes: bool) -> None:
    text = (ROOT / "packaging/deb/apt.conf").read_text(encoding="utf-8")
    line = next(each for each in text.splitlines() if each.startswith("DPkg::Pre-Install-Pkgs")).split('"')[1]
    program = tmp_path / "guard"
    if code is not None:
        program.write_text(f"#!/bin/sh\nexit {code}\n", encoding="ascii")
        program.chmod(0o755)
    done = subprocess.run(
        ["sh", "-c", line.replace("/usr/lib/holdfast/apt-guard", str(program))], check=False, capture_output=True
    )
    assert (done.returncode == 0, done.stderr) == (passes, b"")


def test_a_warning_reaches_the_systems_log_in_one_bounded_line(tmp_path: Path) -> None:
    path = str(tmp_path / "log")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.bind(path)
        log.settimeout(10)
        syslog.warn("holdfast-apt-guard", "two\nlines " + "x" * 5000, path)
        seen = log.recv(4096).decode()
    assert seen.startswith("<28>holdfast-apt-guard[")
    assert "]: two lines xxx" in seen
    assert len(seen) < 1100


def test_a_log_that_is_not_there_or_full_costs_nothing(tmp_path: Path) -> None:
    syslog.warn("tag", "text", str(tmp_path / "none"))
    path = str(tmp_path / "log")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.bind(path)
        for _ in range(2000):  # nobody reads
            syslog.warn("tag", "x" * 900, path)
