"""What agent.host says of a booted host, asked as an unprivileged member of systemd-journal.

HOLDFAST_RECORD=1 keeps every answer as a fixture of the unit tests (tests/data/host_systemd/SUITE-CASE/).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from bed import BootedHost, wait_for

from agent.errors import CommandFailed
from agent.host import Completed, Host, RunCommand, driver, journal, process, systemd
from agent.host.files import RealFiles
from agent.host.journal import Signature
from agent.host.real import real_host
from tests.support.fake_host import FakeHost
from tests.support.recorder import Recorder

Boot = Callable[..., BootedHost]
DATA = Path(__file__).resolve().parents[1] / "data" / "host_systemd"
CANARY = "the-secret-words-of-a-prompt"
SIGNATURES = (Signature("cuda-oom", r"CUDA error: out of memory", True, "The GPU has no memory left.", "test"),)
UNIT = """[Service]
ExecStart=/bin/sh -c '{command}'
{more}
[Install]
WantedBy=multi-user.target
"""
UNITS = {
    "stopped": ("exec sleep 1000", ""),
    "restarted": ("exec sleep 1000", ""),
    "exit-zero": (f"echo CUDA error: out of memory for {CANARY}; sleep 0.2; exit 0", "Restart=on-failure"),
    "exit-127": (f"echo {CANARY}; echo CUDA error: out of memory >&2; exit 127", ""),
    "auto-restart": ("exit 3", "Restart=always\nRestartSec=1000"),
    "stubborn": ('trap "" TERM; sleep 1000', "TimeoutStopSec=500ms"),
    "signalled": ("exec sleep 1000", ""),
    "running": ("exec sleep 1000", "Restart=on-failure\nTimeoutStopSec=infinity"),
}


@dataclass(frozen=True)
class InGuest(RunCommand):
    """Runs the commands of `agent.host` in a booted host, as one of its users."""

    booted: BootedHost
    user: str | None

    def __call__(
        self, argv: Sequence[str], *, timeout_s: float, user: str | None = None, cwd: str | None = None,
        env: Mapping[str, str] | None = None, limit: int = 1 << 20, stopping: Callable[[], bool] | None = None,
    ) -> Completed:  # fmt: skip
        done = self.booted.run(
            *argv, user=user or self.user, timeout=timeout_s, env={"LC_ALL": "C", **(env or {})}, check=False
        )
        return Completed(tuple(argv), done.returncode, done.stdout[:limit], done.stderr, 0.0)


def seen_by(booted: BootedHost, user: str | None) -> Host:
    """The booted host, as a process of that user in it sees it."""
    files = RealFiles(booted.root)
    return replace(real_host(), files=files, run=InGuest(booted, user))


@pytest.fixture(params=["bookworm", "trixie"])
def units(host: Boot, request: pytest.FixtureRequest) -> BootedHost:
    """A host on which each unit has come to its end in its own way."""
    booted = host(request.param, llama=False)
    booted.run("useradd", "--groups", "systemd-journal", "watcher")
    booted.run("useradd", "stranger")
    for name, (command, more) in UNITS.items():
        booted.write(f"/etc/systemd/system/{name}.service", UNIT.format(command=command, more=more))
    booted.run("systemctl", "daemon-reload")
    booted.run("systemctl", "enable", "--now", *UNITS, check=False)
    wait_for(lambda: booted.unit("exit-zero.service", "ActiveState")["ActiveState"] == "inactive", 10, "exit 0")
    wait_for(lambda: booted.unit("exit-127.service", "ActiveState")["ActiveState"] == "failed", 10, "exit 127")
    wait_for(lambda: "auto" in booted.unit("auto-restart.service", "SubState")["SubState"], 10, "exit 3")
    booted.run("systemctl", "stop", "stopped", "auto-restart", "stubborn")
    booted.run("systemctl", "restart", "restarted")
    booted.run("systemctl", "kill", "signalled")
    wait_for(lambda: booted.unit("signalled.service", "ActiveState")["ActiveState"] == "inactive", 10, "SIGTERM")
    return booted


def ask(booted: BootedHost, name: str, user: str = "watcher") -> tuple[systemd.UnitState, journal.StopRecord | None]:
    """The unit's state and who stopped it; recorded when that was asked for."""
    recorder = Recorder(seen_by(booted, user))
    unit = f"{name}.service"
    state = systemd.unit_state(recorder.host, unit)
    stop = journal.stopped_by_job(recorder.host, unit, state.invocation_id)
    journal.matches(recorder.host, unit, SIGNATURES, invocation_id=state.invocation_id or None, since_wall=None)
    if os.environ.get("HOLDFAST_RECORD"):
        folder = DATA / f"{booted.suite}-{name}"
        recorder.write(folder)
        version = booted.run("systemctl", "--version").stdout.splitlines()[0]
        (folder / "SOURCE.md").write_text(
            f"Recorded by tests/host/test_host_api.py on a booted {booted.suite}: {version}.\n", encoding="utf-8"
        )
    return state, stop


