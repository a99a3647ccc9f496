"""The NVIDIA driver as files show it: what is loaded, what is on disk, what is locked. Nothing here touches the GPU."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from agent.errors import FileTrouble
from agent.host import Host

LOCK_FILE = "/etc/holdfast/driver.lock"
VERSION = re.compile(r"\d{3}\.\d{1,4}(?:\.\d{1,4})?")
"""A driver version: 550.120, 595.84, 580.178.04. Compared as text for equality."""
_PROC_VERSION = "/proc/driver/nvidia/version"
_SYS_VERSION = "/sys/module/nvidia/version"
# Both forms of nv-procfs.c: "Kernel Module  580.178.04" and "Open Kernel Module for x86_64  580.178.04".
_NVRM = re.compile(
    r"^NVRM version:\s+NVIDIA UNIX .*?Kernel Module(?: for \S+)?\s+(\d{3}\.\d+(?:\.\d+)?)\b", re.MULTILINE
)
# Debian's DKMS calls the file nvidia-current.ko; its legacy series nvidia-tesla-535-current.ko.
_MODULE = re.compile(r"(?:^|/)nvidia(?:(?:-[a-z0-9]+)*-current)?\.ko(?:\.(?:xz|zst|gz))?:", re.MULTILINE)
NVML_LIBRARY = "libnvidia-ml.so"
CUDA_LIBRARY = "libcuda.so"
_ARCHITECTURES = ("x86_64-linux-gnu", "aarch64-linux-gnu")
_USUAL = (
    *(f"/usr/lib/{architecture}{place}" for architecture in _ARCHITECTURES for place in ("", "/nvidia/current")),
    "/lib64",
    "/usr/lib64",
    "/usr/lib64/nvidia",
    "/usr/lib",
    "/usr/lib/nvidia",
    "/usr/local/nvidia/lib64",
    "/usr/local/lib",
    "/usr/lib/wsl/lib",
)
_NVIDIA = "0x10de"  # PCI vendor
_DISPLAY = "0x03"  # PCI base class of display controllers, 3D ones included


@dataclass(frozen=True, slots=True)
class Lock:
    """The driver version this host must run. `problem` is "" or one of absent, empty, malformed, contradictory,
    unreadable, not-a-regular-file; then `detail` says it in words and `version` is None.
    """

    version: str | None
    problem: str = ""
    detail: str = ""


def traces(host: Host) -> bool:
    """Whether this host has anything of NVIDIA's: driver, device, module file, library, card or a lock.

    What cannot be read does not count.
    """
    places = ("/proc/driver/nvidia", "/sys/module/nvidia", "/dev/nvidiactl", LOCK_FILE)
    return any(_there(host, place) for place in places) or _library(host) is not None or card(host) or module_file(host)


def loaded_version(host: Host) -> str | None:
    """The version of the kernel module that runs now; None when none is loaded.

    Raises FileTrouble: malformed when one is loaded that does not say its version.
    """
    try:
        found = VERSION.fullmatch(host.files.read_text(_SYS_VERSION).strip())
        if found:
            return found[0]
    except FileTrouble as trouble:
        if trouble.kind != "missing":
            raise
    try:
        text = host.files.read_text(_PROC_VERSION)
    except FileTrouble as trouble:
        if trouble.kind == "missing" and not _there(host, _SYS_VERSION):
            return None
        raise
    matched = _NVRM.search(text)
    if matched is None:
        raise FileTrouble(f"{_PROC_VERSION} names no version", kind="malformed", where=_PROC_VERSION)
    return matched[1]


def loaded_is_open(host: Host) -> bool | None:
    """Whether the module that runs now is NVIDIA's open one; None when none is loaded or it does not say."""
    matched = _NVRM.search(_text(host, _PROC_VERSION))
    return None if matched is None else "Open Kernel Module" in matched[0]


def nouveau_loaded(host: Host) -> bool:
    """Whether nouveau runs: it keeps the card, so that NVIDIA's module cannot be loaded."""
    return _there(host, "/sys/module/nouveau")


