"""Which installed packages to hold, and why: a pure function over what dpkg says is installed.

Always the driver's own packages. Where its modules come prebuilt, one per kernel, also the kernel whose modules they
are and whatever would pull in the next one: a new kernel depends on no module, so it would boot without a driver.
Where modules are built on the host (DKMS) kernels stay free, as long as their headers come with them: DKMS skips a
kernel without headers and says so to nobody, so a metapackage that brings kernels alone is held there. Chosen by
source and name from what is installed, never by a pattern that apt expands: such a pattern also catches NVIDIA's kernel
flavour and the container and CUDA toolkits.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from agent.host import packages
from agent.host.packages import Package

_MODULE = re.compile(r"linux-(?:modules|objects|signatures)-nvidia-.*")
_SOUNDS = re.compile(r".*(?:nvidia|cuda).*")
_KERNEL = re.compile(r"linux-(?:image|headers|modules|modules-extra)-.+|linux-(?:.+-)?headers-.+")
_NO_KERNEL = re.compile(r"linux-(?:cloud-)?tools(?:-.*)?|linux-(?:libc-dev|source|doc|crashdump|buildinfo)(?:-.*)?")
"""Built from a kernel's source or among its metas, but no kernel comes with them."""
_DKMS = re.compile(r"nvidia-(?:.+-)?dkms(?:-.*)?")
"""The driver's source for DKMS: nvidia-dkms-580-server-open, nvidia-kernel-dkms, nvidia-tesla-535-kernel-dkms."""
_IMAGE_META = re.compile(r"linux-image-(?!\d|unsigned-|extra-|.*-(?:dbg|template)$)(.+)")
"""What brings each newer kernel; the metapackage that brings the headers is called after it."""
_VERSION = re.compile(r"\d+\.\d+\.\d+-\d+")
"""A kernel's version without its flavour, as Ubuntu counts: 6.8.0-31 of 6.8.0-31-generic."""
_NVIDIA_KERNEL = re.compile(r"linux-(?:.+-)?nvidia(?:-.*)?")
_BARE = "would bring a new kernel without its headers, which DKMS needs to build the driver: install {}"
_ALONE = (
    (re.compile(r"(?:lib)?nvidia-container.*"), "the container toolkit works with every driver version"),
    (re.compile(r"nvidia-cuda-.*|cuda-.*|libcuda-.*"), "CUDA's compilers and libraries follow no driver version"),
    (re.compile(r".*firmware.*"), "firmware of other drivers"),
    (_NVIDIA_KERNEL, "NVIDIA's own kernel flavour is never held"),
    (_SOUNDS, "not a part of the driver"),
)


@dataclass(frozen=True, slots=True)
class Chosen:
    """One installed package, and why it is held or left alone."""

    package: Package
    reason: str


@dataclass(frozen=True, slots=True)
class HoldSet:
    """What to hold. left: what sounds like the driver or like a kernel and is left alone.

    kernel: the release whose prebuilt modules are held with it, "" where modules are not prebuilt.
    """

    packages: tuple[Chosen, ...]
    left: tuple[Chosen, ...]
    kernel: str

    @property
    def keys(self) -> tuple[str, ...]:
        """The packages to hold as NAME:ARCHITECTURE."""
        return tuple(chosen.package.key for chosen in self.packages)


def prebuilt(installed: Iterable[Package], kernel: str) -> bool:
    """Whether the driver's modules for this kernel release come from packages made for it."""
    return bool(kernel) and any(
        _MODULE.fullmatch(package.name) is not None
        and package.name.endswith(f"-{kernel}")
        and packages.is_driver(package.name, package.source)
        for package in installed
    )


def hold_set(installed: Sequence[Package], kernel: str) -> HoldSet:
    """What to hold of the installed packages. kernel: the release that serves with the locked driver, "" for none."""
    locked = kernel if prebuilt(installed, kernel) else ""
    bare = {} if locked else _without_headers(installed)
    any_driver = bool(packages.driver_packages(installed))
    chosen: list[Chosen] = []
    left: list[Chosen] = []
    for package in sorted(installed, key=lambda each: each.key):
        reason = _reason(package, locked) or (_BARE.format(bare[package.name]) if package.name in bare else "")
        if reason:
            chosen.append(Chosen(package, reason))
            continue
        why_not = _left_alone(package, locked) if any_driver else ""
        if why_not:
            left.append(Chosen(package, why_not))
    return HoldSet(tuple(chosen), tuple(left), locked)


