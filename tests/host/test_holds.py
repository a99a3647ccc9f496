"""Holds on booted hosts: the real driver and kernel of Ubuntu with what its archive offers next, and Debian's names.

What is held is kept back by real upgrades, what somebody else holds stays theirs, a locked dpkg is waited out, and no
kill, upgrade or removal of the package leaves a hold that nobody owns.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bed import BootedHost, fake_devices, fake_driver, make_deb, publish
from bed.kernels import DRIVER, KERNEL, make_kernel, make_module, show_running_kernel
from saturday import Saturday, saturday
from spine import built_package

Boot = Callable[..., BootedHost]
LIB = "/usr/lib/x86_64-linux-gnu"
RECORD = "/var/lib/holdfast-runner/holds.json"
UNATTENDED = "/etc/apt/apt.conf.d/52holdfast"
NEEDRESTART = "/etc/needrestart/conf.d/holdfast.conf"
DRIVER_PACKAGES = {
    "libnvidia-compute-550-server", "nvidia-utils-550-server", "nvidia-kernel-common-550-server",
    f"nvidia-firmware-550-server-{DRIVER}", f"linux-modules-nvidia-550-server-{KERNEL}",
    f"linux-objects-nvidia-550-server-{KERNEL}", f"linux-signatures-nvidia-{KERNEL}",
    "linux-modules-nvidia-550-server-generic",
}  # fmt: skip
KERNEL_PACKAGES = {"linux-image-virtual", f"linux-image-{KERNEL}", f"linux-modules-{KERNEL}"}
EVERYTHING = DRIVER_PACKAGES | KERNEL_PACKAGES
OTHERS = "nvidia-utils-550-server"
"""Held by somebody else beforehand, in most scenes."""
OURS = EVERYTHING - {OTHERS}
LOCKER = (
    "import fcntl, time; f = open('/var/lib/dpkg/lock-frontend', 'w'); fcntl.lockf(f, fcntl.LOCK_EX); "
    "open('/run/locked', 'w'); time.sleep(600)"
)
ENGINE = """\
[[engine]]
name = "chat"
kind = "llama.cpp"
url = "http://127.0.0.1:8080"
unit = "vllm@gpu0.service"
"""
NEEDRESTART_READS = """\
use strict; our %nrconf = (override_rc => {}); my $file = shift;
open(my $text, "<", $file) or die; eval join("", <$text>); die $@ if $@;
for my $unit (@ARGV) { print "$unit\\n" if grep { $unit =~ /$_/ } keys %{$nrconf{override_rc}} }
"""
"""As needrestart reads its configuration and looks a service up: strictly, and by regular expressions as keys."""
SLOW_APT_MARK = """\
#!/bin/sh
[ -e /run/first ] || /usr/bin/apt-mark.real "$@"
touch /run/marked
while [ -e /run/marked ]; do sleep 0.1; done
"""
"""Stands still right after dpkg was told, or with /run/first right before."""


def showhold(host: BootedHost) -> set[str]:
    return set(host.run("apt-mark", "showhold").stdout.split())


def recorded(host: BootedHost) -> set[str]:
    return {name.partition(":")[0] for name in json.loads(host.read(RECORD))["packages"]}


def drop_ins(host: BootedHost) -> list[bool]:
    return [host.exists(path) for path in (UNATTENDED, NEEDRESTART)]


def holdfast(host: BootedHost, *argv: str, code: int = 0) -> str:
    done = host.run("holdfast", *argv, check=False, timeout=300)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def lock_dpkg(host: BootedHost) -> None:
    """As a package manager at work does; `systemctl stop changing` lets go."""
    host.sh("rm -f /run/locked")
    host.run("systemd-run", "--quiet", "--unit=changing", "--collect", "python3", "-c", LOCKER)
    host.wait_for(lambda: host.exists("/run/locked"), 10, "dpkg's lock to be held")


@pytest.fixture
def ubuntu() -> Iterator[Saturday]:
    with saturday() as scene:
        scene.host.install_deb(built_package())
        yield scene


def test_the_real_set_is_held_upgrades_keep_it_back_and_unhold_gives_exactly_ours_back(ubuntu: Saturday) -> None:
    host = ubuntu.host
    assert (showhold(host), drop_ins(host), host.exists(RECORD)) == (set(), [False, False], False)
    assert "[no-lock]" in holdfast(host, "hold", code=77)
    holdfast(host, "lock", "write")
    assert (showhold(host), drop_ins(host)) == (set(), [False, False]), "a lock alone holds nothing"
    host.run("apt-mark", "hold", OTHERS, "tzdata")

    said = host.run("holdfast", "hold", "--explain", "--json", user="nobody")
    explained = json.loads(said.stdout)["data"]
    assert {row["name"] for row in explained["packages"]} == EVERYTHING
    assert explained["kernel"] == KERNEL
    assert "apt-mark hold" in holdfast(host, "hold", "--dry-run")
    assert showhold(host) == {OTHERS, "tzdata"}

    text = holdfast(host, "hold")
    assert f"10 packages on hold for driver {DRIVER} and kernel {KERNEL}; 1 more were held by somebody else" in text
    assert showhold(host) == EVERYTHING | {"tzdata"}
    assert recorded(host) == OURS
    assert drop_ins(host) == [True, True]
    blacklist = host.run("apt-config", "dump", "Unattended-Upgrade::Package-Blacklist").stdout
    assert '"libnvidia-compute-550-server$"' in blacklist
    assert '"linux-image-6\\.8\\.0-31-generic$"' in blacklist
    holdfast(host, "hold")
    assert recorded(host) == OURS, "a second hold takes nobody's holds"
    assert holdfast(host, "check", "driver.holds").startswith("driver.holds OK")

    # What Ubuntu offers tonight: another driver and another kernel, and updates that have nothing to do with them.
    host.run("apt-mark", "unhold", "tzdata")
    before = ubuntu.versions()
    simulated = ubuntu.upgrade("-s", "dist-upgrade")[1]
    assert "Inst libssl3t64" in simulated
    assert not [line for line in simulated.splitlines() if line.startswith(("Inst linux", "Inst nvidia", "Inst libnv"))]
    ubuntu.upgrade("dist-upgrade")
    after = ubuntu.versions()
    assert ubuntu.unrelated_updates_are_in()
    assert {name: after[name] for name in EVERYTHING} == {name: before[name] for name in EVERYTHING}
    assert not any(name.startswith(("linux-image", "nvidia")) for name in after.keys() - before.keys())

    assert "10 packages released" in holdfast(host, "unhold")
    assert showhold(host) == {OTHERS}
    assert (drop_ins(host), host.exists(RECORD)) == ([False, False], False)
    assert "nothing here is held by Holdfast" in holdfast(host, "unhold")
    assert "Inst linux-image-virtual" in ubuntu.upgrade("-s", "dist-upgrade")[1], "free again"


def test_unattended_upgrades_leaves_what_is_held_aside_and_installs_the_rest(ubuntu: Saturday) -> None:
    host = ubuntu.host
    holdfast(host, "lock", "write")
    holdfast(host, "hold")
    before = ubuntu.versions()
    log = ubuntu.night()
    assert ubuntu.unrelated_updates_are_in(), log
    assert {name: ubuntu.versions()[name] for name in EVERYTHING} == {name: before[name] for name in EVERYTHING}
    assert "error" not in log.lower(), log
    assert ubuntu.boots_next() == KERNEL


def test_a_locked_dpkg_is_waited_out(ubuntu: Saturday) -> None:
    host = ubuntu.host
    holdfast(host, "lock", "write")
    lock_dpkg(host)
    waiting = host.popen("holdfast", "hold")
    host.wait_for(
        lambda: "waiting until dpkg is free" in host.sh("cat /var/lib/holdfast-runner/runs/*.jsonl"), 30, "hold to wait"
    )
    assert (showhold(host), host.exists(RECORD)) == (set(), False)
    host.run("systemctl", "stop", "changing")
    out, _ = waiting.communicate(timeout=120)
    assert waiting.returncode == 0, out
    assert showhold(host) == recorded(host) == EVERYTHING


def killed_within_apt_mark(host: BootedHost) -> None:
    """Start a hold, and kill its run while it calls apt-mark."""
    host.sh("mv /usr/bin/apt-mark /usr/bin/apt-mark.real; rm -f /run/marked")
    host.write("/usr/bin/apt-mark", SLOW_APT_MARK, mode=0o755)
    killed = host.popen("holdfast", "hold")
    host.wait_for(lambda: host.exists("/run/marked"), 60, "apt-mark to have been called")
    assert recorded(host) == OURS, "owned before dpkg is told"
    host.sh("mv /usr/bin/apt-mark.real /usr/bin/apt-mark; systemctl kill --signal=KILL 'holdfast-runner@*.service'")
    killed.communicate(timeout=60)


def last_outcome(host: BootedHost) -> str:
    lines = host.read("/var/lib/holdfast-runner/ledger.jsonl").splitlines()
    found = [record for record in map(json.loads, lines) if record["kind"] in ("attempt", "outcome")]
    return str(found[-1]["data"].get("outcome", "")) if found else ""


def test_a_killed_hold_is_undone_and_until_then_every_hold_has_its_owner(ubuntu: Saturday) -> None:
    host = ubuntu.host
    holdfast(host, "lock", "write")
    host.run("apt-mark", "hold", OTHERS)

    for when in ("before dpkg is told", "after it"):
        host.sh("touch /run/first" if when.startswith("before") else "rm /run/first")
        killed_within_apt_mark(host)
        host.wait_for(lambda: not host.exists(RECORD), 60, f"the hold that was cut off {when} to be undone")
        host.wait_for(lambda: last_outcome(host) == "undone", 30, "its outcome")
        assert (showhold(host), drop_ins(host)) == ({OTHERS}, [False, False]), when
    holdfast(host, "hold")
    assert (showhold(host), recorded(host)) == (EVERYTHING, OURS)


def test_an_upgrade_of_the_package_keeps_all_and_its_purge_releases_exactly_ours(ubuntu: Saturday) -> None:
    host = ubuntu.host
    holdfast(host, "lock", "write")
    host.run("apt-mark", "hold", OTHERS, "tzdata")
    holdfast(host, "hold")
    before = [host.read(path) for path in (RECORD, UNATTENDED, NEEDRESTART)]
    host.push(built_package(), "/root/holdfast.deb")
    host.run("dpkg", "-i", "/root/holdfast.deb", timeout=300)
    assert [host.read(path) for path in (RECORD, UNATTENDED, NEEDRESTART)] == before
    assert showhold(host) == EVERYTHING | {"tzdata"}

    status, said = ubuntu.upgrade("remove", "holdfast")
    line = next(line for line in said.splitlines() if "sudo apt-mark unhold" in line)
    told = {name.partition(":")[0] for name in line.partition("apt-mark unhold ")[2].split()}
    assert (status, told) == (0, OURS)
    assert showhold(host) == EVERYTHING | {"tzdata"}, "removing the package moves no driver"
    assert drop_ins(host) == [False, False]
    ubuntu.upgrade("install", "openssl")

    # Somebody else is at work when the package is purged: the holds go when that is over.
    host.install_deb(built_package())
    assert "sudo holdfast unhold" in ubuntu.upgrade("remove", "holdfast")[1]
    host.sh("dpkg --purge holdfast & wait; systemctl is-active holdfast-release-holds || true")
    host.wait_for(lambda: showhold(host) == {OTHERS, "tzdata"}, 60, "exactly ours to be released")
    host.wait_for(lambda: not host.exists("/run/holdfast-release-holds"), 30, "the job to be over")
    assert "released: " in host.journal("holdfast-release-holds")
    assert not host.exists("/var/lib/holdfast-runner")
    host.run("apt-mark", "unhold", "tzdata")
    ubuntu.upgrade("install", "tzdata")
    assert not host.run("systemctl", "list-units", "--all", "--no-legend", "holdfast*").stdout


def test_a_purge_by_apt_itself_waits_for_apt_and_then_releases(ubuntu: Saturday) -> None:
    host = ubuntu.host
    holdfast(host, "lock", "write")
    holdfast(host, "hold")
    assert "its holds are released as soon as apt is done" in ubuntu.upgrade("purge", "holdfast")[1]
    host.wait_for(lambda: showhold(host) == set(), 60, "our holds to be released")
    # Suspended for a planned change, ours are released already, and what is held is somebody else's.
    host.install_deb(built_package())
    holdfast(host, "lock", "write")
    holdfast(host, "hold")
    host.sh(f'sed -i \'s/"suspended": false/"suspended": true/\' {RECORD}')
    ubuntu.upgrade("purge", "holdfast")
    assert not host.exists("/run/holdfast-release-holds")
    assert showhold(host) == EVERYTHING


DKMS = {
    "nvidia-driver": "all", "nvidia-kernel-dkms": "amd64", "nvidia-kernel-support": "amd64", "libcuda1": "amd64",
    "libnvidia-ml1": "amd64", "nvidia-smi": "amd64", "firmware-nvidia-gsp": "amd64",
}  # fmt: skip


def debian_packages(folder: Path, version: str, kernel: str) -> list[Path]:
    """Debian's names and sources, of one version of the driver and one of the kernel, and what is never held."""
    made = [
        make_deb(folder, name, f"{version}-1", architecture=architecture, fields={"Source": "nvidia-graphics-drivers"})
        for name, architecture in DKMS.items()
    ]
    beside: dict[str, dict[str, Any]] = {
        "linux-image-amd64": {"architecture": "amd64", "fields": {"Source": "linux-signed-amd64"}},
        "linux-headers-amd64": {"architecture": "amd64", "fields": {"Source": "linux-signed-amd64"}},
        "nvidia-container-toolkit": {"architecture": "amd64"},
        "cuda-toolkit-13-1": {"architecture": "amd64"},
    }
    return [*made, *(make_deb(folder, name, kernel, **more) for name, more in beside.items())]


