"""Faults put into a running host from outside, each undone by leaving its ``with`` block.

Process numbers are the host's own (as ``host.main_pid`` gives them). A fault whose process is killed meanwhile ends
quietly: recovering from it by a restart is what the tests are about.
"""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from bed.errors import BedError, UnavailableError
from bed.host import GUEST_V1_CPU, BootedHost

THREAD_FAULT = Path(__file__).with_name("guest") / "thread_fault.py"
_PERIOD_US = 1_000_000


class HeldFault:
    """A fault that a helper process holds in place. ``release`` may be called more than once."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def release(self) -> None:
        """Undo the fault; raises BedError when the helper could not."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()
        try:
            code = self._process.wait(timeout=15)
        except subprocess.TimeoutExpired as error:
            self._process.kill()
            self._process.wait(timeout=15)
            raise BedError("the thread could not be released") from error
        if code != 0:
            raise BedError(f"the thread could not be released: exit {code}")


@contextlib.contextmanager
def freeze_thread(host: BootedHost, pid: int) -> Iterator[HeldFault]:
    """Hold only the main thread of a process still: the server's HTTP threads live on, its loop does not."""
    with _thread_fault(host, "freeze", pid) as fault:
        yield fault


@contextlib.contextmanager
def spin_thread(host: BootedHost, pid: int) -> Iterator[HeldFault]:
    """Make only the main thread of a process burn CPU and get nowhere, as a livelock in a GPU library does."""
    with _thread_fault(host, "spin", pid) as fault:
        yield fault


@contextlib.contextmanager
def stopped(host: BootedHost, pid: int) -> Iterator[None]:
    """SIGSTOP a whole process; SIGCONT afterwards."""
    outer = host.outer_pid(pid)
    handle = os.pidfd_open(outer)
    try:
        signal.pidfd_send_signal(handle, signal.SIGSTOP)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, signal.SIGCONT)
        os.close(handle)


def kill(host: BootedHost, pid: int, number: int = signal.SIGKILL) -> None:
    """Send a signal to one process of the host."""
    os.kill(host.outer_pid(pid), number)


def throttle(host: BootedHost, unit: str, percent: float | None) -> None:
    """Give a unit's processes so many percent of one core (0.1 at least), or all again with None.

    Where the unified cgroup tree has the cpu controller this is CPUQuota=, so it needs the unit loaded; elsewhere
    the processes the unit has now are moved into a group of cgroup v1, and ones started later are not in it.
    """
    if has_cpu_controller(host):
        quota = "" if percent is None else f"{percent:g}%"
        host.run("systemctl", "set-property", "--runtime", unit, f"CPUQuota={quota}", "CPUQuotaPeriodSec=1s")
        return
    group = prepare_throttle(host, unit, percent)
    cgroup = host.unit(unit, "ControlGroup").get("ControlGroup", "")
    if cgroup:
        host.sh(f"for pid in $(cat /sys/fs/cgroup{cgroup}/cgroup.procs); do echo $pid >{group}/cgroup.procs; done")


def prepare_throttle(host: BootedHost, unit: str, percent: float | None) -> str:
    """Make the cgroup v1 group of a unit with its limit and return its path in the host."""
    group = f"{GUEST_V1_CPU}/{unit}"
    quota = -1 if percent is None else max(1000, int(percent / 100 * _PERIOD_US))
    host.sh(f"mkdir -p {group}; echo {_PERIOD_US} >{group}/cpu.cfs_period_us; echo {quota} >{group}/cpu.cfs_quota_us")
    return group


def has_cpu_controller(host: BootedHost) -> bool:
    """Whether CPUQuota= works in the host. Raises UnavailableError when nothing can throttle there."""
    if "cpu" in host.read("/sys/fs/cgroup/cgroup.controllers").split():
        return True
    if not host.exists(f"{GUEST_V1_CPU}/cpu.cfs_quota_us"):
        raise UnavailableError("no cpu controller in reach, neither in the unified cgroup tree nor in version 1")
    return False


@contextlib.contextmanager
def _thread_fault(host: BootedHost, kind: str, pid: int) -> Iterator[HeldFault]:
    if platform.machine() != "x86_64":
        raise UnavailableError("thread faults are written for x86-64")
    process = subprocess.Popen(
        [sys.executable, "-IS", str(THREAD_FAULT), kind, str(host.outer_pid(pid))], text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    if process.stdout.readline().strip() != "held":
        process.wait(timeout=15)
        raise BedError(f"{kind} of process {pid}: {process.stderr.read()}")
    fault = HeldFault(process)
    try:
        yield fault
    finally:
        try:
            fault.release()
        finally:
            process.stdout.close()
            process.stderr.close()
