"""One host with one engine, for tests of the runner: real files below a folder, a stand-in for systemd, and its engine.

The stand-in keeps its state in a file, so that several processes see the same unit. `Faults` says how the engine
behaves. Every durable write and every command counts as one act, and `die_at` kills the process at one of them.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent import runner, verbs
from agent.errors import Unreachable
from agent.host import Completed, Host, Peer, Reply
from agent.host.files import RealFiles
from agent.host.journal import STARTED, STOPPED
from agent.model import Json, Moment
from agent.protocol import Event, Request, line
from tests.support.fake_host import journal, systemctl_show

UNIT = "chat.service"
SUBJECT = "engine:chat"
DAEMON_UID = 64997
READER_UID = 64998
CONFIG = """
[autonomy]
mode = "{autonomy}"

[[engine]]
name = "chat"
kind = "llama.cpp"
url = "http://127.0.0.1:8080"
unit = "chat.service"
gpu = false
stop_grace_s = 1
"""
verbs.preload()  # as the runner does before its first step; the guard of the unit tests would object to it later
_REPOSITORY = Path(__file__).resolve().parents[2]
_ULID = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def ulid(number: int) -> str:
    """The id number `number`."""
    return "01" + "".join(_ULID[number >> shift & 31] for shift in range(115, -1, -5))


class QuickClock:
    """Real time, but sleeping only pretends."""

    def __init__(self, boot_id: str = "boot-1") -> None:
        self.ahead_s = 0.0
        self.boot_id = boot_id

    def now(self) -> Moment:
        return Moment(time.time() + self.ahead_s, time.monotonic() + self.ahead_s, self.boot_id)

    def suspended_s(self) -> float:
        return 0.0

    def sleep(self, seconds: float) -> None:
        self.ahead_s += seconds


class Killed(BaseException):
    """Stands for SIGKILL where the process must live on to see what is left. Nothing catches it."""


def sigkill() -> None:
    """Die at once."""
    os.kill(os.getpid(), signal.SIGKILL)


def fall() -> None:
    """Pretend to die at once."""
    raise Killed


@dataclass
class Acts:
    """Counts what changes the world; dies before (odd) or after (even) one act."""

    die_at: int = 0
    die: Callable[[], None] = fall
    count: int = 0
    seen: list[str] = field(default_factory=list)

    def around(self, name: str, act: Callable[[], Any]) -> Any:
        self._step(f"before {name}")
        found = act()
        self._step(f"after {name}")
        return found

    def _step(self, name: str) -> None:
        self.count += 1
        self.seen.append(name)
        if self.count == self.die_at:
            self.die()


class CountedFiles(RealFiles):
    """Real files whose durable writes are acts."""

    def __init__(self, root: Path, acts: Acts) -> None:
        super().__init__(root)
        self.acts = acts

    def write_atomic(self, path: str, text: str, mode: int = 0o644, *, group: str | None = None) -> None:
        self.acts.around(f"write {path}", lambda: super(CountedFiles, self).write_atomic(path, text, mode, group=group))

    def append_durable(self, path: str, line: str, mode: int = 0o640, *, group: str | None = None) -> None:
        self.acts.around(
            f"append {path}", lambda: super(CountedFiles, self).append_durable(path, line, mode, group=group)
        )


def replace_file(path: Path, text: str) -> None:
    """Write so that another process sees the old text or the new one."""
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    beside.write_text(text)
    beside.replace(path)


class Systemd:
    """Enough of systemctl and journalctl for one unit."""

    def __init__(self, root: Path, acts: Acts) -> None:
        self._path = root / "systemd.json"
        self._procs = root / f"sys/fs/cgroup/system.slice/{UNIT}/cgroup.procs"
        self._acts = acts
        self.calls: list[tuple[str, ...]] = []

    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._path.read_text())
        return found

    def set(self, **changes: Any) -> None:
        known = self.state() if self._path.exists() else {}
        known = {**known, **changes}
        self._procs.parent.mkdir(parents=True, exist_ok=True)
        replace_file(self._procs, "42\n" if known["ActiveState"] in ("active", "deactivating") else "")
        replace_file(self._path, json.dumps(known))

    def __call__(
        self, argv: Sequence[str], *, timeout_s: float, user: str | None = None, cwd: str | None = None,
        env: Mapping[str, str] | None = None, limit: int = 1 << 20,
    ) -> Completed:  # fmt: skip
        words = tuple(argv)
        self.calls.append(words)
        if words[0] == "journalctl":
            return Completed(words, 0, self._journal(words), "", 0.0)
        assert words[0] == "systemctl", words
        if words[1] == "show":
            properties = {name: value for name, value in self.state().items() if name[0].isupper()}
            return Completed(words, 0, systemctl_show(UNIT, **properties), "", 0.0)
        self._acts.around(" ".join(words), getattr(self, "_" + words[1].replace("-", "_")))
        return Completed(words, 0, "", "", 0.0)

    def _stop(self) -> None:
        known = self.state()
        if known["ActiveState"] != "active":
            return
        stops = [*known["stops"], known["InvocationID"]]
        if known["ignores_sigterm"]:
            self.set(ActiveState="deactivating", SubState="stop-sigterm", stops=stops)
        else:
            self.set(ActiveState="inactive", SubState="dead", MainPID=0, stops=stops)

    def _kill(self) -> None:
        if self.state()["ActiveState"] in ("active", "deactivating") and not self.state()["unkillable"]:
            self.set(ActiveState="failed", SubState="failed", Result="signal", MainPID=0)

    def _reset_failed(self) -> None:
        if self.state()["ActiveState"] == "failed":
            self.set(ActiveState="inactive", SubState="dead", Result="success")

    def _start(self) -> None:
        known = self.state()
        if known["ActiveState"] == "active":
            return
        self.set(
            starts=known["starts"] + 1, InvocationID=f"{known['starts'] + 2:032x}", healthy=not known["stays_sick"]
        )
        if known["broken"]:
            self.set(ActiveState="failed", SubState="failed", Result="exit-code", ExecMainStatus=127, MainPID=0)
        else:
            self.set(ActiveState="active", SubState="running", Result="success", MainPID=42)

    def _journal(self, words: Sequence[str]) -> str:
        if f"MESSAGE_ID={STARTED}" in words and f"MESSAGE_ID={STOPPED}" not in words:
            known = self.state()
            return journal({"INVOCATION_ID": f"{known['starts'] + 1:032x}"}) if known["started"] else ""
        if any(word.startswith("MESSAGE_ID=") for word in words):
            asked = [word.partition("=")[2] for word in words if word.startswith("INVOCATION_ID=")]
            stopped = [each for each in self.state()["stops"] if not asked or each in asked]
            return journal(
                *(
                    {"MESSAGE_ID": STOPPED, "JOB_TYPE": "stop", "JOB_RESULT": "done", "INVOCATION_ID": each}
                    for each in stopped
                )
            )
        return journal(*({"MESSAGE": text} for text in self.state()["log"]))


class Engine:
    """A llama-server as HTTP shows it: alive with its unit, and generating while it is healthy."""

    def __init__(self, systemd: Systemd) -> None:
        self._systemd = systemd

    def __call__(self, method: str, url: str, *, timeout_s: float, **_: Any) -> Reply:
        known = self._systemd.state()
        if known["ActiveState"] not in ("active", "deactivating"):
            raise Unreachable("connection refused", kind="refused")
        path = url.partition("8080")[2].partition("?")[0]
        slot: Json = {"id": 0, "n_ctx": 512, "is_processing": False}
        token = {"tokens_predicted": 1, "tokens_evaluated": 1, "stop_type": "limit", "timings": {"predicted_n": 1}}
        answers: dict[str, Json] = {
            "/health": {"status": "ok"},
            "/props": {"total_slots": 1, "build_info": "b1-x", "is_sleeping": False},
            "/v1/models": {"data": [{"id": "tiny"}]},
            "/slots": [slot],
            "/completion": token,
        }
        if path in ("/slots", "/completion") and not known["healthy"]:
            raise Unreachable("no answer", kind="timeout")
        if path not in answers:
            return Reply(501, b"{}")
        return Reply(200, json.dumps(answers[path]).encode(), {"server": "llama.cpp"})


class NoChild:
    """NVML must not be asked for an engine that needs no GPU."""

    def ask(self, question: str, *, deadline_s: float) -> Mapping[str, Json] | None:
        raise AssertionError(f"asked {question}")

    def stuck(self) -> Mapping[str, Json] | None:
        return None


class Connection:
    """The runner's end of a socket: one request in, events out."""

    def __init__(self, said: bytes | Exception | None, uid: int) -> None:
        self.said = said
        self.uid = uid
        self.lines: list[bytes] = []

    def receive(self, timeout_s: float, limit: int = 1 << 16) -> bytes | None:
        if isinstance(self.said, Exception):
            raise self.said
        return self.said

    def send(self, line: bytes, *, timeout_s: float = 5.0) -> bool:
        self.lines.append(line)
        return True

    def peer(self) -> Peer:
        return Peer(1, self.uid, self.uid)

    @property
    def events(self) -> list[Event]:
        return [Event.model_validate_json(each) for each in self.lines]


