"""A stand-in for systemd, as far as the product asks it: units with their processes, a journal, listening sockets.

It starts and stops real processes and says of them what systemd would say: properties, control groups (as the files
that the kernel would show), who asked for a stop, how a process ended. The product talks to it through `systemctl`
and `journalctl` in the demonstration's own `bin` directory, and through the sockets that it listens on.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from demo.host import place

# Message ids of sd-messages.h.
STARTED = "39f53479d3a045ac8e11786248231fbf"
STOPPING = "de5b426a63be47a7b6ac3eaac82e2f6f"
STOPPED = "9d1aaa27d60140bd96365438aad20286"
EXITED = "98e322203f7a4ed290d09fe03c09fe15"
EXITS_S = 5.0
"""How long our own processes may take to end after SIGTERM."""


@dataclass
class Unit:
    """One service. Words are systemd's own."""

    name: str
    argv: Sequence[str]
    process: subprocess.Popen[bytes] | None = None
    active: str = "inactive"
    sub: str = "dead"
    result: str = "success"
    job: bool = False
    invocation: str = ""
    code: int = 0
    status: int = 0
    stamps: dict[str, float] = field(default_factory=dict)

    @property
    def group(self) -> str:
        """The control group, "" while it does not run."""
        return f"/system.slice/{self.name}" if self.active in ("active", "deactivating") else ""


