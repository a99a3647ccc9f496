"""Kernels with NVIDIA modules for booted hosts: Ubuntu's real ones, and modules made here for hosts without a card.

What a disposable host has no disk for is stood in for: `grub-probe` answers for a disk that is not there, so that the
real grub-mkconfig writes its menu; and the release of the running kernel is shown, because a host of the bed runs on
the kernel of this machine.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path

from bed import rootfs
from bed.errors import BedError, NotServedError, UnavailableError
from bed.gpu import fake_devices, fake_driver
from bed.host import BootedHost
from bed.prerequisites import ensure_commands

KERNEL = "6.8.0-31-generic"
"""The kernel of Ubuntu 24.04's release pocket, which never changes."""
NEXT_KERNEL = "6.8.0-31-lowlatency"
"""Another one of the same pocket, which GRUB and dpkg take for the newer one; its module packages are not installed."""
DRIVER = "550.54.15"
NEXT_KERNEL_DEBS = "/var/lib/bed/next-kernel"
RECIPE = "1"
_PACKAGES = (
    f"linux-image-{KERNEL}", f"linux-modules-nvidia-550-server-{KERNEL}", "nvidia-utils-550-server",
    "libnvidia-compute-550-server", "grub2-common", "grub-pc-bin", "initramfs-tools", "zstd", "kmod",
    "unattended-upgrades",
)  # fmt: skip
GRUB_PROBE = """\
#!/bin/sh
case "$*" in
*target=device*) echo /dev/vda1 ;;
*target=fs_uuid*) echo 0a1b2c3d-0000-4000-8000-0123456789ab ;;
*target=partuuid*) echo 0a1b2c3d-01 ;;
*target=fs*) echo ext2 ;;
*target=partmap*) echo gpt ;;
*target=hints_string*) echo "--hint-bios=hd0,gpt1" ;;
*target=compatibility_hint* | *target=bios_hints*) echo hd0,gpt1 ;;
esac
"""
_INSTALL = f"""\
apt-get -q update
apt-get -q install -y --no-install-recommends "$@"
apt-get clean
apt-get -q install -y --no-install-recommends --download-only linux-image-{NEXT_KERNEL}
mkdir -p {NEXT_KERNEL_DEBS}; mv /var/cache/apt/archives/*.deb {NEXT_KERNEL_DEBS}
rm -rf /var/lib/apt/lists/*_dists_*
test -e /etc/default/grub || cp /usr/share/grub/default/grub /etc/default/grub
mkdir -p /boot/grub
"""
DEBIAN_RECIPE = "1"
_DEBIAN_PACKAGES = (
    "nvidia-kernel-dkms", "libcuda1", "libnvidia-ml1", "nvidia-smi", "initramfs-tools", "grub2-common", "grub-pc-bin",
)  # fmt: skip
# The kernel for virtual machines: the same in all that matters here, and a quarter of the size.
_INSTALL_DEBIAN = f"""\
sed -i 's/ main$/ main contrib non-free non-free-firmware/' /etc/apt/sources.list
apt-get -q update
apt-get -q install -y --no-install-recommends "$@"
apt-get clean
apt-get -q install -y --no-install-recommends --download-only linux-image-cloud-amd64 linux-headers-cloud-amd64
mkdir -p {NEXT_KERNEL_DEBS}; mv /var/cache/apt/archives/*.deb {NEXT_KERNEL_DEBS}
cd {NEXT_KERNEL_DEBS}; apt-ftparchive packages . >Packages
rm -rf /var/lib/apt/lists/*_dists_* /etc/apt/sources.list
echo "deb [trusted=yes] file:{NEXT_KERNEL_DEBS} ./" >/etc/apt/sources.list.d/bed.list
test -e /etc/default/grub || cp /usr/share/grub/default/grub /etc/default/grub
mkdir -p /boot/grub
"""


def ubuntu_with_driver() -> Path:
    """A root file system of Ubuntu 24.04 with driver 550's real packages and kernel: a gigabyte, a minute at first.

    Nobody may write into it. Raises NotServedError when Ubuntu's archive does not answer.
    """
    name = f"noble-{rootfs.RECIPE}-driver-{RECIPE}"
    try:
        return rootfs.derived(name, rootfs.rootfs("noble"), _INSTALL, _PACKAGES)
    except UnavailableError as error:
        raise NotServedError(str(error)) from error


