"""A fresh build is tried with real llama-servers: what is good passes, what would not serve is named beforehand."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent import plugin, steps
from agent.engines.llama_cpp import Rebuild
from agent.host import Completed, Host
from agent.host.real import real_host
from agent.plugin import Target
from tests.engine.conftest import Watched, llama_server
from tests.support.fake_host import systemctl_show

COMMIT = "c" * 40
PROVE = plugin.actions()["build.prove"]
TRIAL = "holdfast-prove-chat.service"


class Trials:
    """What systemd does for a trial: the program runs, is seen, and is stopped."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.running: subprocess.Popen[bytes] | None = None
        self.started: list[tuple[str, ...]] = []

    def __call__(self, argv: Sequence[str], **how: Any) -> Completed:
        words = tuple(argv)
        if words[0] == "systemd-run":
            self.started.append(words)
            self.running = subprocess.Popen(
                words[words.index("--") + 1 :], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL, cwd="/", start_new_session=True,
            )  # fmt: skip
            return Completed(words, 0, "", "", 0.0)
        if words[0] == "systemctl" and words[-1] == TRIAL:
            if words[1] == "show":
                return Completed(words, 0, self._shown(), "", 0.0)
            if words[1] == "stop":
                self.stop()
            return Completed(words, 0, "", "", 0.0)
        if words[0].endswith("llama-server") or "git" in words:
            return real_host().run(argv, **{**how, "user": None})  # this machine need not have the build user
        return self._host.run(argv, **how)

    def _shown(self) -> str:
        ended = None if self.running is None else self.running.poll()
        if self.running is None:
            return systemctl_show(TRIAL, ActiveState="inactive")
        if ended is None:
            return systemctl_show(TRIAL, MainPID=self.running.pid)
        return systemctl_show(TRIAL, ActiveState="failed", ExecMainCode=1, ExecMainStatus=ended)

    def stop(self) -> None:
        if self.running is not None and self.running.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.running.pid, signal.SIGTERM)
            self.running.wait(10)
        self.running = None


@pytest.fixture
def prove(tmp_path: Path) -> Iterator[Callable[[Watched, Path], str]]:
    """A function that tries the build in a folder beside a server that runs, and gives what is said of it."""
    trials: list[Trials] = []

    def tried(serving: Watched, build: Path) -> str:
        folder = tmp_path / "releases" / f".untagged-{COMMIT[:12]}+cpu.new"
        shutil.copytree(build, folder / "bin", symlinks=True)
        place = tmp_path / "current"
        place.mkdir()
        (place / "bin").symlink_to(Path(f"/proc/{serving.process.pid}/exe").resolve().parent)
        rebuild = Rebuild(source=str(tmp_path), commit=COMMIT, releases=str(tmp_path / "releases"), current=str(place))
        settings = serving.settings.model_copy(update={"rebuild": rebuild})
        params = PROVE.params.model_validate({"engine": "chat"})
        trials.append(Trials(serving.host))
        host = replace(serving.host, run=trials[-1])
        target = Target("engine:chat", params, 0.0, plugin.engines()["llama.cpp"], settings)
        plan = PROVE.plan(host, target, params)
        assert "secret-of-the-unit" not in "\n".join(steps.by_hand(plan))
        try:
            return steps.Performer(host).perform(plan).summary
        finally:
            assert PROVE.undo is not None
            assert plan.before is not None
            steps.Performer(host).perform(PROVE.undo(host, target, params, plan.before))
            assert trials[-1].running is None

    yield tried
    for each in trials:
        each.stop()


Llama = Callable[..., Watched]
Prove = Callable[[Watched, Path], str]


def test_a_good_build_passes_and_what_was_proven_is_said(llama: Llama, build: tuple[Path, Path], prove: Prove) -> None:
    said = prove(llama("--api-key", "secret-of-the-unit", api_key_file=None, wait=False), build[0])
    assert "arguments fit" in said
    assert "generated a token" in said
    assert "does not say of which commit" in said


def test_a_build_that_does_not_know_an_argument_of_the_unit_is_named_with_it(llama: Llama, prove: Prove) -> None:
    serving = llama("--fit", "off")
    with pytest.raises(steps.StepFailed, match=r"would not start as .*: it does not know the argument --fit$"):
        prove(serving, llama_server(older=True))


def test_a_build_without_a_library_of_its_is_told_by_the_library(
    llama: Llama, build: tuple[Path, Path], prove: Prove, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(build[0], broken, symlinks=True)
    for library in broken.glob("libmtmd.so*"):
        library.unlink()
    with pytest.raises(steps.StepFailed, match=r"the library libmtmd\.so\.\d+ is missing"):
        prove(llama(), broken)
