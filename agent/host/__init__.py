"""The only code that touches the machine: a few primitives, and functions over them.

`Host` bundles the primitives: `files`, `run`, `clock`, `http`, `child`, `ipc`, `kmsg`, `events`. systemd, the journal,
processes, the driver and NVML are functions over them (`agent.host.systemd`, `.journal`, `.process`,
`.driver`, `.nvml`), so that only the primitives are ever faked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from agent.model import Json, Moment


@dataclass(frozen=True, slots=True)
class Stat:
    """What is known of a path: size in bytes, mode bits, owner, modification time (Unix seconds), inode."""

    size: int
    mode: int
    uid: int
    gid: int
    mtime: float
    inode: int
    is_dir: bool
    is_link: bool


@dataclass(frozen=True, slots=True)
class Space:
    """A file system's room: bytes and inodes, in all and available to ordinary users; `read_only` as mounted."""

    bytes_total: int
    bytes_free: int
    inodes_total: int
    inodes_free: int
    read_only: bool


class Files(Protocol):
    """Files below one movable `root`. Paths are absolute, as on the real host. All raise FileTrouble."""

    root: Path

    def read_text(self, path: str, limit: int = 1 << 20) -> str:
        """The text of a file (UTF-8, undecodable bytes replaced); FileTrouble(large) above `limit` bytes."""
        ...

    def exists(self, path: str) -> bool:
        """Whether the path exists (a dangling link does not)."""
        ...

    def listdir(self, path: str) -> list[str]:
        """The names in a directory, sorted."""
        ...

    def readlink(self, path: str) -> str:
        """What a symbolic link says."""
        ...

    def realpath(self, path: str) -> str:
        """The path with every link resolved, as seen from `root`."""
        ...

    def stat(self, path: str) -> Stat:
        """What is known of the path itself (links are not followed)."""
        ...

    def space(self, path: str) -> Space:
        """The room on the file system that holds the path."""
        ...

    def write_atomic(self, path: str, text: str, mode: int = 0o644, *, group: str | None = None) -> None:
        """Replace a file in one step: temporary file beside it, fsync, rename, fsync of the directory."""
        ...

    def append_durable(self, path: str, line: str, mode: int = 0o640, *, group: str | None = None) -> None:
        """Append one line and fsync before returning."""
        ...

    def remove(self, path: str) -> None:
        """Remove a file; nothing happens when it is not there."""
        ...

    def mkdir(self, path: str, mode: int = 0o755, *, group: str | None = None) -> None:
        """Make a directory and its parents; nothing happens when it is there."""
        ...


@dataclass(frozen=True, slots=True)
class Completed:
    """A program that ended. `rc` is negative for a signal; `truncated` when output went over the limit."""

    argv: tuple[str, ...]
    rc: int
    stdout: str
    stderr: str
    duration_s: float
    truncated: bool = False


class RunCommand(Protocol):
    """Runs a program: argv only, never a shell; clean environment (LC_ALL=C), no stdin."""

    def __call__(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float,
        user: str | None = None,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        limit: int = 1 << 20,
        stopping: Callable[[], bool] | None = None,
    ) -> Completed:
        """Run to the end and return. Raises CommandFailed when it cannot start or exceeds `timeout_s`.

        stopping: asked several times a second; once true, the program is ended (CommandFailed, `command-stopped`).
        """
        ...


class Clock(Protocol):
    """Time and waiting, injected so that tests own them."""

    def now(self) -> Moment:
        """This moment."""
        ...

    def suspended_s(self) -> float:
        """Seconds that this boot has spent suspended: the boot clock counts them, systemd's monotonic stamps do not."""
        ...

    def sleep(self, seconds: float) -> None:
        """Wait."""
        ...


@dataclass(frozen=True, slots=True)
class Reply:
    """A complete HTTP answer. Header names are lower case."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    elapsed_s: float = 0.0

    def json(self) -> Json:
        """The body as JSON, or None when it is not JSON."""
        import json  # noqa: PLC0415 - keeps the import graph of the apt guard small

        try:
            return json.loads(self.body)
        except ValueError:
            return None

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode("utf-8", "replace")


class Http(Protocol):
    """HTTP without redirects, without proxy variables, with the system's CA store."""

    def __call__(
        self,
        method: str,
        url: str,
        *,
        timeout_s: float,
        json: Json = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        limit: int = 1 << 20,
    ) -> Reply:
        """One request. `timeout_s` is a total deadline, from the first byte out to the last byte in; a body over
        `limit` bytes ends it. Raises Unreachable.
        """
        ...


class Child(Protocol):
    """One disposable child process that may hang in the driver for ever.

    Never SIGKILLed, never two at once, never waited for without a deadline.
    """

    def ask(self, question: str, *, deadline_s: float) -> Mapping[str, Json] | None:
        """The child's JSON answer, or None when it did not answer within the deadline (or an earlier one still
        hangs). `question` names a probe of ours ("nvml").
        """
        ...

    def stuck(self) -> Mapping[str, Json] | None:
        """The pid, state, wchan and age of a child that has not answered; None when there is none."""
        ...


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end of a Unix socket."""

    pid: int
    uid: int
    gid: int


class Ipc(Protocol):
    """Unix sockets that carry one JSON object per line."""

    def connect(self, path: str, *, timeout_s: float) -> Any:
        """A connected `agent.host.ipc.Lines`. Raises DaemonUnreachable."""
        ...


class Events(Protocol):
    """Things that make a check due now; they never judge."""

    def watch_process(self, pid: int, subject: str) -> None:
        """Wake with `subject` when this process ends (pidfd)."""
        ...

    def forget(self, subject: str) -> None:
        """Stop watching whatever was watched for `subject`."""
        ...

    def wait(self, timeout_s: float) -> list[str]:
        """The subjects something happened to, at the latest after `timeout_s`."""
        ...

    def wake(self) -> None:
        """End a `wait` in another thread."""
        ...

    def close(self) -> None:
        """Release everything."""
        ...


class Kmsg(Protocol):
    """The kernel's log, /dev/kmsg. It keeps its place: each read goes on where the last one ended."""

    def read(self) -> bytes:
        """Every record since the last read, as the device gives them; the first time, all that are still there.

        Raises FileTrouble: missing in a container, denied when neither we nor the inspector may open it.
        """
        ...

    def rewind(self) -> None:
        """Begin again with the oldest record that is still there."""
        ...

    def wait(self, timeout_s: float) -> bool:
        """Whether there is something new to read, at the latest after `timeout_s`; from another thread than `read`.

        Nothing comes before the first `read`.
        """
        ...


class NoKmsg:
    """A host without a kernel log."""

    def read(self) -> bytes:
        """See `Kmsg`."""
        from agent.errors import FileTrouble  # noqa: PLC0415 - this module imports nothing but the model

        raise FileTrouble("/dev/kmsg does not exist", kind="missing", where="/dev/kmsg")

    def rewind(self) -> None:
        """See `Kmsg`."""

    def wait(self, timeout_s: float) -> bool:  # noqa: ARG002 - the primitive's interface
        """See `Kmsg`."""
        return False


@dataclass(frozen=True, slots=True)
class Host:
    """The machine, as far as Holdfast may touch it."""

    files: Files
    run: RunCommand
    clock: Clock
    http: Http
    child: Child
    ipc: Ipc
    kmsg: Kmsg = field(default_factory=NoKmsg)
