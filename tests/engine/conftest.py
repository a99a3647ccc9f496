"""Fixtures of the engine tier: a real llama-server on this machine, watched through the real host.

There is no systemd here, so the unit is made up: `systemctl show` and the control group are answered for it, all
the rest (processes, threads, HTTP, clocks) is real.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
import requests

from agent import frame, plugin
from agent.engines.llama_cpp import ENGINE, LlamaCppSettings
from agent.host import Completed, Host, Stat
from agent.host.files import RealFiles
from agent.host.real import real_host
from agent.model import CheckResult
from agent.plugin import Target
from tests.support.fake_host import systemctl_show

HERE = Path(__file__).resolve().parent
for folder in (HERE, HERE.parent / "host"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

from bed import UnavailableError  # noqa: E402 (needs the path above)
from bed.engine import llama_server, models  # noqa: E402

UNIT = "llama-server.service"
GROUP = f"/sys/fs/cgroup/system.slice/{UNIT}"
THREAD_FAULT = HERE.parent / "host" / "bed" / "guest" / "thread_fault.py"
TIMEOUT_S = 2400


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what lies in this folder, and give it time to build an engine."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("engine")
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(TIMEOUT_S))


def unavailable(reason: str) -> NoReturn:
    """Skip with the reason, or fail where the engine tier is required."""
    if "engine" in os.environ.get("HOLDFAST_REQUIRE", "").replace(",", " ").split():
        pytest.fail(f"required (HOLDFAST_REQUIRE) but not to be had: {reason}", pytrace=False)
    pytest.skip(reason)


class UnitFiles(RealFiles):
    """The real files, with a control group that holds one process."""

    pid = 0
    frozen = False

    def read_text(self, path: str, limit: int = 1 << 20) -> str:
        if path == f"{GROUP}/cgroup.procs":
            return "".join(f"{pid}\n" for pid in (self.pid, *self.children())) if self.alive() else ""
        if path == f"{GROUP}/cgroup.events":
            return f"populated 1\nfrozen {int(self.frozen)}\n"
        return super().read_text(path, limit)

    def exists(self, path: str) -> bool:
        return path == "/sys/fs/cgroup/cgroup.controllers" or super().exists(path)

    def listdir(self, path: str) -> list[str]:
        return ["cgroup.procs"] if path == GROUP else super().listdir(path)

    def stat(self, path: str) -> Stat:
        if path.startswith("/sys/fs/cgroup/"):
            return super().stat("/proc/self/stat" if path.rpartition("/")[2].startswith("cgroup.") else "/proc")
        return super().stat(path)

    def realpath(self, path: str) -> str:
        return path if path.startswith("/sys/fs/cgroup/") else super().realpath(path)

    def children(self) -> list[int]:
        """What it started itself, as a router does."""
        found: list[int] = []
        for tid in super().listdir(f"/proc/{self.pid}/task"):
            found += map(int, super().read_text(f"/proc/{self.pid}/task/{tid}/children").split())
        return found

    def alive(self) -> bool:
        """Whether the process lives (a zombie does not)."""
        try:
            return super().read_text(f"/proc/{self.pid}/stat").rpartition(")")[2].split()[0] != "Z"
        except Exception:  # noqa: BLE001 - gone
            return False


@dataclass
class Watched:
    """A running llama-server, and Holdfast's eyes on it."""

    process: subprocess.Popen[bytes]
    host: Host
    settings: LlamaCppSettings
    files: UnitFiles

    @property
    def url(self) -> str:
        return self.settings.url

    def check(self, identifier: str, before: CheckResult | None = None) -> CheckResult:
        """Run one check as the daemon does."""
        check = plugin.checks()[identifier]
        target = Target("engine:chat", check.params(), check.every_s, ENGINE, self.settings)
        return frame.run_check(self.host, check, target, frame.before_of(before))

    def watch(self, until: Callable[[CheckResult], bool], within_s: float) -> tuple[CheckResult, float]:
        """Look every five seconds, as the daemon does, until a result fits; the result, and how long that took."""
        started, last = time.monotonic(), None
        while True:
            began = time.monotonic()
            last = self.check("engine.progress", last) if last else self._first()
            took_s = time.monotonic() - started
            if until(last):
                return last, took_s
            assert took_s < within_s, f"after {took_s:.0f} s still {last.verdict}: {last.summary}"
            time.sleep(max(0.0, 5.0 - (time.monotonic() - began)))

    def _first(self) -> CheckResult:
        """The first look of all, without the frame's second one."""
        check = replace(plugin.checks()["engine.progress"], needs_before=False)
        target = Target("engine:chat", check.params(), check.every_s, ENGINE, self.settings)
        return frame.run_check(self.host, check, target, None)

    def complete(self, tokens: int, prompt: str = "hello", timeout_s: float = 120.0) -> Any:
        """One completion, waited for."""
        body = {"prompt": prompt, "n_predict": tokens, "ignore_eos": True, "cache_prompt": False}
        return requests.post(f"{self.url}/completion", json=body, timeout=timeout_s)

    @contextlib.contextmanager
    def thread_fault(self, how: str, pid: int = 0) -> Iterator[None]:
        """The inference thread is held ("freeze") or burns its core ("spin") meanwhile."""
        argv = [sys.executable, str(THREAD_FAULT), how, str(pid or self.process.pid)]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as helper:
            assert helper.stdout is not None
            assert helper.stdin is not None
            assert helper.stdout.readline().strip() == b"held"
            yield
            helper.stdin.close()