def test_only_a_stop_job_is_a_stop(units: BootedHost) -> None:
    by_job = {name: ask(units, name)[1] is not None for name in UNITS}
    assert by_job == {
        "stopped": True,
        "restarted": False,
        "exit-zero": False,
        "exit-127": False,
        "auto-restart": True,
        "stubborn": True,
        "signalled": False,
        "running": False,
    }


def test_states_are_as_systemd_has_them(units: BootedHost) -> None:
    stopped, zero = ask(units, "stopped")[0], ask(units, "exit-zero")[0]
    assert (stopped.active_state, stopped.sub_state, stopped.result) == ("inactive", "dead", "success")
    assert stopped.main_pid == 0
    assert (zero.active_state, zero.sub_state, zero.result, zero.exec_main_code) == ("inactive", "dead", "success", 1)
    broken = ask(units, "exit-127")[0]
    assert (broken.active_state, broken.result, broken.exec_main_status) == ("failed", "exit-code", 127)
    running = ask(units, "running")[0]
    seen = seen_by(units, "watcher")
    assert running.running
    assert running.settled
    assert (running.restart, running.unit_file_state, running.timeout_stop_s) == ("on-failure", "enabled", None)
    assert process.cgroup_pids(seen, running.control_group) == (units.outer_pid(running.main_pid),)
    inside = f"/proc/{running.main_pid}/cgroup"  # seen from outside it would name the group of the whole host
    assert systemd.unit_of_pid(FakeHost.build({inside: units.read(inside)}), running.main_pid) == "running.service"
    assert process.command_line(seen, running.main_pid) == ("sleep", "1000")
    assert "running.service" in systemd.units(seen)
    assert running.active_enter_boot_s is not None
    assert 0 <= seen.clock.now().boot_s - running.active_enter_boot_s < 60
    assert systemd.unit_state(seen, "no-such.service").load_state == "not-found"


def test_a_frozen_unit_shows_and_a_job_shows(units: BootedHost) -> None:
    seen = seen_by(units, "watcher")
    group = systemd.unit_state(seen, "running.service").control_group
    assert not process.cgroup_frozen(seen, group)
    units.run("systemctl", "freeze", "running")
    assert process.cgroup_frozen(seen, group)
    units.run("systemctl", "thaw", "running")
    units.write("/etc/systemd/system/slow.service", "[Service]\nType=oneshot\nExecStart=/bin/sleep 30\n")
    units.run("systemctl", "daemon-reload")
    units.run("systemctl", "start", "--no-block", "slow")
    slow = wait_for(lambda: systemd.unit_state(seen, "slow.service"), 5, "the job")
    assert slow.job
    assert not slow.settled
    assert slow.active_state == "activating"


def test_only_what_a_signature_matched_leaves_the_journal(units: BootedHost) -> None:
    seen = seen_by(units, "watcher")
    for name in ("exit-zero", "exit-127"):
        state = systemd.unit_state(seen, f"{name}.service")
        found = journal.matches(
            seen, state.unit, SIGNATURES, invocation_id=state.invocation_id, since_wall=seen.clock.now().wall - 300
        )
        assert [(match.cause, match.text) for match in found] == [("cuda-oom", "CUDA error: out of memory")]
        assert CANARY not in repr(found)
    assert not journal.matches(seen, "running.service", SIGNATURES, invocation_id=None, since_wall=None)
    later = seen.clock.now().wall + 5
    assert not journal.matches(seen, "exit-127.service", SIGNATURES, invocation_id=None, since_wall=later)


def test_a_user_who_may_not_read_the_journal_is_told_so(units: BootedHost) -> None:
    with pytest.raises(CommandFailed) as failed:
        journal.stopped_by_job(seen_by(units, "stranger"), "stopped.service", None)
    assert failed.value.code == "journal-denied"


def test_without_an_invocation_the_last_start_of_this_boot_counts(units: BootedHost) -> None:
    seen = seen_by(units, "watcher")
    # As in the guest, whose boot is not this machine's.
    boot_id = units.read("/proc/sys/kernel/random/boot_id").strip()
    now = replace(seen.clock.now(), boot_id=boot_id)
    seen = replace(seen, clock=type("Clock", (), {"now": lambda self: now})())
    assert journal.stopped_by_job(seen, "stopped.service", None) is not None
    assert journal.stopped_by_job(seen, "exit-zero.service", None) is None
    units.run("systemctl", "start", "stopped")
    assert journal.stopped_by_job(seen, "stopped.service", None) is None


def test_a_fake_driver_is_seen_where_a_real_one_would_be(units: BootedHost) -> None:
    seen = seen_by(units, None)
    assert not driver.traces(seen)
    assert driver.loaded_version(seen) is None
    units.sh("mount -t tmpfs none /sys/module; mkdir /sys/module/nvidia; echo 580.178.04 >/sys/module/nvidia/version")
    assert driver.traces(seen)
    assert driver.loaded_version(seen) == "580.178.04"
