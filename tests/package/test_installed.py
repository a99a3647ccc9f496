"""The package on a booted host: installed without network, isolated, upgraded under a run, removed, purged."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from bed import BootedHost

pytestmark = [pytest.mark.host, pytest.mark.timeout(1200)]

SUITES = pytest.mark.parametrize("suite", ["bookworm", "trixie"])
# Everything but what apt, dpkg, systemd and the journal write for themselves.
LISTING = r"""
find / -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /tmp -o -path /var/tmp -o -path /var/cache \
    -o -path /var/log -o -path /var/lib/dpkg -o -path /var/lib/apt -o -path /var/lib/systemd \) -prune -o -print |
    grep -vE '^/etc/(passwd|group|shadow|gshadow|subuid|subgid)-?$|^/etc/\.pwd\.lock$' | sort
ls -d /run/*oldfast* 2>/dev/null || true
"""
AS_APT = {"DEBIAN_FRONTEND": "noninteractive"}
LIBRARIES = "import psutil, pynvml, apscheduler, requests, pydantic, sdnotify, jinja2, yaml, typer, rich, ulid"
# Stands for a long run: it takes one line from the connection, then works for a while.
ASK = """import socket
connection = socket.socket(socket.AF_UNIX)
connection.connect("/run/holdfast-runner.sock")
connection.sendall(b"go")
connection.recv(1)
"""
LONG_RUN = """import pathlib, socket, time
connection = socket.socket(fileno=0)
connection.recv(100)
pathlib.Path("/var/lib/holdfast-runner/began").touch()
time.sleep(12)
pathlib.Path("/var/lib/holdfast-runner/ended").touch()
"""


@SUITES
def test_installs_without_network_and_purges_without_a_trace(
    boot: Callable[[str], BootedHost], built_package: Path, suite: str
) -> None:
    host = boot(suite)
    before = host.sh(LISTING)
    host.install_deb(built_package)
    modes = host.sh("stat -c '%U:%G %a' /etc/holdfast /etc/holdfast/secrets /var/lib/holdfast-runner")
    assert modes.splitlines() == ["root:holdfast 750"] * 3
    assert host.sh("systemctl is-active holdfast-runner.socket holdfast-inspect.socket").split() == ["active", "active"]
    host.sh("mkdir -p /var/lib/holdfast")
    host.sh("touch /var/lib/holdfast/store /etc/holdfast/driver.lock /etc/holdfast/secrets/key")
    host.run("apt-get", "remove", "-q", "-y", "holdfast", env=AS_APT, timeout=300)
    assert not host.exists("/usr/lib/holdfast")
    assert host.exists("/etc/holdfast/driver.lock"), "removing keeps configuration and state"
    active = host.run("systemctl", "is-active", "holdfast.service", "holdfast-runner.socket", check=False)
    assert active.stdout.split() == ["inactive", "inactive"]
    host.run("apt-get", "purge", "-q", "-y", "holdfast", env=AS_APT, timeout=300)
    assert host.sh(LISTING).splitlines() == before.splitlines()


@SUITES
def test_only_its_own_directories_and_the_standard_library_are_on_the_path(
    boot: Callable[[str], BootedHost], built_package: Path, suite: str
) -> None:
    host = boot(suite)
    # What must not be imported: from the caller's directory, the environment, the user and the distribution.
    for place in ("/tmp/agent.py", "/tmp/evil/agent.py", "/usr/lib/python3/dist-packages/agent.py"):
        host.write(place, "raise SystemExit('imported from the wrong place')")
    host.install_deb(built_package)
    python = host.sh("python3 -c 'import sys; print(*sys.version_info[:2], sep=str())'").strip()
    for launcher in ("/usr/bin/holdfast", "/usr/lib/holdfast/bin/holdfast-runner"):
        real = host.read(launcher)
        shown = real[: real.index("from agent")] + f"print(*sys.path, sep=chr(10))\n{LIBRARIES}\n"
        host.write("/tmp/launcher", shown, mode=0o755)
        path = host.sh("cd /tmp; PYTHONPATH=/tmp/evil PYTHONHOME=/tmp ./launcher").splitlines()
        assert path[:3] == [f"/usr/lib/holdfast{tail}" for tail in ("", f"/vendor/cp{python}", "/vendor/common")]
        assert all(entry.startswith(("/usr/lib/python3.", f"/usr/lib/python{python}.zip")) for entry in path[3:])
        assert len(path) > len(path[:3])
    answer = host.sh("cd /tmp; PYTHONPATH=/tmp/evil /usr/bin/holdfast --version")
    assert answer.startswith("holdfast ")


@SUITES
def test_upgrade_restarts_the_daemon_and_leaves_a_run_alone(
    boot: Callable[[str], BootedHost], built_package: Path, suite: str
) -> None:
    host = boot(suite)
    host.install_deb(built_package)
    host.write("/usr/local/bin/long-run.py", LONG_RUN)
    # Only the program is another one; the unit is the package's.
    host.write(
        "/etc/systemd/system/holdfast-runner@.service.d/test.conf",
        "[Service]\nExecStart=\nExecStart=/usr/bin/python3 /usr/local/bin/long-run.py\n",
    )
    host.write(
        "/etc/systemd/system/holdfast.service.d/test.conf",
        "[Service]\nType=simple\nWatchdogSec=0\nExecStart=\nExecStart=/bin/sleep infinity\n",
    )
    host.sh("systemctl daemon-reload; systemctl restart holdfast.service")
    daemon = host.main_pid("holdfast.service")
    host.write("/usr/local/bin/ask.py", ASK)
    client = host.popen("python3", "/usr/local/bin/ask.py")
    host.wait_for(lambda: host.exists("/var/lib/holdfast-runner/began"), 10, "the run begins")
    socket = host.sh("stat -c %i /run/holdfast-runner.sock").strip()
    started = time.monotonic()
    host.run("dpkg", "-i", f"/var/cache/bed/{built_package.name}", timeout=300)
    assert time.monotonic() - started < 60
    assert not host.exists("/var/lib/holdfast-runner/ended"), "the run was still going on"
    assert host.main_pid("holdfast.service") != daemon
    assert host.sh("stat -c %i /run/holdfast-runner.sock").strip() == socket, "an unchanged socket stays open"
    host.wait_for(lambda: host.exists("/var/lib/holdfast-runner/ended"), 30, "the run ends by itself")
    client.communicate(timeout=10)
    host.sh("systemctl stop holdfast.service")
    host.run("dpkg", "-i", f"/var/cache/bed/{built_package.name}", timeout=300)
    assert host.sh("systemctl is-active holdfast.service || true").strip() == "inactive", (
        "stopped by hand stays stopped"
    )
    host.sh("systemctl disable --now holdfast.service holdfast-runner.socket")
    host.run("dpkg", "-i", f"/var/cache/bed/{built_package.name}", timeout=300)
    assert host.sh("systemctl is-enabled holdfast.service holdfast-runner.socket || true").split() == ["disabled"] * 2
