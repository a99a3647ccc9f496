"""The driver's truths on real hosts: Ubuntu's real packages and kernels, Debian's names, faked only where a card is.

The kernel trap is told before any reboot, an armed reboot makes it urgent, and it is over when the next boot is good
again. What is loaded, and which kernel runs, is shown; modules, menus, packages, locks and ramdisks are real.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import spine
from bed import Bed, BootedHost, fake_devices, fake_driver
from bed.host import booted
from bed.kernels import (
    DRIVER,
    KERNEL,
    NEXT_KERNEL,
    NEXT_KERNEL_DEBS,
    make_kernel,
    make_module,
    run_the_driver,
    set_grub_default,
    show_running_kernel,
    ubuntu_with_driver,
)
from spine import Watched, built_package

Boot = Callable[..., BootedHost]
NEWER = "580.178.04"
LIB = "/usr/lib/x86_64-linux-gnu"
OFTEN = """
[check."driver.next_boot"]
every_s = 5.0

[check."driver.packages"]
every_s = 5.0

[check."host.reboot"]
every_s = 5.0
"""


def told(host: BootedHost) -> Watched:
    """An installed Holdfast without an engine, that looks often, and whose pages arrive in an inbox."""
    return spine.told(host, OFTEN)


def check(host: BootedHost, name: str) -> tuple[int, str]:
    done = host.run("holdfast", "check", name, check=False)
    return done.returncode, done.stdout.strip()


@pytest.fixture
def ubuntu(bed: Bed) -> Iterator[BootedHost]:
    with booted("noble", ubuntu_with_driver(), name="host", writable=True, binds={}) as host:
        run_the_driver(host)
        yield host


def truths(host: BootedHost) -> dict[str, Any]:
    return dict(json.loads(host.run("holdfast", "lock", "show", "--json", check=False).stdout)["data"])


def trapped(host: BootedHost) -> None:
    """What everybody advises, hold nvidia; then the new kernel comes, without a module."""
    installed = "dpkg-query -W -f '${db:Status-Status} ${Package}\\n' '*nvidia*' | sed -n 's/^installed //p'"
    host.sh(f"{installed} | xargs apt-mark hold")
    host.sh(f"dpkg -i {NEXT_KERNEL_DEBS}/*.deb; grub-mkconfig -o /boot/grub/grub.cfg", timeout=300)


def test_ubuntus_real_packages_agree(ubuntu: BootedHost) -> None:
    ubuntu.install_deb(built_package())
    assert ubuntu.run("holdfast", "lock", "write").stdout.strip().endswith(f"now says {DRIVER}")
    data = truths(ubuntu)
    assert data["status"] == "OK", data["summary"]
    assert {data[name] for name in ("locked", "loaded", "library", "cuda")} == {DRIVER}
    seen = data["next_boot"]
    assert (seen["next.release"], seen["next.by"], seen["next.version"]) == (KERNEL, "GRUB", DRIVER)
    assert seen["next.path"] == f"/lib/modules/{KERNEL}/kernel/nvidia-550srv/nvidia.ko"
    assert seen["next.signer"] == "Canonical Ltd. Kernel Module Signing"
    assert seen["running.version"] == DRIVER
    assert {package["driver"] for package in data["packages"]["packages"]} == {DRIVER, None}
    as_user = ubuntu.run("holdfast", "lock", "show", user="nobody", check=False)
    assert as_user.returncode == 3
    assert "only root can observe this" in as_user.stdout


def test_the_kernel_trap_is_told_before_any_reboot_and_over_when_grub_boots_a_good_kernel(
    ubuntu: BootedHost,
) -> None:
    scene = told(ubuntu)
    ubuntu.run("holdfast", "lock", "write")
    trapped(ubuntu)
    assert all(package["held"] for package in truths(ubuntu)["packages"]["packages"])
    page = scene.triggered("next-boot-no-driver", 60)
    assert page.severity == "critical"
    assert f"kernel {NEXT_KERNEL}" in page.message
    code, said = check(ubuntu, "driver.next_boot")
    assert (code, f"kernel {NEXT_KERNEL} has no nvidia module" in said) == (2, True), said
    refused = ubuntu.run("holdfast", "lock", "write", check=False)
    assert (refused.returncode, "[driver-inconsistent]" in refused.stderr) == (77, True)
    assert ubuntu.boots == 1

    set_grub_default(ubuntu, "saved")
    ubuntu.sh("grub-set-default '1>2'")
    scene.resolved("next-boot-no-driver", 60)
    assert f"kernel {KERNEL}, saved entry" in check(ubuntu, "driver.next_boot")[1]
    ubuntu.run("grub-reboot", f"Advanced options for Ubuntu>Ubuntu, with Linux {NEXT_KERNEL}")
    assert f"kernel {NEXT_KERNEL}, one-shot entry" in check(ubuntu, "driver.next_boot")[1]


def test_a_reboot_that_is_armed_into_the_trap_is_critical_at_once_with_the_time_left(ubuntu: BootedHost) -> None:
    scene = told(ubuntu)
    ubuntu.run("holdfast", "lock", "write")
    trapped(ubuntu)
    scene.triggered("next-boot-no-driver", 60)
    ubuntu.run("shutdown", "-r", "+300")
    armed = scene.triggered("reboot-will-break", 60)
    assert armed.severity == "critical"
    assert "in 5 h" in armed.message
    ubuntu.run("shutdown", "-c")
    scene.resolved("reboot-will-break", 60)

    # As unattended-upgrades arms one, from its real configuration and apt's real timer.
    settings = {
        "Unattended-Upgrade::Automatic-Reboot": "true",
        "Unattended-Upgrade::Automatic-Reboot-Time": "04:00",
        "APT::Periodic::Unattended-Upgrade": "1",
    }
    lines = (f'{name} "{value}";\n' for name, value in settings.items())
    ubuntu.write("/etc/apt/apt.conf.d/99reboot", "".join(lines))
    ubuntu.sh("systemctl start apt-daily-upgrade.timer; touch /run/reboot-required")
    code, said = check(ubuntu, "host.reboot")
    assert (code, "04:00 UTC: unattended-upgrades reboots after its next run" in said) == (1, True), said


def test_libraries_that_dpkg_never_saw_are_told(ubuntu: BootedHost) -> None:
    scene = told(ubuntu)
    ubuntu.run("holdfast", "lock", "write")
    time.sleep(6)
    ubuntu.sh(f"cd {LIB}; cp -a libnvidia-ml.so.{DRIVER} libnvidia-ml.so.{NEWER}; "
              f"ln -sfn libnvidia-ml.so.{NEWER} libnvidia-ml.so.1")  # fmt: skip
    mismatch = scene.triggered("driver-mismatch", 30)
    assert NEWER in mismatch.message
    assert "something replaced it" in check(ubuntu, "driver.packages")[1]


def test_a_module_that_was_never_linked_and_a_dpkg_at_work(ubuntu: BootedHost) -> None:
    ubuntu.install_deb(built_package())
    ubuntu.run("holdfast", "lock", "write")

    # Ubuntu's packages say installed; the module is what counts.
    ubuntu.write("/etc/default/linux-modules-nvidia", "latelink=false\n")
    ubuntu.sh(f"mv /lib/modules/{KERNEL}/kernel/nvidia-550srv/nvidia.ko /root/; depmod {KERNEL}")
    code, said = check(ubuntu, "driver.next_boot")
    assert (code, "has no nvidia module" in said) == (2, True)
    ubuntu.sh(f"mv /root/nvidia.ko /lib/modules/{KERNEL}/kernel/nvidia-550srv/; depmod {KERNEL}")
    assert check(ubuntu, "driver.next_boot")[0] == 0

    # The initial ramdisk carries a copy that is older than the module.
    ubuntu.sh(f"echo nvidia >>/etc/initramfs-tools/modules; update-initramfs -u -k {KERNEL}", timeout=300)
    assert check(ubuntu, "driver.next_boot")[0] == 0
    ubuntu.sh(f"sleep 1; touch /lib/modules/{KERNEL}/kernel/nvidia-550srv/nvidia.ko")
    code, said = check(ubuntu, "driver.next_boot")
    assert (code, "holds a copy of the module that is older" in said) == (1, True)
    ubuntu.sh(f"update-initramfs -u -k {KERNEL}", timeout=300)
    assert check(ubuntu, "driver.next_boot")[0] == 0

    # While dpkg works nothing is concluded.
    script = (
        "import fcntl, time; f = open('/var/lib/dpkg/lock-frontend', 'w'); fcntl.lockf(f, fcntl.LOCK_EX); "
        "open('/run/locked', 'w'); time.sleep(60)"
    )
    ubuntu.run("systemd-run", "--quiet", "--unit=changing", "python3", "-c", script)
    ubuntu.wait_for(lambda: ubuntu.exists("/run/locked"), 10, "dpkg's lock to be held")
    for name in ("driver.next_boot", "driver.packages"):
        code, said = check(ubuntu, name)
        assert (code, "is changing packages" in said) == (3, True), said
    ubuntu.run("systemctl", "stop", "changing")
    assert check(ubuntu, "driver.packages")[0] == 0

    # Bad input, each with its own words.
    for path, change, words in (
        ("/boot/grub/grub.cfg", "head -c 3000", "grub.cfg"),
        ("/boot/grub/grubenv", "tr a-z A-Z", "grubenv is no GRUB environment block"),
    ):
        ubuntu.sh(f"cp {path} /root/saved; {change} /root/saved >{path} || {change} </root/saved >{path}")
        code, said = check(ubuntu, "driver.next_boot")
        assert (code, words in said) == (3, True), said
        ubuntu.sh(f"cp /root/saved {path}")
    ubuntu.sh("mv /boot/grub /boot/gone")
    code, said = check(ubuntu, "driver.next_boot")
    assert (code, "no boot loader found" in said) == (0, True), said


def test_debians_dkms_module_and_the_kernel_whose_headers_were_missing(host: Boot) -> None:
    old, new, driver = "6.1.0-35-amd64", "6.1.0-40-amd64", "535.261.03"
    machine = host("bookworm", llama=False)
    scene = told(machine)
    fake_driver(machine, driver)
    fake_devices(machine)
    show_running_kernel(machine, old)
    machine.write("/etc/modprobe.d/nvidia.conf", "install nvidia modprobe -i nvidia-current $CMDLINE_OPTS\n")
    folder = f"{LIB}/nvidia/current"
    machine.sh(f"mkdir -p {folder}; for l in libnvidia-ml libcuda; do touch {folder}/$l.so.{driver}; "
               f"ln -s $l.so.{driver} {folder}/$l.so.1; done")  # fmt: skip
    make_kernel(machine, old)
    make_module(machine, old, driver)
    machine.run("holdfast", "lock", "write")
    assert f"kernel {old}, newest kernel in /boot" in check(machine, "driver.next_boot")[1]

    make_kernel(machine, new)
    page = scene.triggered("next-boot-no-driver", 60)
    assert new in page.message
    assert machine.boots == 1, "told before any reboot"

    # DKMS built a newer one in the meantime: another driver, with libraries that it does not fit.
    make_module(machine, new, "550.163.01")
    drift = scene.triggered("next-boot-drift", 60)
    assert drift.severity == "critical"
    scene.resolved("next-boot-no-driver", 60)
    make_module(machine, new, driver)
    scene.resolved("next-boot-drift", 60)


def test_a_box_without_a_lock_and_one_without_nvidia_are_left_alone(host: Boot) -> None:
    machine = host("bookworm", llama=False)
    scene = told(machine)
    for name in ("driver.lock", "driver.next_boot", "driver.packages"):
        assert check(machine, name)[0] == 0
    fake_driver(machine, DRIVER)
    fake_devices(machine)
    show_running_kernel(machine, KERNEL)
    machine.sh(f"touch {LIB}/libnvidia-ml.so.{DRIVER}; ln -s libnvidia-ml.so.{DRIVER} {LIB}/libnvidia-ml.so.1")
    make_kernel(machine, KERNEL)
    code, said = check(machine, "driver.next_boot")
    assert (code, "has no NVIDIA driver" in said) == (2, True)
    time.sleep(20)
    assert scene.pages() == []
