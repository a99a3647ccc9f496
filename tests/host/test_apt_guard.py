"""The apt guard in real apt runs: what it refuses is refused before dpkg starts, everything else goes on.

On Ubuntu with the real packages of driver 550 and real kernels; on every release with packages made here; and with a
guard that is missing, broken or half replaced, where apt must go on.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from bed import Bed, BootedHost
from bed.host import booted
from bed.kernels import (
    DRIVER,
    KERNEL,
    NEXT_KERNEL,
    NEXT_KERNEL_DEBS,
    make_kernel,
    make_module,
    set_grub_default,
    show_running_kernel,
    ubuntu_with_driver,
    without_a_disk,
)
from bed.packages import make_deb, publish
from spine import built_package

Boot = Callable[..., BootedHost]
SUITES = ("jammy", "bookworm", "noble", "trixie", "resolute")
NEWER, OTHER = "580.178.04", "595.84"
LOCK = "/etc/holdfast/driver.lock"
CHANGE = "/var/lib/holdfast-runner/change.json"
VETO = "/var/lib/holdfast-runner/veto.json"
GUARD = "/usr/lib/holdfast/apt-guard"
LIBRARY = "libnvidia-compute-550-server"
FAILS_OPEN = "lets everything through"


def apt(host: BootedHost, *words: str) -> tuple[bool, str]:
    """Whether apt-get did it, and all that it said."""
    argv = ("apt-get", "-q", "-y", "--allow-downgrades", *words)
    done = host.run(*argv, check=False, timeout=600, env={"DEBIAN_FRONTEND": "noninteractive"})
    return done.returncode == 0, done.stdout + done.stderr


def version(host: BootedHost, name: str) -> str:
    """The version of a package that is installed, "" for none."""
    done = host.run("dpkg-query", "-W", "-f", "${db:Status-Status} ${Version}", name, check=False)
    state, _, known = done.stdout.partition(" ")
    return known if state == "installed" else ""


def refused(host: BootedHost, *words: str) -> list[str]:
    """Our lines of an apt run that must be refused and change nothing."""
    before = host.run("dpkg-query", "-W").stdout
    went, said = apt(host, *words)
    assert not went, said
    ours = [line.removeprefix("holdfast: ") for line in said.splitlines() if line.startswith("holdfast: ")]
    assert ours, said
    assert ours[0].startswith("refused, and nothing was changed: driver "), said
    assert len(ours) <= 6, ours
    assert host.run("dpkg-query", "-W").stdout == before
    return ours


def passed(host: BootedHost, *words: str) -> str:
    """What was said in an apt run that must go on."""
    went, said = apt(host, *words)
    assert went, said
    assert "refused" not in said
    return said


def lock(host: BootedHost, driver: str = DRIVER) -> None:
    host.write(LOCK, f"{driver}\n")


def open_change(host: BootedHost, to: str, *, kernel: str = "", window_s: float = 3600.0) -> None:
    """What `holdfast change begin` leaves behind."""
    change = {
        "id": "c1", "to": to, "kernel": kernel, "reason": "security", "at": time.time() - 60, "boot_s": 1.0,
        "boot_id": "another", "window_s": window_s, "by": "root", "locked": DRIVER,
    }  # fmt: skip
    host.write(CHANGE, json.dumps(change), mode=0o640)


def driver_deb(folder: Path, release: str, name: str = LIBRARY, **fields: str) -> Path:
    return make_deb(folder, name, release, architecture="amd64", fields={"Source": "nvidia-graphics-drivers", **fields})


@pytest.fixture
def ubuntu(bed: Bed) -> Iterator[BootedHost]:
    """Ubuntu 24.04 with the real packages of driver 550, locked, and a GRUB that boots the newest kernel."""
    with booted("noble", ubuntu_with_driver(), name="host", writable=True, binds={}) as host:
        without_a_disk(host)
        set_grub_default(host, "0")
        show_running_kernel(host, KERNEL)
        host.install_deb(built_package())
        lock(host)
        yield host


def test_a_real_kernel_without_its_module_is_refused_before_dpkg_starts(ubuntu: BootedHost) -> None:
    kernel = ubuntu.sh(f"echo {NEXT_KERNEL_DEBS}/*.deb").split()
    lines = refused(ubuntu, "install", *kernel)
    assert lines[1] == (
        f"linux-image-{NEXT_KERNEL}: kernel {NEXT_KERNEL}, which would boot next, would have no NVIDIA module"
    )
    assert f"install linux-modules-nvidia-550-server-{NEXT_KERNEL} in the same command" in lines[2]
    assert not ubuntu.exists(f"/boot/vmlinuz-{NEXT_KERNEL}")

    # The daemon reads what was refused, nobody else does; the system's log has it too.
    kept = json.loads(ubuntu.run("cat", VETO, user="holdfast").stdout)
    assert (kept["command"], kept["unattended"], kept["package"]) == (
        "apt-get install", False, f"linux-image-{NEXT_KERNEL}",
    )  # fmt: skip
    assert kept["boot"] == ubuntu.read("/proc/sys/kernel/random/boot_id").strip().replace("-", "")
    assert ubuntu.run("cat", VETO, user="nobody", check=False).returncode != 0
    logged = ubuntu.run("journalctl", "-b", "-t", "holdfast-apt-guard", "-o", "cat").stdout
    assert f"refused apt-get install: linux-image-{NEXT_KERNEL}: " in logged

    # Where the next boot is one certain entry, the new kernel is not the next one: told, and let through.
    set_grub_default(ubuntu, f"Advanced options for Ubuntu>Ubuntu, with Linux {KERNEL}")
    said = passed(ubuntu, "install", *kernel)
    assert f"note: kernel {NEXT_KERNEL} comes without an NVIDIA module; the next boot stays {KERNEL}" in said
    assert ubuntu.exists(f"/boot/vmlinuz-{NEXT_KERNEL}")


def test_the_real_drivers_removal_and_its_modules_are_refused(ubuntu: BootedHost) -> None:
    lines = refused(ubuntu, "remove", LIBRARY)
    assert "550.54.15 would be removed" in lines[1]
    assert f"sudo rm {LOCK}" in lines[2]
    lines = refused(ubuntu, "purge", f"linux-modules-nvidia-550-server-{KERNEL}")
    assert f"kernel {KERNEL}, which would boot next, would have no NVIDIA module" in lines[1]

    # What has been agreed with a person's own hand goes: no lock, no veto.
    ubuntu.run("rm", LOCK)
    passed(ubuntu, "remove", LIBRARY)
    assert version(ubuntu, LIBRARY) == ""


def test_a_newer_driver_is_refused_with_what_leads_to_it_and_goes_with_its_planned_change(
    ubuntu: BootedHost, tmp_path: Path
) -> None:
    new = "libnvidia-compute-580-server"
    publish(
        ubuntu,
        [
            driver_deb(tmp_path, "550.163.01-0ubuntu1", Depends=new, Description="transitional dummy package"),
            driver_deb(tmp_path, f"{NEWER}-0ubuntu1", new),
            driver_deb(tmp_path, f"{OTHER}-0ubuntu1", "libnvidia-compute-595-server"),
            make_deb(tmp_path, "hello", "1.0"),
            make_deb(tmp_path, "other", "1.0"),
            make_deb(tmp_path, "third", "1.0"),
        ],
    )
    lines = refused(ubuntu, "install", LIBRARY)
    assert lines[1].startswith(f"{LIBRARY}: {DRIVER} to an empty package that leads to {new} {NEWER}")
    assert f"sudo holdfast change begin --to {NEWER} --reason" in lines[2]

    # An update without the driver goes on; together with it, nothing does.
    passed(ubuntu, "install", "hello")
    refused(ubuntu, "install", "other", LIBRARY)
    assert version(ubuntu, "other") == ""

    # Another change than this one does not open it; this one does, for exactly that driver.
    open_change(ubuntu, OTHER)
    assert any("the planned change that is open is another one" in line for line in refused(ubuntu, "install", LIBRARY))
    open_change(ubuntu, NEWER)
    assert any(f"driver {NEWER}" in line for line in refused(ubuntu, "install", "libnvidia-compute-595-server"))
    kernel = ubuntu.sh(f"echo {NEXT_KERNEL_DEBS}/*.deb").split()
    refused(ubuntu, "install", *kernel)
    refused(ubuntu, "remove", "nvidia-utils-550-server")
    said = passed(ubuntu, "install", LIBRARY, "other")
    assert f"let through by the planned change: driver {NEWER} (security)" in said
    assert version(ubuntu, new) == f"{NEWER}-0ubuntu1"
    open_change(ubuntu, NEWER, window_s=10)
    said = passed(ubuntu, "install", "--reinstall", new)
    assert "past its window: sudo holdfast change status" in said

    # dpkg by itself does not ask: that is noticed afterwards, by the driver's checks.
    ubuntu.run("rm", CHANGE)
    ubuntu.push(driver_deb(tmp_path, f"{OTHER}-0ubuntu1", new), "/root/new.deb")
    ubuntu.run("dpkg", "-i", "/root/new.deb")
    assert version(ubuntu, new) == f"{OTHER}-0ubuntu1"


def with_driver(host: BootedHost, folder: Path) -> None:
    """A host that has a driver's library in 550.54.15, and an archive that has 580 and packages without any driver."""
    publish(
        host,
        [
            driver_deb(folder, f"{DRIVER}-0ubuntu2"),
            driver_deb(folder, f"{NEWER}-0ubuntu1"),
            *(make_deb(folder, name, "1.0") for name in ("hello", "other", "third", "fourth")),
        ],
    )
    passed(host, "install", f"{LIBRARY}={DRIVER}-0ubuntu2")


