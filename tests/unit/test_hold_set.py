"""Which installed packages are held, and why: over the real lists of five releases, and over what can be invented."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.host import drop_ins, packages
from agent.host.hold_set import HoldSet, hold_set, prebuilt
from agent.host.packages import Package

DATA = Path(__file__).resolve().parents[1] / "data" / "driver-packages"
KERNEL = "6.8.0-31-generic"


def package(name: str, source: str = "", *, architecture: str = "amd64", **more: object) -> Package:
    return Package(name, architecture, source or name, "1.0", "i", "i", **more)  # type: ignore[arg-type]


UBUNTU = (
    package("libnvidia-compute-550-server", "nvidia-graphics-drivers-550-server"),
    package("libnvidia-compute-550-server", "nvidia-graphics-drivers-550-server", architecture="i386"),
    package("nvidia-utils-550-server", "nvidia-graphics-drivers-550-server"),
    package("nvidia-driver-535-server", "nvidia-graphics-drivers-550-server", transitional=True),
    package("nvidia-fabricmanager-550", "fabric-manager-550"),
    package(f"linux-modules-nvidia-550-server-{KERNEL}", "linux-restricted-modules"),
    package("linux-modules-nvidia-550-server-6.8.0-30-generic", "linux-restricted-modules"),
    package(f"linux-objects-nvidia-550-server-{KERNEL}", "linux-restricted-modules"),
    package(f"linux-signatures-nvidia-{KERNEL}", "linux-restricted-signatures"),
    package("linux-modules-nvidia-550-server-generic", "linux-restricted-modules"),
    package(f"linux-image-{KERNEL}", "linux-signed"),
    package(f"linux-modules-{KERNEL}", "linux"),
    package(f"linux-modules-extra-{KERNEL}", "linux"),
    package(f"linux-headers-{KERNEL}", "linux"),
    package("linux-headers-6.8.0-31", "linux", architecture="all"),
    package("linux-image-6.8.0-30-generic", "linux-signed"),
    package("linux-generic", "linux-meta"),
    package("linux-image-generic", "linux-meta"),
    package("linux-headers-generic", "linux-meta"),
    package("linux-image-virtual", "linux-meta"),
    package("linux-image-generic-hwe-24.04", "linux-meta-hwe-6.11"),
)
ALONE = (
    package("linux-tools-generic", "linux-meta"),
    package("linux-cloud-tools-generic", "linux-meta"),
    package(f"linux-tools-{KERNEL}", "linux"),
    package("linux-libc-dev", "linux"),
    package("linux-firmware"),
    package("linux-crashdump", "linux-meta"),
    package("nvidia-container-toolkit"),
    package("libnvidia-container1", "libnvidia-container"),
    package("cuda-toolkit-13-1", "cuda-toolkit-13-1"),
    package("nvidia-cuda-toolkit"),
    package("linux-image-nvidia", "linux-meta-nvidia"),
    package("linux-nvidia-6.8", "linux-meta-nvidia-6.8"),
    package("linux-image-6.8.0-1010-nvidia", "linux-signed-nvidia"),
    package("nvidia-settings"),
    package("nvidia-prime"),
    package("bash"),
)


def names(found: HoldSet) -> set[str]:
    return {chosen.package.name for chosen in found.packages}


def test_where_modules_are_prebuilt_the_driver_its_kernel_and_what_brings_the_next_one_are_held() -> None:
    found = hold_set((*UBUNTU, *ALONE), KERNEL)
    assert found.kernel == KERNEL
    assert names(found) == {each.name for each in UBUNTU} - {"linux-image-6.8.0-30-generic"}
    assert {"libnvidia-compute-550-server:amd64", "libnvidia-compute-550-server:i386"} <= set(found.keys)
    assert "linux-headers-6.8.0-31:all" in found.keys


def test_everything_has_its_reason_in_words() -> None:
    found = hold_set((*UBUNTU, *ALONE), KERNEL)
    reasons = {chosen.package.name: chosen.reason for chosen in found.packages}
    assert reasons["nvidia-utils-550-server"] == "a part of the NVIDIA driver"
    assert "its next version would pull in another driver" in reasons["nvidia-driver-535-server"]
    assert reasons[f"linux-modules-nvidia-550-server-{KERNEL}"] == f"the driver's prebuilt modules for {KERNEL}"
    assert "another kernel" in reasons["linux-modules-nvidia-550-server-6.8.0-30-generic"]
    assert "modules for a new kernel" in reasons["linux-modules-nvidia-550-server-generic"]
    assert "would bring a new kernel" in reasons["linux-generic"]
    assert f"a part of {KERNEL}" in reasons[f"linux-image-{KERNEL}"]
    assert "headers" in reasons["linux-headers-6.8.0-31"]
    left = {chosen.package.name: chosen.reason for chosen in found.left}
    assert left["nvidia-container-toolkit"] == "the container toolkit works with every driver version"
    assert "CUDA" in left["cuda-toolkit-13-1"]
    assert "NVIDIA's own kernel flavour" in left["linux-image-nvidia"]
    assert "NVIDIA's own kernel flavour" in left["linux-image-6.8.0-1010-nvidia"]
    assert left["nvidia-settings"] == "not a part of the driver"
    assert left["linux-image-6.8.0-30-generic"] == f"not a part of {KERNEL}, and brings no new kernel"
    assert "bash" not in left


def test_where_modules_are_built_on_the_host_kernels_stay_free() -> None:
    dkms = (
        package("nvidia-kernel-dkms", "nvidia-graphics-drivers"),
        package("libcuda1", "nvidia-graphics-drivers"),
        package("linux-image-amd64", "linux-signed-amd64"),
        package("linux-headers-amd64", "linux-signed-amd64"),
        package("linux-image-6.1.0-40-amd64", "linux-signed-amd64"),
        package("linux-generic", "linux-meta"),
    )
    found = hold_set(dkms, "6.1.0-40-amd64")
    assert (found.kernel, names(found)) == ("", {"nvidia-kernel-dkms", "libcuda1"})
    left = {chosen.package.name: chosen.reason for chosen in found.left}
    assert left["linux-image-amd64"] == "no prebuilt modules are tied to it: new kernels are not held"


@pytest.mark.parametrize(
    ("dkms", "image", "headers"),
    [
        ("nvidia-kernel-dkms", "linux-image-amd64", "linux-headers-amd64"),
        ("nvidia-open-kernel-dkms", "linux-image-cloud-amd64", "linux-headers-cloud-amd64"),
        ("nvidia-tesla-535-kernel-dkms", "linux-image-amd64", "linux-headers-amd64"),
        ("nvidia-dkms-580-server-open", "linux-image-virtual", "linux-headers-virtual"),
        ("nvidia-dkms", "linux-image-generic-hwe-24.04", "linux-headers-generic-hwe-24.04"),
    ],
)
def test_kernels_that_would_come_without_their_headers_are_held_where_dkms_builds(
    dkms: str, image: str, headers: str
) -> None:
    driver = (
        package(dkms),
        package("linux-image-6.1.0-40-amd64", "linux-signed-amd64"),
        package("linux-image-rt-amd64"),
    )
    found = hold_set((*driver, package(image)), "6.1.0-40-amd64")
    reasons = {chosen.package.name: chosen.reason for chosen in found.packages}
    assert set(reasons) == {dkms, image, "linux-image-rt-amd64"}
    assert reasons[image].endswith(f"without its headers, which DKMS needs to build the driver: install {headers}")
    both = (*driver[:2], package(image), package(headers))
    assert names(hold_set(both, "6.1.0-40-amd64")) == {dkms}
    assert hold_set((package(image),), "6.1.0-40-amd64").packages == ()
    others = [package(f"linux-image-{name}") for name in ("amd64-dbg", "extra-virtual", "unsigned-6.8.0-31-generic")]
    assert names(hold_set((package(dkms), *others), "")) == {dkms}
    assert names(hold_set((package(dkms), package("linux-image-nvidia", "linux-meta-nvidia")), "")) == {dkms}


def test_prebuilt_modules_of_another_kernel_than_the_one_that_runs_hold_no_kernel() -> None:
    found = hold_set(UBUNTU, "6.8.0-40-generic")
    assert found.kernel == ""
    assert not any(name.startswith("linux-image") or name == "linux-generic" for name in names(found))
    assert f"linux-modules-nvidia-550-server-{KERNEL}" in names(found)
    assert not prebuilt(UBUNTU, "")


def test_a_longer_flavour_is_another_kernel() -> None:
    found = hold_set((*UBUNTU, package(f"linux-image-{KERNEL}-64k", "linux-signed")), KERNEL)
    assert f"linux-image-{KERNEL}-64k" not in names(found)
    assert not prebuilt([package("linux-modules-nvidia-550-6.8.0-31-generic-64k", "linux-restricted-modules")], KERNEL)


def test_on_nvidias_kernel_flavour_the_driver_is_held_and_the_kernel_never() -> None:
    kernel = "6.8.0-1010-nvidia"
    found = hold_set(
        (
            package(f"linux-modules-nvidia-550-server-{kernel}", "linux-restricted-modules-nvidia"),
            package(f"linux-image-{kernel}", "linux-signed-nvidia"),
            package(f"linux-modules-{kernel}", "linux-nvidia"),
            package("linux-image-nvidia", "linux-meta-nvidia"),
            package("linux-headers-nvidia-hwe-24.04", "linux-meta-nvidia"),
        ),
        kernel,
    )
    assert names(found) == {f"linux-modules-nvidia-550-server-{kernel}"}


def test_the_names_from_590_on_and_nvidias_own_archive_are_held() -> None:
    found = hold_set([package(name) for name in ("nvidia-driver", "libnvidia-compute", "cuda-drivers")], "")
    assert names(found) == {"nvidia-driver", "libnvidia-compute", "cuda-drivers"}


def test_a_host_without_the_driver_holds_and_mentions_nothing() -> None:
    found = hold_set([package("linux-generic", "linux-meta"), package("bash")], KERNEL)
    assert (found.packages, found.left) == ((), ())


# --- the real lists, and what can be invented ----------------------------------------------------------------------

PREBUILT = package(f"linux-modules-nvidia-550-server-{KERNEL}", "linux-restricted-modules")


def listed(name: str) -> list[Package]:
    rows = (DATA / name).read_text(encoding="utf-8").splitlines()
    return [package(row.split()[0], row.split()[1]) for row in rows]


def test_every_form_of_driver_package_of_five_releases_is_held() -> None:
    driver = listed("driver.txt")
    assert len(hold_set(driver, "").packages) == len(driver)


def test_of_what_only_sounds_like_it_nothing_but_metas_of_a_prebuilt_kernel_is_held() -> None:
    other = listed("other.txt")
    assert hold_set(other, KERNEL).packages == ()
    held = {each.package for each in hold_set((*other, PREBUILT), KERNEL).packages} - {PREBUILT}
    assert held
    for each in held:
        assert each.source.startswith("linux-meta"), each
        assert "nvidia" not in each.name + each.source, each
        assert not any(word in each.name for word in ("tools", "firmware", "libc", "cuda", "container")), each


def metas() -> list[tuple[Package, str]]:
    """Every form of kernel metapackage of five releases, with what it brings."""
    rows = [row.split() for row in (DATA / "metas.txt").read_text(encoding="utf-8").splitlines()]
    return [(package(name, source), brings) for name, source, _, brings in rows]


def test_a_kernels_metapackage_is_held_beside_prebuilt_modules_when_it_leads_to_a_kernel_and_only_then() -> None:
    held = {each.package.key for each in hold_set((*(each for each, _ in metas()), PREBUILT), KERNEL).packages}
    for each, brings in metas():
        flavour = "nvidia" in each.name or "nvidia" in each.source
        ubuntu = each.source.startswith("linux-meta")
        assert (each.key in held) == (ubuntu and brings != "-" and not flavour), each


def test_where_dkms_builds_only_metapackages_of_images_are_held_and_none_that_has_its_headers() -> None:
    dkms = package("nvidia-kernel-dkms", "nvidia-graphics-drivers")
    for each, brings in metas():
        headers = package(each.name.replace("linux-image-", "linux-headers-"))
        if each.name in names(hold_set((dkms, each), "")):
            assert brings == "image", each
            assert names(hold_set((dkms, each, headers), "")) == {dkms.name}


EXCLUDED = st.one_of(
    st.builds("linux-{}-6.8.0-{}-nvidia{}".format,
              st.sampled_from(["image", "headers", "modules", "modules-extra", "tools", "image-unsigned"]),
              st.integers(1, 9999), st.sampled_from(["", "-64k", "-lowlatency"])),
    st.builds("linux-{}-nvidia{}".format, st.sampled_from(["image", "headers", "tools"]),
              st.sampled_from(["", "-6.8", "-hwe-24.04", "-64k", "-lowlatency"])),
    st.builds("linux-nvidia{}".format, st.sampled_from(["", "-6.8", "-hwe-24.04", "-lowlatency"])),
    st.builds("nvidia-container-{}".format, st.sampled_from(["toolkit", "toolkit-base", "runtime"])),
    st.builds("libnvidia-container{}".format, st.sampled_from(["1", "-tools", "-dev"])),
    st.builds("cuda-{}-{}-{}".format, st.sampled_from(["toolkit", "nvcc", "runtime", "libraries"]),
              st.integers(11, 14), st.integers(0, 9)),
    st.builds("linux-{}tools-{}".format, st.sampled_from(["", "cloud-"]), st.sampled_from(["generic", KERNEL])),
    st.sampled_from(["nvidia-cuda-toolkit", "linux-firmware", "linux-libc-dev", "nvidia-prime"]),
)  # fmt: skip
SOURCES = st.sampled_from(
    ["", "linux", "linux-meta", "linux-meta-hwe-6.11", "linux-signed", "linux-nvidia", "linux-meta-nvidia-6.8"]
)


@given(EXCLUDED, SOURCES, st.sampled_from(["", KERNEL, "6.8.0-1010-nvidia"]))
def test_what_must_never_be_held_never_is(name: str, source: str, kernel: str) -> None:
    prebuilt_modules = package(f"linux-modules-nvidia-550-server-{kernel}", "linux-restricted-modules")
    built_here = package("nvidia-dkms-550-server", "nvidia-graphics-drivers-550-server")
    for beside in (prebuilt_modules, built_here):
        assert name not in names(hold_set([package(name, source), beside], kernel))


@given(st.lists(st.sampled_from([*UBUNTU, *ALONE]), unique=True), st.sampled_from(["", KERNEL, "6.8.0-40-generic"]))
def test_only_what_is_installed_is_held_each_once_and_the_driver_always(installed: list[Package], kernel: str) -> None:
    found = hold_set(installed, kernel)
    assert set(found.keys) <= {each.key for each in installed}
    assert len(set(found.keys)) == len(found.keys)
    assert {each.key for each in packages.driver_packages(installed)} <= set(found.keys)
    assert not {each.package for each in found.packages} & {each.package for each in found.left}


# --- the generated files ----------------------------------------------------------------------------------------


def test_unattended_upgrades_is_told_exact_names_anchored_and_escaped() -> None:
    text = drop_ins.unattended(["linux-headers-6.8.0-31:all", "libstdc++6:amd64", "libnvidia-x:i386"], "amd64")
    assert '    "linux-headers-6\\.8\\.0-31$";\n' in text
    assert '    "libstdc\\+\\+6$";\n' in text
    assert '    "libnvidia-x:i386$";\n' in text
    assert text.splitlines()[0].startswith("// Generated by holdfast hold")
    assert text.count("Unattended-Upgrade::Package-Blacklist {") == 1


def test_needrestart_is_told_the_engines_and_our_own_units() -> None:
    text = drop_ins.needrestart(["vllm@gpu0.service", "chat.service"])
    assert "$nrconf{override_rc}{qr(^vllm\\@gpu0\\.service$)} = 0;" in text
    assert "$nrconf{override_rc}{qr(^chat\\.service$)} = 0;" in text
    assert "qr(^holdfast[-.@])" in text


@pytest.mark.parametrize("unit", ["a$b.service", "dev-disk\\x2d1.service"])
def test_a_units_name_cannot_become_perl(unit: str) -> None:
    quoted = drop_ins.needrestart([unit]).splitlines()[2]
    assert (
        quoted
        == "$nrconf{override_rc}{qr(^" + unit.translate({36: "\\$", 92: "\\\\", 45: "\\-", 46: "\\."}) + "$)} = 0;"
    )