@pytest.fixture(scope="session")
def build() -> tuple[Path, Path]:
    """The folders of llama-server and of the models."""
    try:
        return llama_server(), models()
    except UnavailableError as error:
        unavailable(str(error))


@pytest.fixture
def llama(build: tuple[Path, Path]) -> Iterator[Callable[..., Watched]]:
    """A function that starts a llama-server; it ends with the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start(
        *extra: str, model: str = "tiny", wait: bool = True, slots: int = 2, older: bool = False, **more: Any
    ) -> Watched:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        program = llama_server(older=True) if older else build[0]
        command = [str(program / "llama-server"), "--host", "127.0.0.1", "--port", str(port), "--threads", "1"]
        command += ["--parallel", str(slots), "--ctx-size", "4096"]
        command += ["--model", str(build[1] / f"{model}.gguf")] if model else ["--models-dir", str(build[1])]
        process = subprocess.Popen(
            [*command, *extra], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        started.append(process)
        watched = watch(process, f"http://127.0.0.1:{port}", **more)
        deadline = time.monotonic() + 60
        while wait and not _ready(watched):
            assert time.monotonic() < deadline, "the server did not get ready"
            time.sleep(0.05)
        return watched

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # a router's children too
        process.wait()


def watch(process: subprocess.Popen[bytes], url: str, **more: Any) -> Watched:
    """Holdfast's eyes on a process."""
    settings = LlamaCppSettings(name="chat", kind="llama.cpp", url=url, unit=UNIT, gpu=False, **more)
    real, files = real_host(), UnitFiles()
    files.pid = process.pid

    def run(argv: Sequence[str], **options: Any) -> Completed:
        if tuple(argv[:2]) == ("systemctl", "show"):
            words = {"MainPID": process.pid} if files.alive() else {"ActiveState": "failed", "Result": "signal",
                     "ExecMainCode": "2", "ExecMainStatus": "9"}  # fmt: skip
            return Completed(tuple(argv), 0, systemctl_show(UNIT, **words), "", 0.0)
        return Completed(tuple(argv), 0, "", "", 0.0)  # a journal without a line

    return Watched(process, replace(real, files=files, run=run), settings, files)


def _ready(watched: Watched) -> bool:
    try:
        return bool(requests.get(f"{watched.url}/health", timeout=1).status_code == 200)
    except requests.RequestException:
        return False
