"""Holds that somebody takes away, and what they keep out: on Ubuntu with the real driver packages, and on Debian.

An engine runs and nothing of it is touched. Faked only where a card would be: what is loaded is shown.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
from bed import Bed, BootedHost, engine, fake_devices, fake_driver, llama_unit, make_deb, mirror
from bed.bed import LLAMA, MODELS
from bed.host import booted
from bed.kernels import (
    DRIVER,
    KERNEL,
    NEXT_KERNEL,
    NEXT_KERNEL_DEBS,
    make_kernel,
    make_module,
    run_the_driver,
    show_running_kernel,
    ubuntu_with_driver,
)
from bed.packages import REPOSITORY, publish
from spine import Page, Watched, installed

Boot = Callable[..., BootedHost]
NEWER = "550.163.01"
LIB = "/usr/lib/x86_64-linux-gnu"
LIBRARY = "libnvidia-compute-550-server"
GONE = "apt-mark unhold $(apt-mark showhold)"
# The real package with its scripts, as if its next version had the next library in it.
REBUILD = f"""
dpkg-deb -R {{deb}} /var/tmp/newer
cd /var/tmp/newer{LIB}
for file in *.so.{DRIVER}; do mv $file ${{{{file%{DRIVER}}}}}{NEWER}; done
for link in *; do
  if [ -L $link ]; then ln -sfn $(readlink $link | sed s/{DRIVER}/{NEWER}/) $link; fi
