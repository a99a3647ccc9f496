"""Saturday night: a booted Ubuntu with the real driver 550 and its kernel, and what a mirror offers for them."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass

from bed import BootedHost, mirror
from bed.host import booted
from bed.kernels import (
    run_the_driver,
    ubuntu_with_driver,
)
from bed.mirror import Mirror
from spine import Watched, told

METAS = ("linux-image-virtual", "linux-modules-nvidia-550-server-generic")
"""The packages that draw in each newer kernel and its module."""
LOG = "/var/log/unattended-upgrades/unattended-upgrades.log"
LIB = "/usr/lib/x86_64-linux-gnu"
QUIET = {"DEBIAN_FRONTEND": "noninteractive"}


@dataclass
class Saturday:
    """The host, and the mirror that its apt reads."""

    host: BootedHost
    offered: Mirror | None

    def night(self, timeout: float = 600) -> str:
        """Run unattended-upgrades as its timer does, and return what it logged. Raises BedError when it fails."""
        self.host.sh(f": >{LOG}")
        self.host.run("unattended-upgrade", "-v", timeout=timeout)
        return self.host.read(LOG)

    def upgrade(self, *argv: str, check: bool = True) -> tuple[int, str]:
        """Run apt-get by hand, and return its status and all that it said."""
        done = self.host.run("apt-get", "-q", "-y", *argv, check=check, timeout=300, env=QUIET)
        return done.returncode, done.stdout + done.stderr

    def versions(self) -> dict[str, str]:
        """Every installed package with its version."""
        said = self.host.sh("dpkg-query -W -f '${db:Status-Status} ${Package} ${Version}\\n'")
        rows = (line.split() for line in said.splitlines())
        return {row[1]: row[2] for row in rows if row[0] == "installed"}

    def held(self) -> set[str]:
        """Every package that is on hold."""
        return {name.partition(":")[0] for name in self.host.run("apt-mark", "showhold").stdout.split()}

    def module(self, release: str) -> str:
        """The version of the module that this kernel would load; "" when it has none."""
        done = self.host.run("modinfo", "-k", release, "-F", "version", "nvidia", check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    def library(self) -> str:
        """The version of the libnvidia-ml that a program started now would load."""
        return self.host.run("readlink", "-f", f"{LIB}/libnvidia-ml.so.1").stdout.strip().rpartition(".so.")[2]

    def boots_next(self) -> str:
        """The kernel of the first entry of GRUB's menu, as grub-mkconfig wrote it."""
        found = re.search(r"^\s*linux\s+(?:/\S*)?/vmlinuz-(\S+)", self.host.read("/boot/grub/grub.cfg"), re.MULTILINE)
        assert found, "GRUB's menu names no kernel"
        return found[1]

    def truths(self) -> dict[str, str]:
        """What the scene is about, in one row."""
        return {
            "loaded": self.host.read("/sys/module/nvidia/version").strip(),
            "library": self.library(),
            "next kernel": self.boots_next(),
            "its module": self.module(self.boots_next()) or "none",
            **{name: self.versions().get(name, "none") for name in mirror.UNRELATED},
        }

    def install_holdfast(self) -> Watched:
        """Install the package and let its pages arrive in an inbox; nothing is locked or held by that."""
        return told(self.host)

    def check(self, name: str) -> tuple[int, str]:
        """A check's exit status and what it says."""
        done = self.host.run("holdfast", "check", name, check=False)
        return done.returncode, done.stdout.strip()

    def status(self) -> str:
        """What `holdfast status` says, as one line."""
        return " ".join(self.host.run("holdfast", "status", check=False).stdout.split())

    def hold_by_hand(self) -> None:
        """What everybody advises: hold all that is called nvidia."""
        self.host.sh("dpkg-query -W -f '${db:Status-Status} ${Package}\\n' '*nvidia*' | sed -n 's/^installed //p' | "
                     "xargs apt-mark hold")  # fmt: skip

    def unrelated_updates_are_in(self) -> bool:
        """Whether what has nothing to do with the driver was updated."""
        versions = self.versions()
        return all(versions[name] == version for name, version in self.offered.unrelated.items())


@contextlib.contextmanager
def saturday() -> Iterator[Saturday]:
    """Boot such a host: driver 550 runs on its kernel, and the security pocket offers other ones."""
    offered = mirror.ubuntu_mirror()
    for note in offered.notes:
        print(note)
    with booted(
        "noble", ubuntu_with_driver(), name="host", writable=True, binds={offered.folder: mirror.PLACE}
    ) as host:
        run_the_driver(host)
        scene = Saturday(host, offered)
        mirror.use(host, "noble")
        scene.upgrade("install", *METAS)
        mirror.use(host, *mirror.POCKETS)
        yield scene
