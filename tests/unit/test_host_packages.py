"""Which installed packages are the driver, and what dpkg says of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import CommandFailed, FileTrouble
from agent.host import packages
from agent.host.packages import Package
from tests.support.fake_host import FakeHost

DATA = Path(__file__).resolve().parents[1] / "data" / "driver-packages"


def listed(name: str) -> list[tuple[str, str]]:
    rows = (DATA / name).read_text(encoding="utf-8").splitlines()
    return [(row.split()[0], row.split()[1]) for row in rows]


def test_every_form_of_driver_package_of_five_releases_is_recognised() -> None:
    assert [row for row in listed("driver.txt") if not packages.is_driver(*row)] == []


def test_nothing_that_only_sounds_like_it_is() -> None:
    assert [row for row in listed("other.txt") if packages.is_driver(*row)] == []


@pytest.mark.parametrize(
    "name",
    ["cuda-drivers", "cuda-drivers-580", "nvidia-open", "nvidia-open-580", "nvidia-driver", "nvidia-driver-open",
     "nvidia-dkms", "nvidia-dkms-open", "libnvidia-compute", "libnvidia-cfg1", "libnvidia-gpucomp-580",
     "libnvidia-nscq", "libnvsdm", "nvidia-fabricmanager", "nvidia-imex", "nvidia-modprobe", "nvidia-persistenced",
     "nvidia-kernel-common", "nvidia-firmware", "xserver-xorg-video-nvidia"],
)  # fmt: skip
def test_nvidias_own_archive_calls_the_source_after_the_package(name: str) -> None:
    assert packages.is_driver(name, name)


VERSION = st.from_regex(r"[5-7]\.[0-9]{1,2}\.0-[0-9]{1,4}", fullmatch=True)
WORD = st.from_regex(r"[a-z0-9][a-z0-9.+-]{0,20}", fullmatch=True)
EXCLUDED = st.one_of(
    st.builds("linux-{}-{}-nvidia{}".format,
              st.sampled_from(["image", "headers", "modules", "modules-extra", "tools"]),
              VERSION, st.sampled_from(["", "-64k", "-lowlatency"])),
    st.builds("linux-{}-nvidia{}".format, st.sampled_from(["image", "headers"]),
              st.sampled_from(["", "-6.8", "-hwe-24.04", "-64k", "-lowlatency"])),
    st.builds("linux-nvidia-{}".format, WORD),
    st.builds("linux-modules-nvidia-fs-{}".format, WORD),
    st.builds("nvidia-container-{}".format, WORD),
    st.builds("libnvidia-container{}".format, WORD),
    st.builds("cuda-toolkit-{}".format, WORD),
    st.builds("cuda-{}-13-1".format, st.sampled_from(["nvcc", "cudart", "libraries", "runtime", "nvml-dev"])),
    st.builds("linux-firmware{}".format, st.one_of(st.just(""), st.builds("-{}".format, WORD))),
    st.builds("datacenter-gpu-manager{}".format, WORD),
    st.builds("python3-{}".format, WORD),
    st.just("nvidia-cuda-toolkit"), st.just("firmware-nvidia-graphics"), st.just("nvidia-prime"),
)  # fmt: skip


@given(
    EXCLUDED, st.one_of(st.just(None), st.sampled_from(["linux-nvidia", "linux-meta-nvidia", "nvidia-cuda-toolkit"]))
)
def test_the_families_that_must_not_be_held_never_are(name: str, source: str | None) -> None:
    assert not packages.is_driver(name, source or name)


# --- what dpkg says ------------------------------------------------------------------------------------------

QUERY = ("dpkg-query", ...)
SAID = (
    "ii \tlibnvidia-compute-550-server\tamd64\tnvidia-graphics-drivers-550-server\t550.54.15-0ubuntu2\tlibcompute\n"
    "hi \tnvidia-utils-550-server\tamd64\tnvidia-graphics-drivers-550-server\t550.54.15-0ubuntu2\tNVIDIA Server\n"
    "iF \tnvidia-dkms-550-server\tamd64\tnvidia-graphics-drivers-550-server\t550.54.15-0ubuntu2\tNVIDIA DKMS\n"
    "rc \tnvidia-utils-535\tamd64\tnvidia-graphics-drivers-535\t535.1.1-0ubuntu1\tremoved, configuration left\n"
    "un \tnvidia-driver\t\t\t\t\n"
    "ii \tnvidia-driver-550-server\tamd64\tnvidia-graphics-drivers-570-server\t570.1-0\tTransitional package for 570\n"
    "ii \tlinux-modules-nvidia-550-server-6.8.0-31-generic\tamd64\tlinux-restricted-modules\t6.8.0-31.31\tmodules\n"
    "ii \tbash\tamd64\tbash\t5.2.21-2\tGNU Bourne Again SHell\n"
)


def test_what_is_installed_held_and_half_done_is_told_apart() -> None:
    host = FakeHost.build(commands={QUERY: SAID})
    found = {package.name: package for package in packages.installed(host)}
    assert "nvidia-utils-535" not in found
    assert "nvidia-driver" not in found
    assert found["nvidia-utils-550-server"].held
    assert not found["libnvidia-compute-550-server"].held
    assert found["nvidia-dkms-550-server"].half_done
    assert not found["nvidia-dkms-550-server"].installed
    assert found["nvidia-driver-550-server"].transitional
    driver = [package.name for package in packages.driver_packages(tuple(found.values()))]
    assert "bash" not in driver
    assert len(driver) == 5


def test_only_parts_that_move_together_are_compared() -> None:
    host = FakeHost.build(commands={QUERY: SAID})
    together = {package.name for package in packages.installed(host) if packages.shares_the_version(package)}
    assert together == {"libnvidia-compute-550-server", "nvidia-utils-550-server", "nvidia-dkms-550-server"}


@pytest.mark.parametrize(
    ("version", "driver"),
    [
        ("550.54.15-0ubuntu2", "550.54.15"),
        ("535.261.03-1~deb12u1", "535.261.03"),
        ("595.84-0ubuntu0.24.04.1", "595.84"),
        ("580.178.04-1", "580.178.04"),
        ("1:580.178.04-1ubuntu1", "580.178.04"),
        ("550.120", "550.120"),
        ("6.8.0-31.31+1", None),
        ("20220217+3~deb12u1", None),
        ("5501.2.3", None),
        ("550.54.15.9-1", None),
    ],
)
def test_the_drivers_version_is_read_from_the_packages(version: str, driver: str | None) -> None:
    assert Package("libnvidia-compute", "amd64", "x", version, "i", "i").driver_version == driver


@pytest.mark.parametrize("answer", [2, CommandFailed("dpkg-query: not found", code="command-not-found")])
def test_a_dpkg_that_does_not_answer_is_not_an_empty_host(answer: Any) -> None:
    with pytest.raises(CommandFailed):
        packages.installed(FakeHost.build(commands={QUERY: answer}))


# --- who changes packages ------------------------------------------------------------------------------------


def locked_by(line: str, **files: Any) -> FakeHost:
    host = FakeHost.build({packages.LOCKS[0]: "", packages.LOCKS[1]: "", "/proc/77/comm": "apt-get\n", **files})
    inode = host.files.stat(packages.LOCKS[0]).inode
    host.files.entries["/proc/locks"] = line.format(inode=inode)
    # A new entry moves the inode numbers of the fake.
    inode = host.files.stat(packages.LOCKS[0]).inode
    host.files.entries["/proc/locks"] = line.format(inode=inode)
    return host


def test_whoever_holds_dpkgs_lock_is_named() -> None:
    found = packages.transaction(locked_by("1: POSIX  ADVISORY  WRITE 77 fe:00:{inode} 0 EOF\n"))
    assert found is not None
    assert (found.pid, found.command) == (77, "apt-get")
    assert "apt-get (pid 77)" in found.words


@pytest.mark.parametrize(
    "line",
    ["", "1: POSIX  ADVISORY  WRITE 77 fe:00:9{inode} 0 EOF\n", "1: -> POSIX  ADVISORY  WRITE 77 fe:00:{inode} 0 EOF\n",
     "1: FLOCK  ADVISORY  WRITE 77 fe:00:{inode} 0 EOF\n", "1: POSIX  ADVISORY  WRITE 77 00:1a:{inode} 0 EOF\n"],
)  # fmt: skip
def test_other_locks_are_nobodys_change(line: str) -> None:
    mounted = {"/proc/1/mountinfo": "22 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n"}
    assert packages.transaction(locked_by(line, **mounted)) is None


def test_an_interrupted_dpkg_is_told() -> None:
    host = FakeHost.build({f"{packages.UPDATES}/0001": "Package: x\n", "/proc/locks": ""})
    found = packages.transaction(host)
    assert found is not None
    assert "sudo dpkg --configure -a" in found.words


def test_a_host_without_dpkg_changes_nothing_and_an_unreadable_list_is_no_answer() -> None:
    assert packages.transaction(FakeHost.build()) is None
    with pytest.raises(FileTrouble):
        packages.transaction(FakeHost.build({packages.LOCKS[0]: "", "/proc/locks": FileTrouble("no", kind="denied")}))


@pytest.mark.parametrize(
    ("summary", "section", "empty"),
    [
        # libnvidia-compute-550-server 550.163.01 of Ubuntu 24.04, which leads to 570-server and holds nothing
        ("NVIDIA libcompute package", "non-free/oldlibs", True),
        ("NVIDIA libcompute package", "non-free/libs", False),
        ("Extra drivers for nvidia-535 for the nvidia flavour (dummy transitional package)", "restricted/kernel", True),
        ("NVIDIA libcompute package", "", False),
    ],
)
def test_a_package_that_holds_nothing_is_known_by_its_section_or_its_words(
    summary: str, section: str, empty: bool
) -> None:
    row = f"ii \tlibnvidia-compute-550-server\tamd64\tnvidia-graphics-drivers\t550.163.01-0u1\t{summary}\t{section}\n"
    (found,) = packages.installed(FakeHost.build(commands={"dpkg-query ...": row}))
    assert found.transitional == empty
    assert packages.shares_the_version(found) != empty