class World:
    """The host, and how to ask its runner for something."""

    def __init__(self, root: Path, *, autonomy: str = "act", healthy: bool = True, active: bool = True) -> None:
        self.root = root
        self.numbers = 0
        self.acts = Acts()
        self.clock = QuickClock()
        self.systemd = Systemd(root, self.acts)
        files = {
            "etc/holdfast/holdfast.toml": CONFIG.format(autonomy=autonomy),
            "etc/passwd": f"root:x:0:0::/root:/bin/sh\nholdfast:x:{DAEMON_UID}:{DAEMON_UID}::/:/bin/false\n",
            "proc/meminfo": "MemTotal: 1000 kB\nMemAvailable: 500 kB\n",
            "sys/fs/cgroup/cgroup.controllers": "cpu\n",
            "proc/42/cmdline": "llama-server\0--api-key\0secret\0",
            "usr/share/holdfast/runbooks/restart-engine.yaml": (
                _REPOSITORY / "runbooks/restart-engine.yaml"
            ).read_text(),
        }
        for name, text in files.items():
            self.write(name, text)
        (root / "var").mkdir(exist_ok=True)
        up = {"ActiveState": "active", "SubState": "running", "MainPID": 42}
        down = {"ActiveState": "failed", "SubState": "failed", "Result": "signal", "ExecMainStatus": 9, "MainPID": 0}
        self.systemd.set(
            **(up if active else down), InvocationID=f"{1:032x}", UnitFileState="enabled", Job="", healthy=healthy,
            ignores_sigterm=False, unkillable=False, broken=False, starts=0, stops=[], log=[],
            started=True, stays_sick=False,
        )  # fmt: skip

    def write(self, name: str, text: str) -> None:
        """Put a file into the host; readable by all, writable by its owner only."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o644)

    def host(self) -> Host:
        """The host as the runner sees it."""
        files = CountedFiles(self.root, self.acts)
        return Host(files, self.systemd, self.clock, Engine(self.systemd), NoChild(), None)  # type: ignore[arg-type]

    def request(self, do: str = "run", **changes: Any) -> Request:
        """A request with a fresh id; for restart-engine on the engine unless it says otherwise."""
        self.numbers += 1
        named = (
            {"runbook": "restart-engine", "subject": SUBJECT} if do in ("run", "plan", "approve", "rehearse") else {}
        )
        return Request.model_validate({"do": do, "id": ulid(self.numbers), **named, **changes})

    def ask(
        self,
        request: Request | bytes | Exception | None,
        *,
        uid: int = DAEMON_UID,
        stopping: Callable[[], bool] = lambda: False,
    ) -> list[Event]:
        """What the runner answers."""
        said = line(request).rstrip(b"\n") if isinstance(request, Request) else request
        connection = Connection(said, uid)
        runner.answer(self.host(), connection, stopping)  # type: ignore[arg-type]
        return connection.events

    def later(self, seconds: float) -> None:
        """Time passes."""
        self.clock.ahead_s += seconds

    def rebooted(self) -> None:
        """The host was restarted: another boot, and the unit started again because it is enabled."""
        self.clock = QuickClock("boot-2")
        self.systemd.set(ActiveState="active", SubState="running", MainPID=43, InvocationID=f"{99:032x}", healthy=True)

    def restarted(self) -> World:
        """The same world seen by a new process: acts are counted from nought."""
        again = object.__new__(type(self))
        again.__dict__.update(self.__dict__)
        again.acts = Acts()
        again.systemd = Systemd(self.root, again.acts)
        again.clock = replace_clock(self.clock)
        return again


def replace_clock(clock: QuickClock) -> QuickClock:
    """A clock of its own that goes on where this one is."""
    copy = QuickClock(clock.boot_id)
    copy.ahead_s = clock.ahead_s
    return copy


def ended(events: Sequence[Event]) -> Mapping[str, Json]:
    """What the last event says, which must be the end of a run."""
    assert events, "no answer"
    assert events[-1].event == "ended", events[-1]
    return events[-1].data


def refused(events: Sequence[Event]) -> str:
    """The code of the only answer, which must be a refusal."""
    assert [event.event for event in events] == ["refused"], events
    return str(events[0].data["code"])


OPERATOR_UID = os.geteuid()
__all__ = [
    "DAEMON_UID",
    "OPERATOR_UID",
    "READER_UID",
    "SUBJECT",
    "UNIT",
    "Acts",
    "Connection",
    "Killed",
    "World",
    "ended",
    "refused",
    "sigkill",
    "ulid",
]
