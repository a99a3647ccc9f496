"""Debian's real driver packages, whose module DKMS builds: what is held, what is refused, what is told of a next boot.

A new kernel comes without its headers; then DKMS skips it and says so to nobody. The new kernel and its headers are
Debian's real ones. No build is waited for: a module made here stands where DKMS would put it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from bed import Bed, BootedHost, fake_devices, fake_driver, make_deb
from bed.host import booted
from bed.kernels import (
    NEXT_KERNEL_DEBS,
    debian_with_driver,
    make_kernel,
    make_module,
    set_grub_default,
    show_running_kernel,
    without_a_disk,
)
from saturday import Saturday

OLDER = {"bookworm": "6.1.0-10-cloud-amd64", "trixie": "6.12.30+deb13-cloud-amd64"}
"""A kernel that is older than whatever Debian offers."""
PARTS = {"nvidia-kernel-dkms", "nvidia-kernel-support", "nvidia-alternative", "nvidia-smi", "libcuda1", "libnvidia-ml1",
         "libnvidia-ptxjitcompiler1", "firmware-nvidia-gsp"}  # fmt: skip
META, HEADERS = "linux-image-cloud-amd64", "linux-headers-cloud-amd64"
FREE = {"dkms", "glx-alternative-nvidia", "nvidia-support", "nvidia-installer-cleanup", "linux-base"}


@pytest.fixture(params=sorted(OLDER))
def box(bed: Bed, request: pytest.FixtureRequest) -> Iterator[Saturday]:
    """A host whose driver was built for the kernel that runs."""
    assert bed
    suite = request.param
    with booted(suite, debian_with_driver(suite), name="host", writable=True, binds={}) as host:
        driver, running = version(host), OLDER[suite]
        without_a_disk(host)
        make_kernel(host, running)
        make_module(host, running, driver)
        host.write(f"/boot/initrd.img-{running}", "initrd, written after the module\n")
        set_grub_default(host, "0")
        show_running_kernel(host, running)
        fake_driver(host, driver)
        fake_devices(host)
        host.run("apt-get", "-q", "update")
        yield Saturday(host, None)


def version(host: BootedHost) -> str:
    """The driver's version as its library's package has it."""
    return host.sh("dpkg-query -W -f '${Version}' libnvidia-ml1").partition("-")[0]


def kernel_that_comes(host: BootedHost) -> str:
    """The release of the kernel that lies ready."""
    image = host.sh(f"basename {NEXT_KERNEL_DEBS}/linux-image-[0-9]*.deb").strip()
    return image.removeprefix("linux-image-").partition("_")[0]


def words(box: Saturday, *argv: str) -> str:
    """What a verb of ours prints, as one line."""
    return " ".join(box.host.run("holdfast", *argv, timeout=120).stdout.split())


def test_a_kernel_without_headers_is_refused_and_one_forced_in_is_told_until_dkms_has_built_for_it(
    box: Saturday, tmp_path: Path
) -> None:
    watched = box.install_holdfast()
    host, driver, running = box.host, version(box.host), OLDER[box.host.suite]
    new = kernel_that_comes(host)
    words(box, "lock", "write")
    code, said = box.check("driver.next_boot")
    assert (code, f"kernel {running}" in said, f"loads {driver}, as locked" in said) == (0, True, True), said

    # apt alone would have installed it.
    code, said = box.upgrade("install", META, check=False)
    assert code == 100
    assert f"holdfast: refused, and nothing was changed: driver {driver} is locked" in said
    assert f"kernel {new}, which would boot next, would have no NVIDIA module: DKMS needs linux-headers-{new}" in said
    assert not host.exists(f"/boot/vmlinuz-{new}")

    # With its headers it may come: asked in a real run of apt whose dpkg does nothing, because a build takes minutes.
    with_headers = ("install", META, HEADERS)
    code, said = box.upgrade("-o", "Dir::Bin::dpkg=/bin/true", *with_headers, check=False)
    assert "refused" not in said
    assert f"holdfast: note: DKMS will build the driver for kernel {new}" in said

    # dpkg asks nobody, and DKMS is silent about what it skipped: no error, and no flag.
    forced = host.sh(f"dpkg -i {NEXT_KERNEL_DEBS}/linux-image-*.deb 2>&1", timeout=300)
    assert "skipped since the kernel headers for this kernel do not seem to be installed" in forced
    forced_at = time.monotonic()
    page = watched.triggered("next-boot-no-driver", 60)
    print(f"{host.suite}: {running} -> {new} with {driver}; told {time.monotonic() - forced_at:.1f} s after dpkg")
    assert page.severity == "critical"
    assert f"kernel {new} has no nvidia module" in " ".join(page.message.split())
    assert box.boots_next() == new

    # The headers come, and what DKMS would have left behind while dpkg was at it.
    make_module(host, new, driver)
    host.install_deb(make_deb(tmp_path, f"linux-headers-{new}", "1.0", architecture="amd64"))
    watched.resolved("next-boot-no-driver", 60)
    shown = words(box, "lock", "show")
    assert f"/lib/modules/{new}/updates/dkms/nvidia-current.ko" in shown
    assert f"all agree on {driver}" in shown
    assert host.boots == 1


def test_the_driver_is_held_and_kernels_only_where_their_headers_do_not_come_with_them(
    box: Saturday, tmp_path: Path
) -> None:
    watched = box.install_holdfast()
    host = box.host
    words(box, "lock", "write")
    # What an installation brings, here without the kernel that it depends on; the archive has a newer one.
    older = make_deb(tmp_path, META, "6.1.10-1", architecture="amd64", fields={"Source": "linux-signed-amd64"})
    host.install_deb(older)
    words(box, "hold")
    code, said = box.check("driver.holds")
    assert (code, "packages are held, as root asked" in said) == (0, True), said
    assert box.held() >= PARTS | {META}
    assert not box.held() & FREE
    why = f"would bring a new kernel without its headers, which DKMS needs to build the driver: install {HEADERS}"
    assert why in words(box, "hold", "--explain")
    before = box.versions()
    assert "have been kept back" in box.upgrade("dist-upgrade")[1]
    assert box.versions() == before

    # As soon as headers come with it, kernels are free.
    host.install_deb(make_deb(tmp_path, HEADERS, "6.1.10-1", architecture="amd64", fields={"Source": "linux"}))
    words(box, "unhold")
    words(box, "hold")
    assert box.held() >= PARTS
    assert META not in box.held()
    assert "no prebuilt modules are tied to it: new kernels are not held" in words(box, "hold", "--explain")
    assert watched.pages() == []