def debian_with_driver(suite: str) -> Path:
    """A root file system of Debian with its driver's real packages for DKMS, and a kernel beside it: a minute at first.

    The kernel and its headers lie in NEXT_KERNEL_DEBS, as an archive that apt can read. Nobody may write into the tree.
    Raises UnavailableError when Debian's archive does not answer.
    """
    name = f"{suite}-{rootfs.RECIPE}-driver-{DEBIAN_RECIPE}"
    return rootfs.derived(name, rootfs.rootfs(suite), _INSTALL_DEBIAN, _DEBIAN_PACKAGES)


def show_running_kernel(host: BootedHost, release: str) -> None:
    """Show this release as the running kernel's until the host's next boot."""
    host.write("/run/bed-osrelease", f"{release}\n")
    host.sh("mount --bind /run/bed-osrelease /proc/sys/kernel/osrelease")


def without_a_disk(host: BootedHost) -> None:
    """Let grub-mkconfig work on a host that has no disk, and run when dpkg changes a kernel.

    GRUB's hook does nothing in a container, which a host of the bed is, and is not to be taken for.
    """
    host.write("/usr/sbin/grub-probe", GRUB_PROBE, mode=0o755)
    hooks = "/etc/kernel/postinst.d/zz-update-grub /etc/kernel/postrm.d/zz-update-grub"
    host.sh(f"sed -i 's/systemd-detect-virt --quiet --container/false/' {hooks}")


def set_grub_default(host: BootedHost, default: str) -> None:
    """Set GRUB_DEFAULT and write the menu, with GRUB's own tools."""
    host.sh(
        f"mkdir -p /boot/grub; sed -i '/^GRUB_DEFAULT=/d' /etc/default/grub; "
        f"echo 'GRUB_DEFAULT=\"{default}\"' >>/etc/default/grub; "
        "test -e /boot/grub/grubenv || grub-editenv /boot/grub/grubenv create; grub-mkconfig -o /boot/grub/grub.cfg"
    )


def run_the_driver(host: BootedHost) -> None:
    """Let a host with `ubuntu_with_driver`'s tree look as if it runs its kernel with its driver loaded."""
    without_a_disk(host)
    set_grub_default(host, "0")
    show_running_kernel(host, KERNEL)
    fake_driver(host, DRIVER)
    fake_devices(host)


def make_kernel(host: BootedHost, release: str) -> None:
    """A kernel with its folder of modules, empty but for what depmod needs."""
    host.sh(
        f"mkdir -p /boot /lib/modules/{release}/kernel; echo kernel >/boot/vmlinuz-{release}; "
        f"echo initrd >/boot/initrd.img-{release}; touch /lib/modules/{release}/modules.order "
        f"/lib/modules/{release}/modules.builtin; depmod {release}"
    )


def make_module(host: BootedHost, release: str, version: str, *, place: str = "updates/dkms/nvidia-current.ko") -> None:
    """A module file that modinfo and depmod read as NVIDIA's of that version; it holds nothing else."""
    ensure_commands(("gcc",))
    fields = {
        "version": version, "license": "NVIDIA", "firmware": f"nvidia/{version}/gsp_tu10x.bin", "name": "nvidia",
        "vermagic": f"{release} SMP preempt mod_unload modversions ", "depends": "",
    }  # fmt: skip
    entries = "".join(
        f'static const char f{number}[] __attribute__((section(".modinfo"), used)) = "{name}={value}";\n'
        for number, (name, value) in enumerate(fields.items())
    )
    with tempfile.TemporaryDirectory() as name:
        source, built = Path(name) / "nvidia.c", Path(name) / Path(place).name
        source.write_text(entries, encoding="ascii")
        done = subprocess.run(
            ["gcc", "-c", "-o", str(built), str(source)], text=True, check=False, capture_output=True, timeout=60
        )
        if done.returncode != 0:
            raise BedError(f"a module does not compile: {done.stderr}")
        host.push(built, f"/lib/modules/{release}/{place}")
    host.sh(f"depmod {release}")
    if not re.search(r"nvidia\S*\.ko", host.read(f"/lib/modules/{release}/modules.dep")):
        raise BedError(f"depmod does not list {place}")