def library_version(host: Host, library: str = NVML_LIBRARY) -> str | None:
    """The version of the libnvidia-ml (or libcuda) that a program started now would load; None when there is none.

    Read from the file's name. Raises FileTrouble(malformed) when that carries no version.
    """
    place = _library(host, library)
    if place is None:
        return None
    real = host.files.realpath(place)
    found = VERSION.fullmatch(real.rpartition("/")[2].removeprefix(f"{library}."))
    if found is None:
        raise FileTrouble(f"{real} carries no version in its name", kind="malformed", where=real)
    return found[0]


def read_lock(host: Host, path: str = LOCK_FILE) -> Lock:
    """The lock: the first word of the first line that is no comment; further lines must repeat it. Never raises."""
    try:
        text = host.files.read_text(path, limit=64 << 10)
    except FileTrouble as trouble:
        if trouble.kind == "missing" and _is_link(host, path):
            return Lock(None, "not-a-regular-file", f"{path} is a link that leads nowhere")
        problems = {
            "missing": Lock(None, "absent", f"{path} does not exist"),
            "denied": Lock(None, "unreadable", f"{path} cannot be read: {trouble.message}"),
            "large": Lock(None, "malformed", f"{path} is far too large for a lock"),
        }
        if trouble.kind in problems:
            return problems[trouble.kind]
        regular = "regular file" not in trouble.message and "directory" not in trouble.message
        return Lock(None, "unreadable" if regular else "not-a-regular-file", trouble.message)
    lines = (line.strip() for line in text.removeprefix("\ufeff").splitlines())
    words = [line.split()[0] for line in lines if line and not line.startswith("#")]
    if not words:
        return Lock(None, "empty", f"{path} names no version")
    wrong = next((word for word in words if not VERSION.fullmatch(word)), None)
    if wrong is not None:
        return Lock(None, "malformed", f"{path}: {wrong[:40]!r} is not a driver version like 580.178.04")
    if len(set(words)) > 1:
        return Lock(None, "contradictory", f"{path} names {' and '.join(sorted(set(words))[:3])}")
    return Lock(words[0])


def _is_link(host: Host, path: str) -> bool:
    try:
        return host.files.stat(path).is_link
    except FileTrouble:
        return False


def _there(host: Host, path: str) -> bool:
    try:
        return host.files.exists(path)
    except FileTrouble:
        return False


def _names(host: Host, path: str) -> list[str]:
    try:
        return host.files.listdir(path)
    except FileTrouble:
        return []


def _text(host: Host, path: str, limit: int = 1 << 20) -> str:
    try:
        return host.files.read_text(path, limit)
    except FileTrouble:
        return ""


def _library(host: Host, library: str = NVML_LIBRARY) -> str | None:
    """Where the loader would find the library: the directories of ld.so.conf in order, then the usual ones.

    Directories of another word size are passed over: their library is another one. So are those of cuda-compat, whose
    libcuda is newer than the driver on purpose.
    """
    for folder in (*_loader_directories(host), *_USUAL):
        if _there(host, f"{folder}/{library}.1") and "compat" not in folder.split("/"):
            return f"{folder}/{library}.1"
    return None


def _loader_directories(host: Host) -> Iterator[str]:
    names = [name for name in _names(host, "/etc/ld.so.conf.d") if name.endswith(".conf")]
    for path in ("/etc/ld.so.conf", *(f"/etc/ld.so.conf.d/{name}" for name in names)):
        for line in _text(host, path).splitlines():
            folder = line.partition("#")[0].strip()
            if folder.startswith("/") and not re.search(r"i[3-6]86-linux-gnu|/lib(?:x?32)\b", folder):
                yield folder.rstrip("/")


def card(host: Host) -> bool:
    """Whether the host has a display device of NVIDIA's. What cannot be read does not count."""
    devices = "/sys/bus/pci/devices"
    return any(
        _text(host, f"{devices}/{name}/vendor").strip() == _NVIDIA
        and _text(host, f"{devices}/{name}/class").strip().startswith(_DISPLAY)
        for name in _names(host, devices)
    )


def module_file(host: Host) -> bool:
    """Whether the running kernel has an nvidia module to load, as depmod lists it."""
    release = _text(host, "/proc/sys/kernel/osrelease").strip()
    return bool(release) and _MODULE.search(_text(host, f"/lib/modules/{release}/modules.dep", 16 << 20)) is not None