done
sed -i 's/^Version: .*/Version: {NEWER}-0ubuntu1/' ../../../DEBIAN/control
rm -f ../../../DEBIAN/md5sums
dpkg-deb -Znone -b /var/tmp/newer /var/tmp/newer.deb >&2
"""


def watching(host: BootedHost, *, mode: str = "observe", more: str = "") -> Watched:
    """An installed Holdfast that watches a real engine and may not act, and whose pages arrive in an inbox."""
    inbox = installed(host)
    scene = Watched(host, inbox, llama_unit(host))
    scene.configure(mode=mode, more=more)
    scene.wait_ready()
    return scene


def held(host: BootedHost) -> set[str]:
    return set(host.run("apt-mark", "showhold").stdout.split())


def check(host: BootedHost, name: str) -> tuple[int, str]:
    done = host.run("holdfast", "check", name, check=False)
    return done.returncode, done.stdout.strip()


def words(page: Page) -> str:
    """What a page says, without the line breaks that fit it to a phone."""
    return " ".join(page.message.split())


def told(scene: Watched, finding: str) -> list[str]:
    """What the pager heard of one cause, in order."""
    return [page.action for page in scene.pages() if page.finding == finding]


@pytest.fixture
def ubuntu(bed: Bed) -> Iterator[BootedHost]:
    shown = {
        mirror.ubuntu_mirror().folder: mirror.PLACE, engine.llama_server(): LLAMA, engine.models(): MODELS
    }  # fmt: skip
    with booted("noble", ubuntu_with_driver(), name="host", writable=True, binds=shown) as host:
        run_the_driver(host)
        yield host


def test_a_script_that_releases_everything_is_told_and_undone_in_every_mode_but_not_while_paused(
    ubuntu: BootedHost,
) -> None:
    scene = watching(ubuntu, mode="observe")
    ubuntu.run("holdfast", "lock", "write")
    ubuntu.run("holdfast", "hold")
    ours = held(ubuntu)
    assert LIBRARY in ours
    assert f"linux-image-{KERNEL}" in ours

    started = time.monotonic()
    ubuntu.sh(GONE)
    assert held(ubuntu) == set()
    ubuntu.wait_for(lambda: held(ubuntu) == ours, 60, "the holds to be back")
    print(f"held again {time.monotonic() - started:.1f} s after apt-mark unhold")
    page = scene.triggered("hold-missing", 30)
    assert page.severity == "warning"
    assert f"({len(ours)} of {len(ours)})" in words(page)
    assert "somebody released them" in words(page)
    scene.resolved("hold-missing", 60)
    assert scene.ledger("attempt")[-1]["data"]["runbook"] == "reassert-holds"

    before = len(scene.pages())
    ubuntu.run("holdfast", "pause", "1h", "--reason", "the GPU operator is at work")
    ubuntu.sh(GONE)
    quiet = scene.page(lambda page: page.finding == "hold-missing" and page.action == "trigger", 60, "a page", before)
    assert quiet.severity == "info"
    time.sleep(15)
    assert held(ubuntu) == set(), "not while paused"
    ubuntu.run("holdfast", "resume")
    ubuntu.wait_for(lambda: held(ubuntu) == ours, 60, "the holds to be back")
    # What is told quietly is an event, over at once; what is told aloud afterwards is over when it is held.
    ours_again = "/hold-missing/host"
    scene.page(lambda page: page.key.endswith(ours_again) and page.action == "resolve", 60, "the resolve", before)

    # What a person gives back is not held again.
    before = len(scene.pages())
    ubuntu.run("holdfast", "unhold")
    time.sleep(15)
    assert held(ubuntu) == set()
    assert [page for page in scene.pages()[before:] if page.finding == "hold-missing"] == []


def test_a_newer_library_with_dpkg_clears_the_hold_and_is_told_within_ten_seconds(ubuntu: BootedHost) -> None:
    scene = watching(ubuntu, mode="act")
    ubuntu.run("holdfast", "lock", "write")
    ubuntu.run("holdfast", "hold")
    ours = held(ubuntu)
    deb = mirror.ubuntu_mirror().deb(LIBRARY, "noble")
    ubuntu.sh(REBUILD.format(deb=deb), timeout=300)
    pid = scene.engine.pid

    ubuntu.sh("date +%s.%N >/run/began; dpkg -i /var/tmp/newer.deb; date +%s.%N >/run/ended", timeout=300)
    assert ubuntu.run("readlink", "-f", f"{LIB}/libnvidia-ml.so.1").stdout.strip() == f"{LIB}/libnvidia-ml.so.{NEWER}"
    began, ended = (float(ubuntu.read(f"/run/{name}")) for name in ("began", "ended"))
    mismatch = scene.triggered("driver-mismatch", 30)
    print(
        f"driver-mismatch told {mismatch.at - began:.1f} s after dpkg -i began, "
        f"{mismatch.at - ended:.1f} s after it ended ({ended - began:.1f} s)"
    )
    assert NEWER in words(mismatch)
    assert mismatch.severity == "critical"

    ubuntu.wait_for(lambda: held(ubuntu) == ours, 60, "the hold to be back")
    print(f"held again {float(ubuntu.run('date', '+%s.%N').stdout) - ended:.1f} s after dpkg -i ended")
    cleared = scene.triggered("hold-missing", 30)
    assert f"dpkg put {LIBRARY} {NEWER}-0ubuntu1 in the place of {DRIVER}" in words(cleared)
    scene.resolved("hold-missing", 60)

    refused = ubuntu.run("holdfast", "run", "restart-engine", "--engine", "chat", check=False)
    assert refused.returncode != 0
    assert scene.engine.pid == pid, "the engine runs on as it did"
    assert scene.engine.generates()


def test_a_new_kernel_without_a_module_is_told_within_seconds_of_its_installation(ubuntu: BootedHost) -> None:
    scene = watching(ubuntu)
    ubuntu.run("holdfast", "lock", "write")
    ubuntu.run("holdfast", "hold")
    ubuntu.sh(f"dpkg -i {NEXT_KERNEL_DEBS}/*.deb; grub-mkconfig -o /boot/grub/grub.cfg; date +%s.%N >/run/ended",
              timeout=300)  # fmt: skip
    page = scene.triggered("next-boot-no-driver", 60)
    print(f"next-boot-no-driver told {page.at - float(ubuntu.read('/run/ended')):.1f} s after the installation ended")
    assert f"kernel {NEXT_KERNEL}" in words(page)
    assert ubuntu.boots == 1


def test_a_security_update_that_waits_behind_a_hold_is_a_gentle_reminder_and_told_once(ubuntu: BootedHost) -> None:
    mirror.use(ubuntu, "noble")
    scene = watching(ubuntu, more='[check."driver.updates"]\nstale_after_days = 0.0003\n')  # 26 s
    ubuntu.run("holdfast", "lock", "write")
    ubuntu.run("holdfast", "hold")
    code, said = check(ubuntu, "driver.updates")
    assert (code, "no security update waits" in said) == (0, True), said

    # apt's lists change: that alone makes the check due, whose own cadence is six hours.
    mirror.use(ubuntu, *mirror.POCKETS)
    page = scene.triggered("hold-stale", 120)
    assert page.severity == "warning"
    assert "550.163.01-0ubuntu0.24.04.2" in words(page)
    assert "sudo holdfast change begin --to VERSION" in words(page)
    ubuntu.run("apt-get", "-q", "update", timeout=120)
    time.sleep(20)
    assert told(scene, "hold-stale") == ["trigger"]
    ubuntu.run("holdfast", "unhold")
    scene.resolved("hold-stale", 60)


def test_unattended_upgrades_that_the_guard_has_ended_are_told_until_a_run_is_good_again(ubuntu: BootedHost) -> None:
    mirror.use(ubuntu, *mirror.POCKETS)
    scene = watching(ubuntu)
    ubuntu.run("holdfast", "lock", "write")
    # A lock and no holds: what the night brings for the driver meets the guard, which ends the whole run.
    ubuntu.run("unattended-upgrade", "-v", check=False, timeout=600)
    page = scene.triggered("updates-blocked", 60)
    assert page.severity == "warning"
    assert "the apt guard ended the last unattended upgrade" in words(page)
    ubuntu.run("holdfast", "hold")
    # Now it comes to its end; what the first run had installed before the guard met it need not come again.
    night = ubuntu.run("unattended-upgrade", "-v", timeout=600).stdout
    assert "All upgrades installed" in night or "No packages found that can be upgraded unattended" in night, night
    scene.resolved("updates-blocked", 60)

    # dpkg dies half-way: nothing is upgraded any more, and nobody would know.
    before = len(scene.pages())
    deb = make_deb(ubuntu.work, "slow", scripts={"postinst": "[ -e /run/fast ] || sleep 600"})
    ubuntu.push(deb, "/var/tmp/slow.deb")
    ubuntu.run("systemd-run", "--quiet", "--unit=slow", "dpkg", "-i", "/var/tmp/slow.deb")
    ubuntu.wait_for(lambda: ubuntu.run("pgrep", "-x", "slow.postinst", check=False).stdout, 60, "the postinst")
    assert "is changing packages" in check(ubuntu, "driver.holds")[1]
    ubuntu.run("systemctl", "kill", "--signal=KILL", "slow")
    blocked = scene.page(
        lambda page: page.finding == "updates-blocked" and page.action == "trigger", 60, "a page", before
    )
    assert "sudo dpkg --configure -a" in words(blocked)
    ubuntu.sh("touch /run/fast; dpkg --configure -a")
    scene.page(lambda page: page.finding == "updates-blocked" and page.action == "resolve", 60, "the resolve", before)


def debian_packages(machine: BootedHost, version: str) -> None:
    """Debian's driver packages by name, source and version, with a library inside, in an archive of their own."""
    fields = {"Source": "nvidia-graphics-drivers"}
    folder = f"{LIB}/nvidia/current"
    links = "; ".join(f"ln -sfn {name}.so.{version} {folder}/{name}.so.1" for name in ("libnvidia-ml", "libcuda"))
    debs = [
        make_deb(machine.work / version, name, f"{version}-1~deb12u1", architecture="amd64", fields=fields)
        for name in ("nvidia-kernel-dkms", "nvidia-kernel-support", "libcuda1")
    ]
    libraries = {f"{folder}/{name}.so.{version}": "a library\n" for name in ("libnvidia-ml", "libcuda")}
    debs.append(
        make_deb(
            machine.work / version, "libnvidia-ml1", f"{version}-1~deb12u1", architecture="amd64", fields=fields,
            files=libraries, scripts={"postinst": links},
        )
    )  # fmt: skip
    publish(machine, debs)


