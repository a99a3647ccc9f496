"""The one thing that is faked: the NVIDIA driver, as the kernel and its library show it."""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
from pathlib import Path

from llama_build import cache_root, exclusively

from bed.errors import BedError
from bed.host import BootedHost
from bed.prerequisites import ensure_commands

NVML_SOURCE = Path(__file__).resolve().parents[2] / "fake_nvml" / "nvml.c"
NVML_CONF = "/run/fake-nvml.conf"
LIBRARY_DIR = "/usr/lib/x86_64-linux-gnu"

_PROPRIETARY = "NVIDIA UNIX x86_64 Kernel Module  {version}  Tue Mar  5 22:23:56 UTC 2024"
_OPEN = (
    "NVIDIA UNIX Open Kernel Module for x86_64  {version}  Release Build  (dvs-builder@U22-I3-AE18-16-4)  "
    "Tue Mar  5 22:15:33 UTC 2024"
)


def fake_driver(host: BootedHost, version: str | None, *, open_kernel: bool = False) -> None:
    """Show a loaded driver of that version under /proc/driver and /sys/module; None shows it unloaded.

    It lasts until the host's next boot, as a loaded module does, and may be called again to change it.
    """
    if not host.exists("/proc/driver/.bed"):
        host.sh("mount -t tmpfs none /proc/driver; mount -t tmpfs none /sys/module; touch /proc/driver/.bed")
    host.sh("rm -rf /proc/driver/nvidia /sys/module/nvidia /sys/module/nvidia_uvm")
    if version is None:
        return
    line = (_OPEN if open_kernel else _PROPRIETARY).format(version=version)
    host.write(
        "/proc/driver/nvidia/version", f"NVRM version: {line}\nGCC version:  gcc version 12.2.0 (Debian 12.2.0-14)\n"
    )
    for module in ("nvidia", "nvidia_uvm"):
        host.write(f"/sys/module/{module}/version", f"{version}\n", 0o444)
        host.write(f"/sys/module/{module}/initstate", "live\n", 0o444)
        host.write(f"/sys/module/{module}/refcnt", "1\n", 0o444)


def fake_devices(host: BootedHost, gpus: int = 1) -> None:
    """Make the device nodes a driver brings; opening them fails, which is all a test should need."""
    nodes = {f"/dev/nvidia{index}": index for index in range(gpus)} | {"/dev/nvidiactl": 255}
    host.sh("\n".join(f"[ -e {path} ] || mknod -m 666 {path} c 195 {minor}" for path, minor in nodes.items()))


def nvml_library() -> Path:
    """Return the compiled stand-in for libnvidia-ml.so.1, from the cache. See tests/fake_nvml/nvml.c."""
    key = hashlib.sha256(NVML_SOURCE.read_bytes()).hexdigest()[:12]
    wanted = cache_root() / f"fake-nvml-{key}" / "libnvidia-ml.so.1"
    if wanted.exists():
        return wanted
    ensure_commands(("gcc",))
    with exclusively("fake-nvml"), tempfile.TemporaryDirectory(dir=cache_root()) as name:
        folder = Path(name) / "built"
        folder.mkdir(mode=0o755)
        done = subprocess.run(
            ["gcc", "-std=gnu11", "-shared", "-fPIC", "-O1", "-fvisibility=hidden", "-Wl,-soname,libnvidia-ml.so.1",
             "-o", str(folder / wanted.name), str(NVML_SOURCE), "-ldl"],
            text=True, check=False, capture_output=True, timeout=120,
        )  # fmt: skip
        if done.returncode != 0:
            raise BedError(f"nvml.c does not compile: {done.stderr}")
        if not wanted.exists():
            folder.rename(wanted.parent)
    return wanted


def fake_nvml(host: BootedHost, *, library: str = "550.54.15", **settings: object) -> None:
    """Install the stand-in as version ``library`` and set what it answers; call again to change either.

    ``settings`` are the keys of tests/fake_nvml/nvml.c, such as ``behaviour="mismatch"`` or ``gpus=2``. The file
    they are in is on /run: it is gone after a boot, as is a fault of a card.
    """
    name = f"{LIBRARY_DIR}/libnvidia-ml.so.{library}"
    if not host.exists(name):
        host.sh(f"rm -f {LIBRARY_DIR}/libnvidia-ml.so.[0-9]*.*")
        host.push(nvml_library(), name)
        host.sh(f"ln -sfn libnvidia-ml.so.{library} {LIBRARY_DIR}/libnvidia-ml.so.1; ldconfig")
    set_nvml(host, **settings)


def set_nvml(host: BootedHost, **settings: object) -> None:
    """Replace all settings of an installed stand-in; processes that hold it open see them at their next call."""
    host.write(NVML_CONF, "".join(f"{key} = {value}\n" for key, value in settings.items()))
