"""Kernels with their NVIDIA modules, as files and as modinfo tells of them, for fake hosts."""

from __future__ import annotations

from typing import Any

from tests.support.fake_files import Entry, File, Link

OLD, NEW = "6.8.0-31-generic", "6.8.0-149-generic"
A, B = "550.54.15", "580.178.04"
LIB = "/usr/lib/x86_64-linux-gnu"


def module_path(release: str, place: str = "kernel/nvidia-550srv/nvidia.ko") -> str:
    return f"/lib/modules/{release}/{place}"


def modinfo(
    version: str, release: str = OLD, *, licence: str = "NVIDIA", signer: str = "Canonical Ltd. Kernel Module Signing",
    vermagic: str = "SMP preempt mod_unload modversions", path: str = "/x/nvidia.ko",
) -> str:  # fmt: skip
    """What modinfo prints (kmod 30), the fields that matter and some that do not."""
    signed = (
        f"sig_id:         PKCS#7\nsigner:         {signer}\nsig_key:        E9:DF:13:0F:92:92:A9:B7\n"
        "sig_hashalgo:   sha512\nsignature:      A6:02:2A:96:E6:F1:68:1A:C7:1C:98:82:9C:CE:96:A2:CD:27:29:E6:\n"
        "\t\t1F:0A:D4:DD:A0:68:A9:DC:A9:E9:10:5B:6D:03:E7:EC:3C:9F:C7:97\n"
        if signer
        else ""
    )
    return (
        f"filename:       {path}\nalias:          pci:v000010DEd*sv*sd*bc03sc02i00*\nversion:        {version}\n"
        f"supported:      external\nlicense:        {licence}\n"
        f"firmware:       nvidia/{version}/gsp_tu10x.bin\nfirmware:       nvidia/{version}/gsp_ga10x.bin\n"
        "srcversion:     833721318DA517F0C2FEC97\ndepends:        \nname:           nvidia\n"
        f"vermagic:       {release} {vermagic} \n{signed}"
    )


def kernel(release: str, *modules: str, mtime: float = 1000.0) -> dict[str, Entry]:
    """A kernel in /boot, and the nvidia modules that depmod lists for it (paths below its folder)."""
    listed = "".join(f"{place}:\n" for place in modules)
    return {
        f"/boot/vmlinuz-{release}": "kernel",
        f"/lib/modules/{release}/modules.dep": f"kernel/drivers/video/fbdev/nvidia/nvidiafb.ko.zst:\n{listed}",
        **{module_path(release, place): File("module", mtime=mtime) for place in modules},
    }


def running(release: str = OLD, loaded: str | None = A) -> dict[str, Entry]:
    """A kernel that runs, and the driver that it has loaded."""
    files: dict[str, Entry] = {"/proc/sys/kernel/osrelease": f"{release}\n", "/sys/kernel/kexec_loaded": "0\n"}
    if loaded:
        files["/sys/module/nvidia/version"] = f"{loaded}\n"
    return files


def libraries(version: str, cuda: str | None = None) -> dict[str, Entry]:
    """libnvidia-ml and libcuda on disk."""
    return {
        f"{LIB}/libnvidia-ml.so.1": Link(f"libnvidia-ml.so.{version}"),
        f"{LIB}/libnvidia-ml.so.{version}": "",
        f"{LIB}/libcuda.so.1": Link(f"libcuda.so.{cuda or version}"),
        f"{LIB}/libcuda.so.{cuda or version}": "",
    }


def tells(answers: dict[str, str]) -> dict[Any, Any]:
    """The commands of a host whose modinfo knows these files."""
    return {("modinfo", path): text for path, text in answers.items()}