def as_security(machine: BootedHost) -> None:
    """Let the archive say of itself what Debian's security archive says."""
    machine.sh(
        f"cd {REPOSITORY}; apt-ftparchive -o APT::FTPArchive::Release::Origin=Debian "
        "-o APT::FTPArchive::Release::Label=Debian-Security -o APT::FTPArchive::Release::Suite=stable-security "
        "release . >/tmp/Release; mv /tmp/Release Release; apt-get -q --allow-releaseinfo-change update"
    )


def test_debians_packages_are_held_again_and_their_security_updates_seen(host: Boot) -> None:
    kernel, driver, newer = "6.1.0-40-amd64", "535.261.03", "535.309.01"
    machine = host("bookworm", writable=True)
    fake_driver(machine, driver)
    fake_devices(machine)
    show_running_kernel(machine, kernel)
    machine.write("/etc/modprobe.d/nvidia.conf", "install nvidia modprobe -i nvidia-current $CMDLINE_OPTS\n")
    make_kernel(machine, kernel)
    make_module(machine, kernel, driver)
    debian_packages(machine, driver)
    machine.run("apt-get", "-q", "-y", "install", "nvidia-kernel-dkms", "nvidia-kernel-support", "libcuda1",
                "libnvidia-ml1")  # fmt: skip
    scene = watching(machine, more='[check."driver.updates"]\nstale_after_days = 0.0001\n')
    machine.run("holdfast", "lock", "write")
    machine.run("holdfast", "hold")
    ours = held(machine)
    assert ours == {"nvidia-kernel-dkms", "nvidia-kernel-support", "libcuda1", "libnvidia-ml1"}

    machine.sh(GONE)
    scene.triggered("hold-missing", 60)
    machine.wait_for(lambda: held(machine) == ours, 60, "the holds to be back")
    scene.resolved("hold-missing", 60)

    debian_packages(machine, newer)
    time.sleep(20)
    assert told(scene, "hold-stale") == [], "a newer version that no security archive has is no news"
    as_security(machine)
    page = scene.triggered("hold-stale", 120)
    assert f"{newer}-1~deb12u1" in words(page)
    assert held(machine) == ours


def test_a_box_where_nothing_was_ever_asked_is_left_alone(host: Boot) -> None:
    machine = host("bookworm", writable=True)
    debian_packages(machine, "535.261.03")
    machine.run("apt-get", "-q", "-y", "install", "libnvidia-ml1", "libcuda1")
    scene = watching(machine, mode="act", more='[check."driver.updates"]\nstale_after_days = 0.0001\n')
    machine.sh("apt-mark hold libcuda1 libnvidia-ml1; apt-mark unhold libcuda1")
    debian_packages(machine, "535.309.01")
    as_security(machine)
    machine.sh("echo 'Package: x' >/var/lib/dpkg/updates/0001")
    for name in ("driver.holds", "driver.updates"):
        assert check(machine, name)[0] == 0
    time.sleep(20)
    assert held(machine) == {"libnvidia-ml1"}
    assert scene.pages() == []
    assert scene.starts() == 0