class Manager:
    """Starts, stops and watches units; answers systemctl and journalctl; starts a process for each connection."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock = threading.RLock()
        self._units: dict[str, Unit] = {}
        self._journal: list[dict[str, str]] = []
        self._boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip().replace("-", "")
        self._children: list[subprocess.Popen[bytes]] = []
        self._log = (root / "log.txt").open("ab")
        self._install()
        self.listen(root / "bin/manager.sock", self._asked)

    # what the demonstration asks

    def add(self, name: str, argv: Sequence[str]) -> None:
        """Know a unit."""
        self._units[name] = Unit(name, argv)

    def start(self, name: str) -> None:
        """Start a unit that is down."""
        with self._lock:
            unit = self._units[name]
            if unit.process is not None:
                return
            unit.process = subprocess.Popen(
                unit.argv, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log, start_new_session=True
            )
            unit.active, unit.sub, unit.result, unit.invocation = "active", "running", "success", uuid.uuid4().hex
            unit.code = unit.status = 0
            self._stamp(unit, "ActiveEnter", "StateChange", "ExecMainStart")
            self._group(unit).mkdir(parents=True, exist_ok=True)
            (self._group(unit) / "cgroup.procs").write_text(f"{unit.process.pid}\n", encoding="ascii")
            (self._group(unit) / "cgroup.events").write_text("populated 1\nfrozen 0\n", encoding="ascii")
            self._note(unit, STARTED, JOB_TYPE="start")
            threading.Thread(target=self._reap, args=(unit, unit.process), daemon=True).start()

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to every process of a unit."""
        with self._lock:
            process = self._units[name].process
            if process is not None:
                os.killpg(process.pid, number)

    def main_pid(self, name: str) -> int:
        """The main process, 0 when the unit is down."""
        process = self._units[name].process
        return process.pid if process is not None else 0

    def activate(self, path: str, argv: Sequence[str]) -> None:
        """Listen at a path of the product, and start a process for each connection, with the connection on fd 0."""

        def serve(connection: socket.socket) -> None:
            self._children.append(subprocess.Popen(argv, stdin=connection.fileno(), stdout=self._log, stderr=self._log))
            self._children[:] = [each for each in self._children if each.poll() is None]

        self.listen(place(self._root, path), serve)

    def listen(self, path: Path, serve: Callable[[socket.socket], None]) -> None:
        """Answer connections at a Unix socket, each in a thread of its own."""
        path.parent.mkdir(parents=True, exist_ok=True)
        server = socket.socket(socket.AF_UNIX)
        server.bind(str(path))
        server.listen(64)

        def answer(connection: socket.socket) -> None:
            with connection:
                serve(connection)

        def accept() -> None:
            while True:
                connection, _ = server.accept()
                threading.Thread(target=answer, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()

    def close(self) -> None:
        """End every process that was started here."""
        left = [unit.process for unit in self._units.values() if unit.process is not None]
        for each in (*left, *self._children):
            each.terminate()
        for each in (*left, *self._children):
            try:
                each.wait(EXITS_S)
            except subprocess.TimeoutExpired:
                each.kill()
                each.wait()

    # systemctl and journalctl

    def _install(self) -> None:
        folder = self._root / "bin"
        folder.mkdir()
        text = Path(__file__).with_name("client.py").read_text(encoding="utf-8")
        for name in ("systemctl", "journalctl"):
            (folder / name).write_text(f"#!{os.path.realpath(sys.executable)} -IS\n{text}", encoding="utf-8")
            (folder / name).chmod(0o755)
        controllers = place(self._root, "/sys/fs/cgroup/cgroup.controllers")
        controllers.parent.mkdir(parents=True)
        controllers.write_text("", encoding="ascii")

    def _asked(self, connection: socket.socket) -> None:
        words = json.loads(connection.makefile("rb").readline())
        try:
            with self._lock:
                out, rc = (self._systemctl(words[1:]) if words[0] == "systemctl" else self._journalctl(words[1:])), 0
                err = ""
        except _No as no:
            out, err, rc = "", f"{no}\n", no.rc
        connection.sendall(json.dumps({"out": out, "err": err, "rc": rc}).encode())

    def _systemctl(self, words: Sequence[str]) -> str:
        verb, *names = [word for word in words if not word.startswith("-")]
        options = dict(word.split("=", 1) for word in words if word.startswith("--") and "=" in word)
        if verb == "list-units":
            return "".join(f"{unit.name} loaded {unit.active} {unit.sub}\n" for unit in self._units.values())
        unit = self._units.get(names[0]) if names else None
        if verb == "show":
            found = self._properties(unit, names[0])
            wanted = options.get("--property", "").split(",")
            return "".join(f"{name}={found[name]}\n" for name in wanted if name in found)
        if unit is None:
            raise _No(f"Unit {shlex.join(names)} not found.", 5)
        if verb == "start":
            self.start(unit.name)
        elif verb == "stop":
            self._stop(unit)
        elif verb == "kill":
            if unit.process is None:
                raise _No(f"Failed to kill unit {unit.name}: no process", 1)
            self.signal(unit.name, signal.Signals[options.get("--signal", "SIGTERM")])
        elif verb == "reset-failed":
            if unit.active == "failed":
                unit.active, unit.sub, unit.result = "inactive", "dead", "success"
        elif verb == "is-active":
            if unit.active != "active":
                raise _No(unit.active, 3)
            return "active\n"
        else:
            raise _No(f"the stand-in for systemctl does not know {verb!r}", 64)
        return ""

    def _properties(self, unit: Unit | None, name: str) -> dict[str, object]:
        if unit is None:
            return {"Id": name, "LoadState": "not-found", "ActiveState": "inactive", "SubState": "dead"}
        found: dict[str, object] = {
            "Id": unit.name, "LoadState": "loaded", "ActiveState": unit.active, "SubState": unit.sub,
            "Result": unit.result, "UnitFileState": "enabled", "MainPID": self.main_pid(unit.name),
            "ExecMainCode": unit.code, "ExecMainStatus": unit.status, "NRestarts": 0,
            "InvocationID": unit.invocation, "ControlGroup": unit.group, "Restart": "no",
            "Job": 1 if unit.job else "", "TimeoutStartUSec": "1min 30s", "TimeoutStopUSec": "1min 30s",
            "RestartUSec": "100ms", "WatchdogUSec": "0", "NeedDaemonReload": "no",
        }  # fmt: skip
        return found | {f"{name}TimestampMonotonic": int(at * 1e6) for name, at in unit.stamps.items()}

    def _journalctl(self, words: Sequence[str]) -> str:
        """The entries that fit: alternatives for one field, all fields together; the last --lines of them."""
        wanted: dict[str, set[str]] = {}
        options = dict(word.split("=", 1) for word in words if word.startswith("--") and "=" in word)
        for name, _, value in (word.partition("=") for word in words if not word.startswith("-")):
            wanted.setdefault(name, set()).add(value)
        since = float(options.get("--since", "@0").removeprefix("@")) * 1e6
        found = [
            entry
            for entry in self._journal
            if int(entry["__REALTIME_TIMESTAMP"]) >= since
            and all(entry.get(name) in values for name, values in wanted.items())
        ]
        return "".join(json.dumps(entry) + "\n" for entry in found[-int(options.get("--lines", "1000")) :])

    # units

    def _stop(self, unit: Unit) -> None:
        if unit.process is None:
            return
        unit.active, unit.sub, unit.job = "deactivating", "stop-sigterm", True
        self._stamp(unit, "StateChange")
        self._note(unit, STOPPING, JOB_TYPE="stop")
        self.signal(unit.name, signal.SIGTERM)

    def _reap(self, unit: Unit, process: subprocess.Popen[bytes]) -> None:
        """When the main process has ended, say how, as systemd does."""
        status = process.wait()
        with self._lock:
            asked, killed = unit.job, status < 0
            clean = status in (0, -signal.SIGTERM)
            unit.process, unit.job = None, False
            unit.code, unit.status = (2, -status) if killed else (1, status)
            unit.active, unit.sub = ("inactive", "dead") if clean else ("failed", "failed")
            unit.result = "success" if clean else "signal" if killed else "exit-code"
            (self._group(unit) / "cgroup.procs").unlink()
            (self._group(unit) / "cgroup.events").unlink()
            self._group(unit).rmdir()
            self._stamp(unit, "InactiveEnter", "StateChange", "ExecMainExit")
            words = signal.Signals(-status).name.removeprefix("SIG") if killed else str(status)
            self._note(unit, EXITED, EXIT_CODE="killed" if killed else "exited", EXIT_STATUS=words)
            if asked:
                self._note(unit, STOPPED, JOB_TYPE="stop", JOB_RESULT="done")

    def _group(self, unit: Unit) -> Path:
        return place(self._root, f"/sys/fs/cgroup/system.slice/{unit.name}")

    def _stamp(self, unit: Unit, *names: str) -> None:
        unit.stamps.update(dict.fromkeys(names, time.clock_gettime(time.CLOCK_MONOTONIC)))

    def _note(self, unit: Unit, message: str, **more: str) -> None:
        """One entry that systemd itself would write."""
        self._journal.append({
            "__REALTIME_TIMESTAMP": str(int(time.time() * 1e6)), "_PID": "1", "_BOOT_ID": self._boot,
            "MESSAGE_ID": message, "UNIT": unit.name, "INVOCATION_ID": unit.invocation, **more,
        })  # fmt: skip


class _No(Exception):
    """What a program says on stderr when it cannot, and its exit status."""

    def __init__(self, words: str, rc: int) -> None:
        super().__init__(words)
        self.rc = rc