def _reason(package: Package, locked: str) -> str:
    """Why this package is held, "" when it is not."""
    if packages.is_driver(package.name, package.source):
        return _part(package, locked)
    # Whatever is never ours was turned away above only as a driver; as a kernel it is turned away here.
    never = packages.is_never_ours(package.name) or _NVIDIA_KERNEL.fullmatch(package.name) is not None
    if not locked or never or _is_nvidias_kernel(package):
        return ""
    if _is_meta(package):
        return f"would bring a new kernel, and the prebuilt modules here are for {locked} only"
    if _of_kernel(package.name, locked):
        if "headers" in package.name:
            return f"headers of {locked}: other modules of this kernel are built from them"
        return f"a part of {locked}, the kernel that the prebuilt modules are for"
    return ""


def _without_headers(installed: Sequence[Package]) -> dict[str, str]:
    """The metapackages that would bring a kernel for which DKMS cannot build; to each the one that is missing."""
    there = {package.name for package in installed}
    if not any(
        _DKMS.fullmatch(package.name) and packages.is_driver(package.name, package.source) for package in installed
    ):
        return {}
    found = {}
    for package in installed:
        matched = _IMAGE_META.fullmatch(package.name)
        headers = f"linux-headers-{matched[1]}" if matched else ""
        never = _NVIDIA_KERNEL.fullmatch(package.name) is not None or _is_nvidias_kernel(package)
        if headers and headers not in there and not never:
            found[package.name] = headers
    return found


def _part(package: Package, locked: str) -> str:
    if package.transitional:
        return "a part of the driver by name, empty now: its next version would pull in another driver"
    if _MODULE.fullmatch(package.name) is None:
        return "a part of the NVIDIA driver"
    if locked and package.name.endswith(f"-{locked}"):
        return f"the driver's prebuilt modules for {locked}"
    if re.search(r"-\d+\.\d+\.\d+-\d+-", package.name):
        return "the driver's prebuilt modules for another kernel: a new build of them would be another driver"
    return "would bring the driver's modules for a new kernel"


def _is_meta(package: Package) -> bool:
    """Whether it is an empty package of Ubuntu's kernel metas, whose next version depends on the next kernel."""
    return package.source.startswith("linux-meta") and _NO_KERNEL.fullmatch(package.name) is None


def _of_kernel(name: str, release: str) -> bool:
    """Whether it is the image, the modules or the headers of exactly this kernel; headers come in two halves.

    Headers are held with the image, although the driver needs none of them where its modules are prebuilt: a new build
    of the same release would move them alone, and then the modules of others (OFED, GDS) no longer fit this kernel.
    """
    matched = _VERSION.match(release)
    version = re.escape(matched[0] if matched else release)
    exact = rf"linux-(?:image|image-unsigned|modules|modules-extra|headers)-{re.escape(release)}"
    return re.fullmatch(rf"{exact}|linux-(?:.+-)?headers-{version}", name) is not None


def _is_nvidias_kernel(package: Package) -> bool:
    return re.fullmatch(r"linux-(?:meta-|signed-|main-)?(?:[a-z]+-)*nvidia(?:-.*)?", package.source) is not None


def _left_alone(package: Package, locked: str) -> str:
    """Why a package that sounds like the driver or like a kernel is left alone, "" for all others."""
    kernel = _is_meta(package) or _KERNEL.fullmatch(package.name) is not None
    if _is_nvidias_kernel(package) and (kernel or _NVIDIA_KERNEL.fullmatch(package.name)):
        return "NVIDIA's own kernel flavour is never held"
    for pattern, reason in _ALONE:
        if pattern.fullmatch(package.name):
            return reason
    if not kernel:
        return ""
    if not locked:
        return "no prebuilt modules are tied to it: new kernels are not held"
    return f"not a part of {locked}, and brings no new kernel"
