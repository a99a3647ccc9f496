"""The way back on real hosts: Ubuntu's real driver 550 is saved, tried, lost to a real upgrade, and put back offline.

The archive, its loss, the packages, linking, GRUB's menu and the engine are real; what is loaded, and which kernel
runs, is shown. The tests print what saving, trying and putting back took (pytest -s).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from bed import Bed, BootedHost, fake_driver
from bed.kernels import DRIVER, KERNEL, make_module, show_running_kernel
from bed.packages import make_deb, publish
from spine import Page, built_package
from way_back import SET, SETS, Box, box


@pytest.fixture
def ubuntu(bed: Bed) -> Iterator[Box]:
    with box(bed) as scene:
        yield scene


def saved(ubuntu: Box) -> None:
    """Lock the driver; with it everything is saved and tried."""
    status, said, took = ubuntu.holdfast("lock", "write")
    assert status == 0, said
    assert f"now says {DRIVER}" in said
    manifest = ubuntu.manifest
    assert manifest["missing"] == []
    assert manifest["tried"]["proven"], manifest["tried"]
    size = sum(each["size"] for each in (*manifest["packages"], *manifest["modules"]))
    print(
        f"locked, saved and tried in {took:.0f} s: {len(manifest['packages'])} packages, {len(manifest['modules'])} "
        f"modules, {size >> 20} MiB; the trial took {manifest['tried']['took_s']:.0f} s"
    )


def restored(ubuntu: Box) -> tuple[int, str]:
    """Ask for the repair as root, and follow it."""
    status, said, took = ubuntu.holdfast("run", "restore-driver")
    print(f"put back in {took:.0f} s")
    return status, said


def test_what_was_saved_is_put_back_without_a_network_and_proven_after_the_reboot(ubuntu: Box) -> None:
    saved(ubuntu)
    manifest = ubuntu.manifest
    roles = {each["name"]: each["role"] for each in manifest["packages"]}
    assert roles[f"linux-objects-nvidia-550-server-{KERNEL}"] == roles["libnvidia-compute-550-server"] == "driver"
    assert (roles[f"linux-image-{KERNEL}"], roles["binutils"]) == ("kernel", "link")
    assert {each["origin"] for each in manifest["packages"]} <= {"archive", "cache"}
    assert {each["file"] for each in manifest["modules"]} >= {"modules/kernel/nvidia-550srv/nvidia.ko"}
    assert "linked or built again" in manifest["tried"]["words"]
    modes = ubuntu.host.sh(f"stat -c '%a %U:%G' {SETS} {SET} {SET}/debs {SET}/modules").splitlines()
    assert set(modes) == {"750 root:holdfast"}
    # The trial has touched nothing, and left nothing.
    assert ubuntu.host.run("ls", "-A", SETS).stdout.split() == [SET.rpartition("/")[2]]
    assert (ubuntu.night.library(), ubuntu.night.module(KERNEL)) == (DRIVER, DRIVER)
    doctor = ubuntu.host.run("holdfast", "doctor", check=False).stdout
    assert "the way back is there" in doctor, doctor

    # What is there with the right checksum is not fetched again.
    written = ubuntu.host.sh(f"stat -c '%n %y' {SET}/debs/*")
    dry = ubuntu.holdfast("run", "save-driver", "--dry-run")[1]
    assert ("apt-get download" in dry, f"{SET}/manifest.json" in dry) == (False, True), dry
    status, said, took = ubuntu.holdfast("run", "save-driver")
    assert status == 0, said
    print(f"saved and tried again in {took:.0f} s")
    assert ubuntu.host.sh(f"stat -c '%n %y' {SET}/debs/*") == written

    # The night, the reboot into it, and an archive that has nothing of the old driver any more.
    ubuntu.drift()
    ubuntu.boots_into(ubuntu.night.offered.driver, ubuntu.night.offered.kernel)
    status, said = restored(ubuntu)
    assert (status, "WAITS" in said, "systemctl reboot" in said) == (1, True, True), said
    ubuntu.is_back()
    ubuntu.host.sh("systemctl start holdfast-recover; systemctl is-system-running || true")
    assert [record["kind"] for record in ubuntu.scene.ledger()][-1] == "parked"

    ubuntu.boots_into(DRIVER, KERNEL)
    done = ubuntu.host.wait_for(lambda: ubuntu.scene.ledger("outcome")[-1:], 60, "the outcome")
    run = ubuntu.scene.ledger("parked")[-1]["run"]
    ubuntu.host.wait_for(lambda: ubuntu.scene.ledger("outcome")[-1]["run"] == run, 300, "the proof")
    (done,) = ubuntu.scene.ledger("outcome")[-1:]
    assert done["data"]["outcome"] == "succeeded", done
    ubuntu.is_back()
    assert "next: linux" not in ubuntu.host.read("/boot/grub/grub.cfg")


def asked_for(scene: Box, finding: str) -> Page:
    return scene.scene.page(
        lambda page: page.action == "trigger" and page.finding == finding and "approve" in page.message,
        120,
        f"a page about {finding} that asks for approval",
    )


def test_a_person_approves_it_from_the_page_and_nothing_is_offered_that_cannot_work(ubuntu: Box) -> None:
    saved(ubuntu)
    ubuntu.drift()
    page = asked_for(ubuntu, "next-boot-drift")
    assert page.severity in ("warning", "critical")
    (incident,) = [each for each in ubuntu.scene.incidents() if each["finding"] == "next-boot-drift"]
    assert incident["command"] == f"sudo holdfast incident approve {incident['id']}", incident
    assert ubuntu.scene.starts() == len(ubuntu.scene.ledger("outcome")) == 1  # the lock's; nothing was run by itself
    status, said, took = ubuntu.holdfast("incident", "approve", incident["id"])
    print(f"approved and put back in {took:.0f} s")
    assert status == 0, said
    # The driver that is loaded was the right one all the time: no reboot is needed, and tokens prove it.
    assert "SUCCEEDED" in said, said
    ubuntu.is_back()
    for finding in ("next-boot-drift", "driver-mismatch"):
        ubuntu.scene.resolved(finding, 120)

    # Without what it needs the repair is not offered: a person must act, as ever.
    ubuntu.host.sh(f"mv {SET} /root/set")
    since = len(ubuntu.scene.pages())
    ubuntu.host.sh(f"rm /lib/modules/{KERNEL}/kernel/nvidia-550srv/nvidia.ko; depmod {KERNEL}")
    told = ubuntu.scene.page(
        lambda page: page.action == "trigger" and page.finding == "next-boot-no-driver", 120, "a page", since
    )
    assert ("approve" in told.message, "restore-driver" in told.message) == (False, False), told.message
    doctor = ubuntu.host.run("holdfast", "doctor", check=False).stdout
    assert "the way back would not work" in doctor, doctor
    refused = ubuntu.holdfast("run", "restore-driver")
    assert (refused[0], "never saved here" in refused[1]) == (77, True), refused


def test_damaged_files_are_refused_and_a_cut_in_the_middle_is_run_again(ubuntu: Box) -> None:
    saved(ubuntu)
    ubuntu.drift()
    before = ubuntu.installed()
    deb = ubuntu.host.sh(f"ls {SET}/debs/libnvidia-compute-550-server_*").strip()
    ubuntu.host.sh(
        f"cp -a {deb} /root/good; printf x | dd of={deb} bs=1 seek=1000 conv=notrunc; touch -r /root/good {deb}"
    )
    status, said = restored(ubuntu)
    assert (status, "not what was saved (checksum)" in said, "nothing was touched" in said) == (77, True, True), said
    assert ubuntu.installed() == before
    assert KERNEL not in ubuntu.night.boots_next()
    ubuntu.host.sh(f"cp -a /root/good {deb}")

    # The power goes while dpkg is at work.
    asked = ubuntu.host.popen("holdfast", "run", "restore-driver")
    run = ubuntu.wait_for_step("putting back ")
    at_work = "pgrep -f '[d]pkg .*--unpack' || true"
    ubuntu.host.wait_for(lambda: ubuntu.host.sh(at_work), 120, "dpkg at work", every=0.01)
    ubuntu.host.power_cut()
    asked.communicate(timeout=60)
    ubuntu.boots_into(DRIVER, KERNEL)
    ubuntu.host.wait_for(lambda: any(r["run"] == run for r in ubuntu.scene.ledger("outcome")), 120, "its outcome")
    (cut,) = [record for record in ubuntu.scene.ledger("outcome") if record["run"] == run]
    assert cut["data"]["outcome"] == "interrupted", cut
    half = ubuntu.host.run("dpkg", "--audit").stdout
    print(
        f"after the cut dpkg says: {half[:300]!r}; its unfinished notes: {ubuntu.host.sh('ls /var/lib/dpkg/updates')!r}"
    )
    status, said = restored(ubuntu)
    assert status == 0, said
    ubuntu.is_back()


def test_a_full_disk_is_refused_in_words_and_never_blocks_the_lock(ubuntu: Box) -> None:
    ubuntu.host.sh(f"mkdir -p {SETS}; mount -t tmpfs -o size=64m none {SETS}")
    status, said, _ = ubuntu.holdfast("lock", "write")
    assert (status, f"now says {DRIVER}" in said) == (0, True), said
    assert "saving takes" in said, said
    status, said, _ = ubuntu.holdfast("run", "save-driver")
    assert (status, "64 MiB are free" in said) == (2, True), said
    assert ubuntu.host.run("ls", "-A", SETS).stdout == ""

    # Without any source it is said what is missing, and why; the lock stands.
    ubuntu.host.sh(f"umount {SETS}")
    ubuntu.without_a_network()
    status, said, _ = ubuntu.holdfast("run", "save-driver")
    assert (status, "neither /var/cache/apt/archives nor any of apt's sources" in said) == (2, True), said
    missing = {each["name"]: each["why"] for each in ubuntu.manifest["missing"]}
    assert "dpkg-repack" in missing["libnvidia-compute-550-server"]
    assert ubuntu.manifest["tried"] is None
    refused = ubuntu.holdfast("run", "restore-driver")
    assert (refused[0], "lacks" in refused[1]) == (77, True), refused


BUILT_FOR = "6.1.0-40-amd64"
BUILT = "535.261.03"
NVIDIA = {"Source": "nvidia-graphics-drivers"}
BUILD = """\
if [ "$1" = configure ]; then
    mkdir -p /lib/modules/{kernel}/updates/dkms
    cp /var/lib/bed/{version}/nvidia-current.ko /lib/modules/{kernel}/updates/dkms/nvidia-current.ko
    depmod {kernel}
