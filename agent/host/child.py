"""One disposable child that may hang in the driver for ever, and never takes its asker with it.

A call into the NVIDIA driver can block in D state, where not even SIGKILL ends it, and killing a client in the middle
of a call has frozen GPUs (dcgm-exporter#84). So the child is never killed and never waited for without a limit: when
it is late it is left alone, no second one is started beside it, and it is reaped when it ends by itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from agent.errors import CommandFailed, FileTrouble
from agent.host import Files
from agent.host.commands import PATH
from agent.model import Json

PROGRAMS: Mapping[str, Path] = {"nvml": Path(__file__).with_name("nvml_child.py")}
"""Our own probes by name. Each prints one line of JSON and exits; its arguments are the import path."""
_LIMIT = 1 << 20
_SCOPE = (
    "systemd-run", "--scope", "--quiet", "--collect", "--property=SendSIGKILL=no", "--property=TimeoutStopSec=1s", "--",
)  # fmt: skip
"""Starts a program in a control group of its own, in place of itself, so that the pid stays."""
_LEAVE_S = 1.0
"""How long a child that has answered may take to leave before it counts as hanging."""


@dataclass
class _Running:
    """A child that was started and not yet reaped."""

    process: subprocess.Popen[bytes]
    question: str
    started: float
    said: bytearray = field(default_factory=bytearray)

    def pipe(self) -> int:
        assert self.process.stdout is not None  # noqa: S101 - opened below with a pipe
        return self.process.stdout.fileno()

    def hang_up(self) -> None:
        """Listen no more. A child that still has much to say would otherwise wait for a reader for ever."""
        if self.process.stdout is not None:
            self.process.stdout.close()


class RealChild:
    """The `Child` primitive."""

    def __init__(self, files: Files, programs: Mapping[str, Path] = PROGRAMS) -> None:
        self._files = files
        self._programs = programs
        self._lock = threading.Lock()
        self._running: _Running | None = None

    def ask(self, question: str, *, deadline_s: float) -> Mapping[str, Json] | None:
        """The child's JSON answer; None when it did not answer within `deadline_s`, or an earlier one still hangs.

        A child that ends without an answer is told as {"failed": words}, which is not the same as silence.
        Raises CommandFailed when it cannot be started.
        """
        deadline = time.monotonic() + deadline_s
        if not self._lock.acquire(timeout=max(0.0, deadline_s)):
            return None
        try:
            if self._running is not None and not _leave(self._running, time.monotonic()):
                return None
            self._running = running = self._start(question)
            try:
                answer = _listen(running, deadline)
            finally:
                running.hang_up()
            if answer is not None and _leave(running, max(deadline, time.monotonic() + _LEAVE_S)):
                self._running = None
                return _parse(answer, running.process.returncode)
            return None if answer is None else _parse(answer, None)
        finally:
            self._lock.release()

    def stuck(self) -> Mapping[str, Json] | None:
        """The pid, state, wchan and age_s of a child that is late; None when there is none.

        state is the kernel's letter ("D" hangs in the driver), "" when it cannot be read; so is wchan.
        """
        running = self._running
        if running is None or self._lock.locked() or _leave(running, time.monotonic()):
            return None
        pid = running.process.pid
        return {
            "question": running.question,
            "pid": pid,
            "state": self._proc(pid, "stat").rpartition(")")[2].strip()[:1],
            "wchan": self._proc(pid, "wchan").strip(),
            "age_s": time.monotonic() - running.started,
        }

    def _start(self, question: str) -> _Running:
        program = self._programs[question]
        # Isolated like our launchers: only the path handed over here is searched, whatever the environment says.
        argv = [*_apart(), sys.executable, "-IS", str(program), *(entry for entry in sys.path if entry)]
        try:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                cwd="/",
                env={"PATH": PATH, "LC_ALL": "C"},
                start_new_session=True,
            )
        except OSError as error:
            raise CommandFailed(
                f"the {question} probe could not be started: {error}", code="command-not-started"
            ) from error
        running = _Running(process, question, time.monotonic())
        os.set_blocking(running.pipe(), False)
        return running

    def _proc(self, pid: int, name: str) -> str:
        try:
            return self._files.read_text(f"/proc/{pid}/{name}")
        except FileTrouble:
            return ""


def _apart() -> Sequence[str]:
    """What keeps the child out of its asker's unit: a run ends, and systemd kills what is left of its control group.

    Only root may ask for that, and only root's runs need it: the units that stay do not kill their children.
    """
    return _SCOPE if os.geteuid() == 0 and os.path.isdir("/run/systemd/system") else ()


def _listen(running: _Running, deadline: float) -> bytes | None:
    """What the child says, up to its first line or its end; None when neither came by the deadline."""
    poll = select.poll()
    poll.register(running.pipe(), select.POLLIN)
    while True:
        left = deadline - time.monotonic()
        if poll.poll(max(0.0, left) * 1000):
            with contextlib.suppress(BlockingIOError):
                chunk = os.read(running.pipe(), 1 << 16)
                running.said += chunk
                if not chunk or b"\n" in chunk or len(running.said) > _LIMIT:
                    return bytes(running.said)
        if left <= 0:
            return None


def _leave(running: _Running, deadline: float) -> bool:
    """Whether the child has ended by the deadline; then it is reaped."""
    if running.process.poll() is None:
        try:
            pidfd = os.pidfd_open(running.process.pid)
        except OSError:
            return False
        try:
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
        finally:
            os.close(pidfd)
    return running.process.poll() is not None


def _parse(said: bytes, status: int | None) -> Mapping[str, Json]:
    line, end, _ = said.partition(b"\n")
    with contextlib.suppress(ValueError):
        answer = json.loads(line)
        if end and isinstance(answer, dict):
            return answer
    return {
        "failed": f"it ended with status {status} and no answer" if not said else "its answer was not one line of JSON"
    }