@pytest.mark.parametrize("suite", SUITES)
def test_on_every_release_apt_asks_and_a_guard_that_is_broken_or_gone_never_stops_it(
    host: Boot, suite: str, tmp_path: Path
) -> None:
    machine = host(suite, llama=False)
    with_driver(machine, tmp_path)
    machine.install_deb(built_package())

    # Where nobody has locked anything, nothing is refused.
    passed(machine, "install", f"{LIBRARY}={NEWER}-0ubuntu1")
    passed(machine, "install", f"{LIBRARY}={DRIVER}-0ubuntu2")
    lock(machine)
    lines = refused(machine, "dist-upgrade")
    assert lines[1] == f"{LIBRARY}: {DRIVER} to {NEWER}"
    assert "550.54.15 would be removed" in refused(machine, "remove", LIBRARY)[1]
    assert passed(machine, "install", "hello").count("holdfast: ") == 0
    passed(machine, "install", "--reinstall", f"{LIBRARY}={DRIVER}-0ubuntu2")

    # A lock that is none.
    machine.write(LOCK, "the newest\n")
    assert "cannot tell what this does to the driver, so it goes on" in passed(
        machine, "install", f"{LIBRARY}={NEWER}-0ubuntu1"
    )
    lock(machine)
    passed(machine, "install", f"{LIBRARY}={DRIVER}-0ubuntu2")

    # Broken in every way.
    for broken in (
        "mv /usr/lib/holdfast/agent /usr/lib/holdfast/gone",
        "cp -a /usr/lib/holdfast/gone /usr/lib/holdfast/agent; echo 'def main(:' >/usr/lib/holdfast/agent/errors.py",
        "cp /usr/lib/holdfast/gone/errors.py /usr/lib/holdfast/agent/; rm /usr/lib/holdfast/agent/data/*.json",
    ):
        machine.sh(broken)
        went, said = apt(machine, "install", f"{LIBRARY}={NEWER}-0ubuntu1")
        assert went, said
        assert FAILS_OPEN in said or "so it goes on" in said, said
        machine.run("dpkg", "-i", f"/var/lib/bed/repository/{LIBRARY}_{DRIVER}-0ubuntu2_amd64.deb")
    machine.sh("rm -r /usr/lib/holdfast/agent; mv /usr/lib/holdfast/gone /usr/lib/holdfast/agent")
    refused(machine, "dist-upgrade")
    machine.sh(f"mv {GUARD} {GUARD}.saved; printf '#!/nowhere\\n' >{GUARD}; chmod 755 {GUARD}")
    passed(machine, "install", "other")
    machine.sh(f"printf '#!/bin/sh\\nkill -9 $$\\n' >{GUARD}")
    passed(machine, "install", "third")
    machine.sh(f"mv {GUARD}.saved {GUARD}")
    refused(machine, "dist-upgrade")

    # Removed and not purged: the hook's line stays, and neither stops apt nor complains.
    machine.run("apt-get", "-q", "-y", "remove", "holdfast", timeout=300)
    assert machine.exists("/etc/apt/apt.conf.d/80holdfast")
    said = passed(machine, "install", "fourth")
    assert "holdfast" not in said
    passed(machine, "dist-upgrade")
    assert version(machine, LIBRARY) == f"{NEWER}-0ubuntu1"
    machine.run("apt-get", "-q", "-y", "purge", "holdfast", timeout=300)
    assert not machine.exists("/etc/apt/apt.conf.d/80holdfast")
    passed(machine, "remove", "fourth")


