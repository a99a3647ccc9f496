"""A booted, disposable host: run things in it, cut its power, boot it again.

systemd-nspawn runs in mount, pid and network namespaces of its own, so nothing in a host can reach this machine
and killing one process kills all of the host at once, as a power cut does. What a power cut on real hardware
also loses, writes that were never fsynced, survives here: the page cache belongs to this machine's kernel.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from llama_build import cache_root, exclusively

from bed.errors import BedError

T = TypeVar("T")

BOOT_TIMEOUT_S = 60.0
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "TERM": "dumb",
}
V1_CPU = Path("/sys/fs/cgroup/cpu")  # where the cpu controller is when this machine still uses cgroup v1
GUEST_V1_CPU = "/run/bed-cpu"
_LOCK_FILE = "in-use.lock"
_GROUP_FILE = "cgroup.txt"


def wait_for(condition: Callable[[], T], timeout: float, what: str, every: float = 0.1) -> T:
    """Call ``condition`` until it answers something true, and return that. Raises BedError after ``timeout`` s."""
    deadline = time.monotonic() + timeout
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() >= deadline:
            raise BedError(f"waited {timeout:g} s in vain for {what}; the last answer was {answer!r}")
        time.sleep(every)


class BootedHost:
    """One host. Made by Bed.boot; every path is a path inside the host unless it is called local."""

    def __init__(
        self, suite: str, tree: Path, *, name: str, writable: bool, binds: Mapping[Path, str], work: Path
    ) -> None:
        self.suite = suite
        self.name = name
        self.writable = writable
        self.work = work
        self.boots = 0
        self._tree = tree
        self._binds = dict(binds)
        self._process: subprocess.Popen[bytes] | None = None
        self._pid = 0
        self._group = f"holdfast-bed-{uuid.uuid4().hex[:12]}"
        (work / _GROUP_FILE).write_text(self._group, encoding="ascii")
        self._throttle = work / "cpu"
        # While this machine keeps its cpu controller in cgroup v1, the unified tree has none: CPUQuota= is then
        # silent in the host, and throttling goes through a v1 group shown to it.
        self._v1_cpu = str(V1_CPU / self._group) if (V1_CPU / "cpu.cfs_quota_us").exists() else ""

    # -- life ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Boot and return when systemd has finished starting (running, or degraded). Raises BedError."""
        if self.running:
            raise BedError(f"{self.name} is running already")
        console = self.work / "console.log"
        self._throttle.mkdir(exist_ok=True)
        if self._v1_cpu:
            Path(self._v1_cpu).mkdir(exist_ok=True)
        argv = [
            "unshare", "--mount", "--pid", "--net", "--fork", "--kill-child", "--mount-proc", "--",
            sys.executable, "-IS", str(Path(__file__).with_name("launcher.py")), self._group, self._v1_cpu,
            str(self._throttle), *self._nspawn(),
        ]  # fmt: skip
        environment = {**ENVIRONMENT, "SYSTEMD_NSPAWN_LOCK": "0"}  # hosts share a tree they never write into
        with console.open("ab") as log:
            self._process = subprocess.Popen(
                argv, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        try:
            self._pid = self.wait_for(self._find_init, BOOT_TIMEOUT_S, "the host's systemd", every=0.02)
            self.wait_for(self._finished_booting, BOOT_TIMEOUT_S, "the host to finish booting", every=0.05)
        except BedError as error:
            self.power_cut()
            raise BedError(f"{error}\n{console.read_text(encoding='utf-8', errors='replace')[-2000:]}") from error
        self.boots += 1

    def power_cut(self) -> None:
        """Kill everything in the host at once. What a writable host wrote stays."""
        process = self._process
        if process is not None:
            for pid in _children(process.pid):  # process 1 of the namespace: the kernel ends all with it
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=10)
            if process.poll() is None:
                process.kill()
                process.wait(timeout=30)
            if process.stdin:
                process.stdin.close()
        self._process, self._pid = None, 0
        _remove_groups(self._group)

    def poweroff(self, timeout: float = 120) -> None:
        """Shut down in order, as ``systemctl poweroff`` does. Raises BedError when that takes too long."""
        self.run("systemctl", "poweroff", "--no-block", check=False)
        try:
            self.wait_for(lambda: not self.running, timeout, "the host to power off")
        finally:
            self.power_cut()

    def boot_again(self) -> None:
        """Boot what is on the disk: the next boot, with a new boot id. Powers off first if still running."""
        if not self.writable:
            raise BedError("only a host booted with writable=True has a next boot")
        if self.running:
            self.poweroff()
        self.power_cut()
        self.start()

    @property
    def running(self) -> bool:
        """Whether the host is up (or still booting)."""
        return self._process is not None and self._process.poll() is None

    @property
    def root(self) -> Path:
        """The host's root as a path of this machine, through /proc; valid until the next boot."""
        return Path(f"/proc/{self._pid}/root")

    # -- doing things inside ---------------------------------------------------------------------------------

    def run(
        self,
        *argv: str,
        check: bool = True,
        user: str | None = None,
        timeout: float = 60,
        input: str | None = None,  # noqa: A002 (as subprocess.run has it)
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the host, as root or another user; output is captured as text.

        Raises BedError when it fails (unless ``check=False``) and TimeoutError after ``timeout`` seconds, with
        the command killed.
        """  # fmt: skip
        # The time limit runs inside: killing nsenter would leave its child alive in the host.
        command = ["timeout", "--kill-after=2", f"{timeout:g}", *argv]
        if user is not None:
            become = 'exec setpriv --reuid="$0" --regid="$(id -g "$0")" --init-groups -- "$@"'
            command = ["sh", "-euc", become, user, *command]
        done = subprocess.run(
            [*self._enter(), *command], text=True, check=False,
            input=input if input is not None else "", capture_output=True, timeout=timeout + 30,
            env={**ENVIRONMENT, **(env or {})}, errors="replace",
        )  # fmt: skip
        if done.returncode in (124, 137) and check:
            raise TimeoutError(f"{shlex.join(argv)}: no end within {timeout:g} s\n{done.stdout}{done.stderr}")
        if check and done.returncode != 0:
            raise BedError(f"{shlex.join(argv)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        done.args = list(argv)
        return done

    def sh(self, script: str, *, check: bool = True, timeout: float = 60, user: str | None = None) -> str:
        """Run a shell script in the host and return what it printed."""
        return self.run("sh", "-euc", script, check=check, timeout=timeout, user=user).stdout

    def popen(self, *argv: str) -> subprocess.Popen[str]:
        """Start a command in the host and return at once; it ends with the host at the latest."""
        return subprocess.Popen(
            [*self._enter(), *argv], text=True, env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, errors="replace",
        )  # fmt: skip

    def read(self, path: str) -> str:
        """Return the text of a file."""
        return self.run("cat", path).stdout

    def exists(self, path: str) -> bool:
        """Whether there is such a file."""
        return self.run("test", "-e", path, check=False).returncode == 0

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Write a file, making its folders, in one step as an editor would (rename)."""
        script = 'mkdir -p "$(dirname "$1")"; cat >"$1.bed~"; chmod "$2" "$1.bed~"; mv "$1.bed~" "$1"'
        self.run("sh", "-euc", script, "sh", path, f"{mode:o}", input=text)

    def push(self, local: Path, path: str) -> None:
        """Copy a local file or folder into the host, owned by root."""
        script = 'mkdir -p "$(dirname "$1")"; cd "$(dirname "$1")"; tar -x --no-same-owner -f -'
        target = Path(path)
        transform = f"--transform=s,^{local.name},{target.name},"
        packed = subprocess.run(
            ["tar", "-c", "-f", "-", transform, "-C", str(local.parent), local.name], capture_output=True, check=True
        )
        done = subprocess.run(
            [*self._enter(), "sh", "-euc", script, "sh", path], input=packed.stdout, capture_output=True, check=False,
            timeout=300, env=ENVIRONMENT,
        )  # fmt: skip
        if done.returncode != 0:
            raise BedError(f"push {local.name} to {path}: {done.stderr.decode(errors='replace')}")

    def install_deb(self, *local: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Install local packages with apt. The host has no network: dependencies must be there already."""
        guest = [f"/var/cache/bed/{path.name}" for path in local]
        for path, place in zip(local, guest, strict=True):
            self.push(path, place)
        # The world-readable folder spares apt's warning about its unprivileged user.
        return self.run(
            "apt-get", "install", "--allow-downgrades", "-q", "-y", *guest, check=check, timeout=300,
            env={"DEBIAN_FRONTEND": "noninteractive"},
        )  # fmt: skip

    def journal(self, unit: str | None = None) -> str:
        """Return the journal of this boot, of one unit or of all."""
        return self.run("journalctl", "--no-pager", "-b", *(["-u", unit] if unit else []), check=False).stdout

    def unit(self, unit: str, *properties: str) -> dict[str, str]:
        """Return properties of a unit as systemctl show gives them."""
        arguments = [f"--property={name}" for name in properties]
        lines = self.run("systemctl", "show", unit, *arguments).stdout.splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def main_pid(self, unit: str) -> int:
        """Return the unit's main process, numbered as in the host (0: none)."""
        return int(self.unit(unit, "MainPID").get("MainPID", "0"))

    def outer_pid(self, pid: int) -> int:
        """Return this machine's number for a process of the host. Raises BedError when there is none."""
        # By namespace, not by parentage: what run() starts is a child of this machine's processes.
        namespace = Path(f"/proc/{self._init()}/ns/pid").stat().st_ino
        for entry in Path("/proc").glob("[0-9]*"):
            if _namespace_pids(int(entry.name))[-1:] == [pid]:
                with contextlib.suppress(OSError):
                    if (entry / "ns/pid").stat().st_ino == namespace:
                        return int(entry.name)
        raise BedError(f"no process {pid} in {self.name}")

    def wait_for(self, condition: Callable[[], T], timeout: float, what: str, every: float = 0.1) -> T:
        """See wait_for; gives up at once when the host is gone."""

        def alive_and() -> T:
            answer = condition()
            if not answer and not self.running and "power off" not in what:
                raise BedError(f"the host ended while waiting for {what}")
            return answer

        return wait_for(alive_and, timeout, what, every)

    def json(self, *argv: str, check: bool = True, timeout: float = 60) -> object:
        """Run a command and return what it printed as JSON."""
        return json.loads(self.run(*argv, check=check, timeout=timeout).stdout)

    # -- inside ----------------------------------------------------------------------------------------------

    def _nspawn(self) -> list[str]:
        argv = [
            "systemd-nspawn", "--quiet", f"--directory={self._tree}", "--register=no", "--keep-unit", "--boot",
            f"--machine={self._group}", f"--hostname={self.name}", "--capability=all", "--link-journal=no",
            "--resolv-conf=off", "--timezone=off", "--console=pipe", f"--uuid={uuid.uuid4()}",
        ]  # fmt: skip
        if not self.writable:
            argv.append("--volatile=overlay")
        argv += [f"--bind-ro={local}:{guest}" for local, guest in self._binds.items()]
        if self._v1_cpu:
            argv.append(f"--bind={self._throttle}:{GUEST_V1_CPU}")
        return argv

    def _init(self) -> int:
        if not self._pid or not self.running:
            raise BedError(f"{self.name} is not running")
        return self._pid

    def _enter(self) -> list[str]:
        # Root and working directory too: by default nsenter keeps the caller's, which is not in the host.
        return ["nsenter", "--target", str(self._init()), "--all", "--root", "--wd", "--"]

    def _find_init(self) -> int:
        if self._process is None or self._process.poll() is not None:
            raise BedError("systemd-nspawn ended before the host came up")
        for pid in _descendants(self._process.pid):
            depth = _namespace_pids(pid)
            if len(depth) >= 3 and depth[-1] == 1 and _command(pid) == "systemd":
                return pid
        return 0

    def _finished_booting(self) -> bool:
        state = self.run("systemctl", "is-system-running", check=False).stdout.strip()
        return state in ("running", "degraded")


@contextlib.contextmanager
def booted(suite: str, tree: Path, *, name: str, writable: bool, binds: Mapping[Path, str]) -> Iterator[BootedHost]:
    """Boot a host of that tree, or of a copy of it, and remove every trace of it afterwards."""
    folder = cache_root() / "hosts"
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        with exclusively("hosts"):  # else a sweep might come between the file and its lock
            work = Path(tempfile.mkdtemp(dir=folder, prefix=f"{name}-"))
            in_use = stack.enter_context((work / _LOCK_FILE).open("w", encoding="ascii"))
            fcntl.flock(in_use, fcntl.LOCK_EX)
        stack.callback(shutil.rmtree, work, ignore_errors=True)
        if writable:
            copy = work / "root"
            subprocess.run(["cp", "-a", "--reflink=auto", str(tree), str(copy)], check=True)
            # Its own identity from the first boot on, as an installed machine has.
            (copy / "etc/machine-id").write_text(f"{uuid.uuid4().hex}\n", encoding="ascii")
            tree = copy
        host = BootedHost(suite, tree, name=name, writable=writable, binds=binds, work=work)
        stack.callback(host.power_cut)
        host.start()
        yield host


def sweep() -> None:
    """Remove what test runs left that were killed themselves; their hosts died with them (see launcher.py)."""
    with exclusively("hosts"):
        for lock in (cache_root() / "hosts").glob(f"*/{_LOCK_FILE}"):
            with lock.open(encoding="ascii") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue  # in use
                group = lock.with_name(_GROUP_FILE)
                if group.exists():
                    _remove_groups(group.read_text(encoding="ascii"))
                shutil.rmtree(lock.parent, ignore_errors=True)


def _remove_groups(name: str) -> None:
    for tree in (V1_CPU, Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified")):
        group = tree / name
        for folder, _, _ in os.walk(group, topdown=False) if group.exists() else ():
            with contextlib.suppress(OSError):
                Path(folder).rmdir()


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]
    except OSError:
        return []


def _descendants(pid: int) -> Iterator[int]:
    waiting = [pid]
    while waiting:
        waiting.extend(found := _children(waiting.pop()))
        yield from found


def _namespace_pids(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("NSpid:"):
                return [int(number) for number in line.split()[1:]]
    return []


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()
    except OSError:
        return ""