@pytest.mark.parametrize(("suite", "driver", "newer"), [
    ("bookworm", "535.261.03", "535.309.01"), ("trixie", "550.163.01", "550.180.02"),
])  # fmt: skip
def test_debians_dkms_driver_is_held_and_its_kernel_is_not(
    host: Boot, tmp_path: Path, suite: str, driver: str, newer: str
) -> None:
    kernel = "6.1.0-35-amd64"
    machine = host(suite, llama=False)
    publish(machine, debian_packages(tmp_path / "old", driver, "6.1.140-1"))
    names = {*DKMS, "linux-image-amd64", "linux-headers-amd64", "nvidia-container-toolkit", "cuda-toolkit-13-1"}
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    machine.run("apt-get", "-q", "-y", "install", *names, env=quiet, timeout=300)
    machine.install_deb(built_package())
    fake_driver(machine, driver)
    fake_devices(machine)
    show_running_kernel(machine, kernel)
    machine.write("/etc/modprobe.d/nvidia.conf", "install nvidia modprobe -i nvidia-current $CMDLINE_OPTS\n")
    folder = f"{LIB}/nvidia/current"
    machine.sh(f"mkdir -p {folder}; for l in libnvidia-ml libcuda; do touch {folder}/$l.so.{driver}; "
               f"ln -s $l.so.{driver} {folder}/$l.so.1; done")  # fmt: skip
    make_kernel(machine, kernel)
    make_module(machine, kernel, driver)
    assert (showhold(machine), drop_ins(machine)) == (set(), [False, False])
    machine.write("/etc/holdfast/conf.d/engine.toml", ENGINE)

    holdfast(machine, "lock", "write")
    assert f"7 packages on hold for driver {driver}," in holdfast(machine, "hold"), "and for no kernel"
    assert showhold(machine) == {*DKMS}
    assert recorded(machine) == {*DKMS}
    services = (
        "vllm@gpu0.service",
        "xvllm@gpu0.service",
        "holdfast.service",
        "holdfast-runner@1.service",
        "ssh.service",
    )
    untouched = machine.run("perl", "-e", NEEDRESTART_READS, NEEDRESTART, *services).stdout.split()
    assert untouched == ["vllm@gpu0.service", "holdfast.service", "holdfast-runner@1.service"]
    text = holdfast(machine, "hold", "--explain")
    assert "by holdfast" in text
    assert "container toolkit" in text

    publish(machine, debian_packages(tmp_path / "new", newer, "6.1.153-1"))
    said = machine.run("apt-get", "-q", "-y", "dist-upgrade", env=quiet, timeout=300).stdout
    assert "kept back" in said
    rows = machine.sh("dpkg-query -W -f '${Package} ${Version}\\n'").splitlines()
    versions = dict(row.split() for row in rows)
    assert {versions[name] for name in DKMS} == {f"{driver}-1"}
    assert {versions[name] for name in names - {*DKMS}} == {"6.1.153-1"}

    # dpkg -i clears a hold without a word; holding again is a person's, or the daemon's, one command.
    machine.sh("dpkg -i /var/lib/bed/repository/libnvidia-ml1_*.deb", timeout=120)
    assert showhold(machine) == {*DKMS} - {"libnvidia-ml1"}
    assert "packages-mixed" in holdfast(machine, "hold", code=77)
    holdfast(machine, "unhold")
    assert (showhold(machine), drop_ins(machine), machine.exists(RECORD)) == (set(), [False, False], False)