def later(folder: Path) -> Path:
    """The built package again, as a later version of itself."""
    tree = folder / "tree"
    subprocess.run(["dpkg-deb", "--raw-extract", str(built_package()), str(tree)], check=True, timeout=120)
    control = tree / "DEBIAN/control"
    text = control.read_text(encoding="utf-8")
    found = next(line for line in text.splitlines() if line.startswith("Version: "))
    control.write_text(text.replace(found, f"{found}+later1"), encoding="utf-8")
    deb = folder / "holdfast_9.9_amd64.deb"
    argv = ["dpkg-deb", "-Zgzip", "-z1", "--build", "--root-owner-group", str(tree), str(deb)]
    subprocess.run(argv, check=True, timeout=300, stdout=subprocess.DEVNULL)
    return deb


def test_the_run_that_replaces_holdfast_itself_is_guarded_and_an_interrupted_one_goes_on(
    host: Boot, tmp_path: Path
) -> None:
    machine = host("bookworm", llama=False)
    with_driver(machine, tmp_path)
    machine.install_deb(built_package())
    lock(machine)
    publish(machine, [later(tmp_path)])
    refused(machine, "dist-upgrade")
    before = version(machine, "holdfast")
    passed(machine, "install", "holdfast")
    assert version(machine, "holdfast") == f"{before}+later1"
    refused(machine, "dist-upgrade")

    # Unpacked and not configured, as after a power cut: the guard works, and so does apt's way out.
    machine.run("dpkg", "--unpack", "/var/lib/bed/repository/holdfast_9.9_amd64.deb", timeout=300)
    refused(machine, "dist-upgrade")
    passed(machine, "install", "-f")
    assert version(machine, "holdfast") == f"{before}+later1"


