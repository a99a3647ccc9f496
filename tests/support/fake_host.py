"""A host made of answers. A question that it was given no answer to is an AssertionError, never a guess.

    host = FakeHost.build(
        files={"/proc/42/stat": "…"},
        units={"chat.service": {"ActiveState": "failed"}},
        commands={"journalctl ...": journal({"MESSAGE": "out of memory"})},
        http={"http://127.0.0.1:8080/health": {"status": "ok"},
              "POST http://127.0.0.1:8080/completion": unreachable("timeout")},
        child={"nvml": {"code": 0, …}},
    )
    host = FakeHost.load(Path("tests/data/engine.alive/dead"))

Answers: a command takes text (stdout), a number (exit status), `Completed` or an exception; a request takes JSON (dict
or list), text, bytes, a status (int), `Reply` or an exception. Any may be `in_turn(…)` or a function of the call.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from agent.errors import CommandFailed, FileTrouble, Unreachable
from agent.host import Completed, Host, NoKmsg, Reply, Space
from agent.model import Json, Moment
from tests.support.fake_files import Directory, Entry, FakeFiles, File, Link, Special, TreeFiles

__all__ = [
    "Directory", "FakeClock", "FakeEvents", "FakeFiles", "FakeHost", "FakeKmsg", "File", "HttpCall", "Link", "Special",
    "in_turn", "journal", "systemctl_show", "timed_out", "unreachable",
]  # fmt: skip

START = Moment(wall=1_800_000_000.0, boot_s=10_000.0, boot_id="boot-1")


class InTurn:
    """Answers given one after the other; the last one stays."""

    def __init__(self, answers: Sequence[Any]) -> None:
        self._answers = list(answers)

    def next(self) -> Any:
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


def in_turn(*answers: Any) -> InTurn:
    """The first answer the first time, and so on; the last one stays."""
    return InTurn(answers)


def unreachable(kind: str) -> Unreachable:
    """What a request raises: refused, timeout, too-large or broken."""
    return Unreachable(f"the fake server: {kind}", kind=kind)


def timed_out() -> CommandFailed:
    """What a command raises that does not end."""
    return CommandFailed("it did not end in time", code="command-timeout")


_UNIT = {
    "LoadState": "loaded", "ActiveState": "active", "SubState": "running", "Result": "success",
    "UnitFileState": "enabled", "MainPID": "42", "ExecMainCode": "0", "ExecMainStatus": "0", "NRestarts": "0",
    "InvocationID": "0123456789abcdef0123456789abcdef", "Restart": "on-failure",
    "ActiveEnterTimestampMonotonic": "9000000000", "InactiveEnterTimestampMonotonic": "0",
    "StateChangeTimestampMonotonic": "9000000000", "ExecMainStartTimestampMonotonic": "9000000000",
    "ExecMainExitTimestampMonotonic": "0", "TimeoutStartUSec": "1min 30s", "TimeoutStopUSec": "1min 30s",
    "RestartUSec": "100ms", "WatchdogUSec": "0", "User": "", "NeedDaemonReload": "no",
}  # fmt: skip


def systemctl_show(unit: str, **properties: object) -> str:
    """What `systemctl show` prints for a unit that runs as process 42, but for the properties given."""
    found = {"Id": unit, "ControlGroup": f"/system.slice/{unit}", **_UNIT, **properties}
    if "MainPID" not in properties and found["ActiveState"] in ("inactive", "failed"):
        found.update(MainPID=0, SubState=properties.get("SubState", "dead"), ControlGroup="")
    return "".join(f"{name}={value}\n" for name, value in found.items())


def journal(*entries: Mapping[str, Any]) -> str:
    """What `journalctl -o json` prints: one entry per line, stamped START unless they say otherwise."""
    stamp = {"__REALTIME_TIMESTAMP": str(int(START.wall * 1e6))}
    return "".join(json.dumps({**stamp, **entry}) + "\n" for entry in entries)


class FakeClock:
    """A clock that only moves when told to, or by `sleep`. `moments` are what `now` answers one after the other."""

    def __init__(self, moments: Sequence[Moment] = ()) -> None:
        self._moments = list(moments) or [START]
        self.slept: list[float] = []
        self.suspended = 0.0

    def now(self) -> Moment:
        return self._moments.pop(0) if len(self._moments) > 1 else self._moments[0]

    def suspended_s(self) -> float:
        return self.suspended

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.advance(seconds)

    def advance(self, seconds: float, *, wall_step: float = 0.0) -> None:
        """Time passes; `wall_step` sets the wall clock in addition, as NTP might."""
        self._moments = [
            Moment(moment.wall + seconds + wall_step, moment.boot_s + seconds, moment.boot_id)
            for moment in self._moments
        ]

    def reboot(self, away_s: float = 30.0) -> None:
        """The host was restarted and came back after `away_s`."""
        now = self._moments[-1]
        number = int(now.boot_id.rpartition("-")[2] or 0) + 1 if now.boot_id.startswith("boot-") else 2
        self._moments = [Moment(now.wall + away_s, 5.0, f"boot-{number}")]


class FakeCommands:
    """The `RunCommand` primitive. In a key, `*` is any one word and a last `...` is any rest. calls: every argv."""

    def __init__(self, answers: Mapping[Any, Any]) -> None:
        self._answers = [(_words(key), answer) for key, answer in answers.items()]
        self.calls: list[tuple[str, ...]] = []
        self.users: list[str | None] = []

    def answer(self, key: Any, answer: Any) -> None:
        """Add an answer, or replace it."""
        self._answers = [(known, old) for known, old in self._answers if known != _words(key)]
        self._answers.insert(0, (_words(key), answer))

    def __call__(
        self, argv: Sequence[str], *, timeout_s: float, user: str | None = None, cwd: str | None = None,
        env: Mapping[str, str] | None = None, limit: int = 1 << 20, stopping: Callable[[], bool] | None = None,
    ) -> Completed:  # fmt: skip
        asked = tuple(argv)
        self.calls.append(asked)
        self.users.append(user)
        if stopping is not None and stopping():
            raise CommandFailed(f"{asked[0]} was stopped", where=asked[0], code="command-stopped")
        for key, answer in self._answers:
            if _fits(key, asked):
                return _completed(asked, _settle(answer, asked))
        raise AssertionError(f"the fake host does not know the command: {shlex.join(asked)}")


@dataclass(frozen=True)
class HttpCall:
    """One request as it was made."""

    method: str
    url: str
    json: Json = None
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float = 0.0


class FakeHttp:
    """The `Http` primitive. A key is "METHOD URL", or a URL for GET; a last `*` is any rest. calls: every request."""

    def __init__(self, answers: Mapping[str, Any]) -> None:
        self.calls: list[HttpCall] = []
        self._answers: list[tuple[str, Json, Any]] = [(_request(key), None, answer) for key, answer in answers.items()]

    def answer(self, key: str, answer: Any, *, json: Json = None) -> None:
        """Add an answer, or replace it; `json` narrows it to requests with this body."""
        self._answers = [each for each in self._answers if each[:2] != (_request(key), json)]
        self._answers.insert(0, (_request(key), json, answer))

    def __call__(
        self, method: str, url: str, *, timeout_s: float, json: Json = None, body: bytes | None = None,
        headers: Mapping[str, str] | None = None, limit: int = 1 << 20,
    ) -> Reply:  # fmt: skip
        call = HttpCall(method, url, json, body, dict(headers or {}), timeout_s)
        self.calls.append(call)
        asked = f"{method} {url}"
        for key, wanted, answer in self._answers:
            fits = asked.startswith(key[:-1]) if key.endswith("*") else asked == key
            if fits and (wanted is None or wanted == json):
                reply = _reply(_settle(answer, call))
                if len(reply.body) > limit:
                    raise unreachable("too-large")
                return reply
        raise AssertionError(f"the fake host does not know the request: {asked}")


class FakeChild:
    """The `Child` primitive. An answer of None is silence; then `stuck` tells of `hanging`."""

    def __init__(self, answers: Mapping[str, Any]) -> None:
        self.answers = dict(answers)
        self.asked: list[str] = []
        self.hanging: Mapping[str, Json] | None = None

    def ask(self, question: str, *, deadline_s: float) -> Mapping[str, Json] | None:
        self.asked.append(question)
        if question not in self.answers:
            raise AssertionError(f"the fake host does not know the child's answer to {question!r}")
        found: Mapping[str, Json] | None = _settle(self.answers[question], question)
        return found

    def stuck(self) -> Mapping[str, Json] | None:
        return self.hanging


class FakeIpc:
    """The `Ipc` primitive: the end that was given for a path."""

    def __init__(self, ends: Mapping[str, Any]) -> None:
        self.ends = dict(ends)

    def connect(self, path: str, *, timeout_s: float) -> Any:
        if path not in self.ends:
            raise AssertionError(f"the fake host does not know the socket {path}")
        return _settle(self.ends[path], path)


class FakeKmsg:
    """The `Kmsg` primitive: what each read gives, one after the other, then nothing; an exception is raised.

    `rewind` begins again with everything that `still` holds, or with all of it.
    """

    def __init__(self, reads: Sequence[bytes | Exception]) -> None:
        self.reads = list(reads)
        self.still: bytes | None = None
        self.rewound = 0
        self._given = b""

    def read(self) -> bytes:
        found = self.reads.pop(0) if self.reads else b""
        if isinstance(found, Exception):
            raise found
        self._given += found
        return found

    def wait(self, timeout_s: float) -> bool:
        return bool(self.reads)

    def rewind(self) -> None:
        self.rewound += 1
        self.reads.insert(0, self._given if self.still is None else self.still)
        self._given = b""


class FakeEvents:
    """The `Events` primitive: `fire` makes something happen."""

    def __init__(self) -> None:
        self.watched: dict[str, list[int]] = {}
        self.woken = 0
        self.closed = False
        self._fired: list[str] = []

    def fire(self, subject: str) -> None:
        """Something happened to `subject`."""
        self._fired.append(subject)
        self.watched.pop(subject, None)

    def watch_process(self, pid: int, subject: str) -> None:
        self.watched.setdefault(subject, []).append(pid)

    def forget(self, subject: str) -> None:
        self.watched.pop(subject, None)

    def wait(self, timeout_s: float) -> list[str]:
        found, self._fired = self._fired, []
        return list(dict.fromkeys(found))

    def wake(self) -> None:
        self.woken += 1

    def close(self) -> None:
        self.closed = True


class FakeHost(Host):
    """A host whose every answer was given to it. Its parts are the fakes above, so that tests can look into them."""

    files: Any
    run: FakeCommands
    clock: FakeClock
    http: FakeHttp
    child: FakeChild
    ipc: FakeIpc
    kmsg: Any

    @classmethod
    def build(
        cls, files: Mapping[str, Entry] | None = None, *, commands: Mapping[Any, Any] | None = None,
        http: Mapping[str, Any] | None = None, child: Mapping[str, Any] | None = None,
        moments: Sequence[Moment] = (), units: Mapping[str, Mapping[str, object]] | None = None,
        spaces: Mapping[str, Space] | None = None, ipc: Mapping[str, Any] | None = None,
        kmsg: Sequence[bytes | Exception] | None = None,
    ) -> FakeHost:  # fmt: skip
        """A host in memory. units: properties by unit, for `systemctl show`."""
        shown = {
            ("systemctl", "show", "*", "--", unit): systemctl_show(unit, **known)
            for unit, known in (units or {}).items()
        }
        return cls(
            FakeFiles(files, spaces), FakeCommands({**(commands or {}), **shown}), FakeClock(moments),
            FakeHttp(http or {}), FakeChild(child or {}), FakeIpc(ipc or {}),
            NoKmsg() if kmsg is None else FakeKmsg(kmsg),
        )  # fmt: skip

    @classmethod
    def load(cls, case: Path) -> FakeHost:
        """The host recorded in a fixture folder: root/, kmsg, and commands, http, child, clock, space, trouble
        (.yaml).
        """
        commands = FakeCommands({})
        for argv, answers in _grouped(_document(case, "commands.yaml"), lambda entry: tuple(entry["argv"])).items():
            commands.answer(argv, InTurn([_recorded_command(entry) for entry in answers]))
        http = FakeHttp({})
        for (key, wanted), answers in _grouped(_document(case, "http.yaml"), _recorded_request).items():
            http.answer(key, InTurn([_recorded_reply(entry) for entry in answers]), json=json.loads(wanted))
        child = {
            question: InTurn([entry["answer"] for entry in answers])
            for question, answers in _grouped(_document(case, "child.yaml"), lambda entry: entry["question"]).items()
        }
        clock = FakeClock(
            [Moment(entry["wall"], entry["boot_s"], entry["boot_id"]) for entry in _document(case, "clock.yaml")]
        )
        log = case / "kmsg"
        kmsg = FakeKmsg([log.read_bytes()]) if log.exists() else NoKmsg()
        return cls(RecordedFiles(case), commands, clock, http, FakeChild(child), FakeIpc({}), kmsg)


class RecordedFiles(TreeFiles):
    """A recorded tree with what a tree cannot hold: room on file systems, and files that could not be read."""

    def __init__(self, case: Path) -> None:
        super().__init__(case / "root")
        self._spaces = {entry["path"]: Space(**entry["space"]) for entry in _document(case, "space.yaml")}
        self._trouble = {entry["path"]: entry["kind"] for entry in _document(case, "trouble.yaml")}

    def read_text(self, path: str, limit: int = 1 << 20) -> str:
        if path in self._trouble:
            raise FileTrouble(f"{path}: {self._trouble[path]}", kind=self._trouble[path], where=path)
        return super().read_text(path, limit)

    def space(self, path: str) -> Space:
        if path not in self._spaces:
            raise AssertionError(f"the fixture does not know the space of {path}")
        return self._spaces[path]


# --- reading answers -----------------------------------------------------------------------------------------


def _settle(answer: Any, call: Any) -> Any:
    if isinstance(answer, InTurn):
        answer = answer.next()
    if callable(answer) and not isinstance(answer, type):
        answer = answer(call)
    if isinstance(answer, BaseException):
        raise answer
    return answer


def _words(key: Any) -> tuple[Any, ...]:
    if isinstance(key, str):
        return tuple(... if word == "..." else word for word in shlex.split(key))
    return tuple(key)


def _fits(key: tuple[Any, ...], asked: tuple[str, ...]) -> bool:
    if key and key[-1] is ...:
        key, asked = key[:-1], asked[: len(key) - 1]
    return len(key) == len(asked) and all(wanted in ("*", word) for wanted, word in zip(key, asked, strict=True))


def _completed(argv: tuple[str, ...], answer: Any) -> Completed:
    if isinstance(answer, Completed):
        return answer
    if isinstance(answer, int):
        return Completed(argv, answer, "", "", 0.01)
    return Completed(argv, 0, str(answer), "", 0.01)


def _request(key: str) -> str:
    return key if " " in key else f"GET {key}"


def _reply(answer: Any) -> Reply:
    if isinstance(answer, Reply):
        return answer
    if isinstance(answer, int):
        return Reply(answer, b"")
    if isinstance(answer, bytes):
        return Reply(200, answer)
    if isinstance(answer, str):
        return Reply(200, answer.encode())
    return Reply(200, json.dumps(answer).encode(), {"content-type": "application/json"})


def _document(case: Path, name: str) -> list[Any]:
    path = case / name
    return (yaml.safe_load(path.read_text(encoding="utf-8")) or []) if path.exists() else []


def _grouped(entries: list[Any], key: Callable[[Any], Any]) -> dict[Any, list[Any]]:
    groups: dict[Any, list[Any]] = {}
    for entry in entries:
        groups.setdefault(key(entry), []).append(entry)
    return groups


def _recorded_command(entry: Mapping[str, Any]) -> Any:
    if "failed" in entry:
        return CommandFailed(f"recorded: {entry['failed']}", code=entry["failed"])
    return Completed(tuple(entry["argv"]), entry.get("rc", 0), entry.get("stdout", ""), entry.get("stderr", ""), 0.01)


def _recorded_request(entry: Mapping[str, Any]) -> tuple[str, str]:
    return f"{entry.get('method', 'GET')} {entry['url']}", json.dumps(entry.get("json"))


def _recorded_reply(entry: Mapping[str, Any]) -> Any:
    if "unreachable" in entry:
        return unreachable(entry["unreachable"])
    body = entry.get("body", "")
    text = body if isinstance(body, str) else json.dumps(body)
    return Reply(entry.get("status", 200), text.encode(), entry.get("headers", {}))