fi
"""
UNBUILD = f"rm -f /lib/modules/{BUILT_FOR}/updates/dkms/nvidia-current.ko\n"


def debian_driver(folder: Path, version: str) -> list[Path]:
    """Debian's driver in name and shape: libraries, and a package that makes the module when it is configured."""
    lib = "/usr/lib/x86_64-linux-gnu"
    debs = [
        make_deb(folder, package, f"{version}-1", architecture="amd64", fields=NVIDIA,
                 files={f"{lib}/{library}.{version}": "library"},
                 scripts={"postinst": f"ln -sfn {library}.{version} {lib}/{library}.1"})
        for package, library in (("libnvidia-ml1", "libnvidia-ml.so"), ("libcuda1", "libcuda.so"))
    ]  # fmt: skip
    fields = {**NVIDIA, "Depends": "dkms, libnvidia-ml1"}
    scripts = {"postinst": BUILD.format(kernel=BUILT_FOR, version=version), "prerm": UNBUILD}
    return [*debs, make_deb(folder, "nvidia-kernel-dkms", f"{version}-1", fields=fields, scripts=scripts)]


def test_a_driver_that_is_built_here_is_saved_with_its_compiler_and_put_back(
    bed: Bed, host: Callable[..., BootedHost], tmp_path: Path
) -> None:
    assert bed
    debian = host("bookworm", writable=True, llama=False)
    tools = [make_deb(tmp_path, name) for name in ("gcc", "make", f"linux-headers-{BUILT_FOR}")]
    tools.append(make_deb(tmp_path, "dkms", fields={"Depends": "gcc | c-compiler, make"}))
    places = {
        f"/boot/vmlinuz-{BUILT_FOR}": "kernel",
        f"/lib/modules/{BUILT_FOR}/modules.order": "",
        f"/lib/modules/{BUILT_FOR}/modules.builtin": "",
    }
    tools.append(make_deb(tmp_path, f"linux-image-{BUILT_FOR}", files=places))
    for version in (BUILT, "550.163.01"):
        make_module(debian, "0.0.0-made", version)
        made = f"/var/lib/bed/{version}"
        debian.sh(f"mkdir -p {made}; mv /lib/modules/0.0.0-made/updates/dkms/*.ko {made}/")
    publish(debian, [*tools, *debian_driver(tmp_path, BUILT)])
    names = [f"linux-image-{BUILT_FOR}", f"linux-headers-{BUILT_FOR}", "nvidia-kernel-dkms", "libcuda1"]
    debian.run("apt-get", "-q", "-y", "install", *names, timeout=120)
    debian.install_deb(built_package())
    show_running_kernel(debian, BUILT_FOR)
    fake_driver(debian, BUILT)
    debian.run("holdfast", "lock", "write", timeout=300)
    place = f"{SETS}/{BUILT}-{BUILT_FOR}"
    manifest = json.loads(debian.read(f"{place}/manifest.json"))
    assert manifest["missing"] == []
    assert manifest["tried"]["proven"], manifest["tried"]
    roles = {each["name"]: each["role"] for each in manifest["packages"]}
    assert (roles["nvidia-kernel-dkms"], roles[f"linux-image-{BUILT_FOR}"]) == ("driver", "kernel")
    assert {roles[name] for name in ("dkms", "gcc", "make", f"linux-headers-{BUILT_FOR}")} == {"support"}
    assert [each["file"] for each in manifest["modules"]] == ["modules/updates/dkms/nvidia-current.ko"]

    # An upgrade whose module was built; the compiler is gone, and so is every source.
    publish(debian, debian_driver(tmp_path / "newer", "550.163.01"))
    debian.sh("mv /etc/apt/apt.conf.d/80holdfast /root/; apt-get -q -y dist-upgrade", timeout=120)
    debian.sh("dpkg --remove --force-depends gcc; rm -rf /etc/apt/sources.list.d/* /var/lib/bed/repository")
    assert debian.run("modinfo", "-k", BUILT_FOR, "-F", "version", "nvidia-current").stdout.strip() == "550.163.01"
    done = debian.run("holdfast", "run", "restore-driver", check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert debian.run("modinfo", "-k", BUILT_FOR, "-F", "version", "nvidia-current").stdout.strip() == BUILT
    versions = debian.run(
        "dpkg-query", "-W", "-f", "${Package} ${Version}\n", "libcuda1", "libnvidia-ml1", "gcc"
    ).stdout
    assert versions.split() == ["gcc", "1.0", "libcuda1", f"{BUILT}-1", "libnvidia-ml1", f"{BUILT}-1"]