@pytest.mark.parametrize("suite", ["bookworm", "trixie"])
def test_where_dkms_builds_a_kernel_comes_with_its_headers_or_not_at_all(
    host: Boot, suite: str, tmp_path: Path
) -> None:
    old, new, driver = "6.1.0-35-amd64", "6.1.0-40-amd64", "535.261.03"
    machine = host(suite, llama=False)
    fields = {"Source": "linux-signed-amd64"}
    kernel = {f"/boot/vmlinuz-{new}": "kernel\n", f"/lib/modules/{new}/modules.order": ""}
    headers = {f"/usr/src/linux-headers-{new}/include/x.h": "\n"}
    source = {"Source": "nvidia-graphics-drivers"}
    publish(
        machine,
        [
            make_deb(tmp_path, f"linux-image-{new}", "6.1.153-1", fields=fields, files=kernel),
            make_deb(tmp_path, f"linux-headers-{new}", "6.1.153-1", fields={"Source": "linux"}, files=headers),
            make_deb(tmp_path, "linux-image-amd64", "6.1.153-1", fields={**fields, "Depends": f"linux-image-{new}"}),
            make_deb(tmp_path, "nvidia-kernel-dkms", f"{driver}-1~deb12u1", fields=source),
            make_deb(tmp_path, "nvidia-kernel-dkms", "535.309.01-1~deb12u1", fields=source),
        ],
    )
    make_kernel(machine, old)
    make_module(machine, old, driver)
    show_running_kernel(machine, old)
    passed(machine, "install", f"nvidia-kernel-dkms={driver}-1~deb12u1")
    machine.install_deb(built_package())
    lock(machine, driver)

    assert refused(machine, "install", "nvidia-kernel-dkms")[1] == f"nvidia-kernel-dkms: {driver} to 535.309.01"
    lines = refused(machine, "install", "linux-image-amd64")
    assert f"DKMS needs linux-headers-{new}" in lines[1]
    assert f"install linux-headers-{new} in the same command" in lines[2]
    said = passed(machine, "install", "linux-image-amd64", f"linux-headers-{new}")
    assert f"note: DKMS will build the driver for kernel {new}" in said
