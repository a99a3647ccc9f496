"""A booted Ubuntu with the real driver 550 and a real engine, whose archive still has everything that can be saved."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bed import Bed, BootedHost, fake_devices, fake_driver, llama_unit, mirror
from bed.bed import LLAMA, MODELS
from bed.engine import llama_server, models
from bed.host import booted
from bed.kernels import (
    DRIVER,
    KERNEL,
    run_the_driver,
    show_running_kernel,
    ubuntu_with_driver,
)
from bed.packages import REPOSITORY
from saturday import METAS, Saturday
from spine import Watched, installed

SETS = "/var/lib/holdfast-runner/packages"
SET = f"{SETS}/{DRIVER}-{KERNEL}"
GUARD = "/etc/apt/apt.conf.d/80holdfast"
LINKER = Path(mirror.__file__).with_name("linker.txt")
RUNS = "/var/lib/holdfast-runner/runs"


@dataclass
class Box:
    """The host, what its apt may see, and the Holdfast on it."""

    host: BootedHost
    night: Saturday
    scene: Watched

    @property
    def manifest(self) -> dict[str, Any]:
        """What was saved, as the set says it."""
        return dict(json.loads(self.host.read(f"{SET}/manifest.json")))

    def holdfast(self, *argv: str, timeout: float = 900) -> tuple[int, str, float]:
        """A holdfast command: its exit status, all that it said, and how long it took, seconds."""
        started = time.monotonic()
        done = self.host.run("holdfast", *argv, check=False, timeout=timeout)
        return done.returncode, done.stdout + done.stderr, time.monotonic() - started

    def drift(self) -> None:
        """What a night of upgrades leaves where the guard was bypassed, and the archive dropped the old versions."""
        self.host.sh(f"mv {GUARD} /root/guard")
        status, said = self.night.upgrade("dist-upgrade")
        assert status == 0, said
        self.host.sh(f"mv /root/guard {GUARD}")
        assert self.night.library() == self.night.offered.driver
        assert self.night.boots_next() == self.night.offered.kernel
        self.without_a_network()

    def without_a_network(self) -> None:
        """No source of packages, no cache of them, and no way out."""
        self.host.sh(
            "rm -rf /etc/apt/sources.list /etc/apt/sources.list.d/* /var/lib/apt/lists/*_* "
            f"/var/cache/apt/archives/*.deb {REPOSITORY}; umount {mirror.PLACE}; ! ls {mirror.PLACE}/dists 2>/dev/null"
        )

    def boots_into(self, driver: str, kernel: str) -> None:
        """A reboot, after which this kernel runs with this driver loaded."""
        self.host.boot_again()
        show_running_kernel(self.host, kernel)
        fake_driver(self.host, driver)
        fake_devices(self.host)
        self.host.sh(f"umount {mirror.PLACE}", check=False)

    def installed(self) -> dict[str, str]:
        """Every package of the driver's and the kernel's with its version."""
        return {name: version for name, version in self.night.versions().items() if _is_ours(name)}

    def is_back(self) -> None:
        """Make sure that the saved driver is there again, exactly: packages, modules, libraries, and the next boot."""
        versions = self.night.versions()
        for each in self.manifest["packages"]:
            if each["role"] != "support":
                assert versions.get(each["name"]) == each["version"], each
        for each in self.manifest["modules"]:
            path = each["file"].removeprefix("modules/")
            digest = self.host.run("sha256sum", f"/lib/modules/{KERNEL}/{path}").stdout.split()[0]
            assert digest == each["sha256"], path
        assert (self.night.library(), self.night.module(KERNEL)) == (DRIVER, DRIVER)
        said = self.host.run("holdfast", "check", "driver.next_boot", check=False).stdout
        assert f"kernel {KERNEL}, saved entry" in said, said
        assert self.host.run("dpkg", "--audit").stdout == ""

    def wait_for_step(self, words: str, timeout: float = 300) -> str:
        """The id of the run whose transcript says this."""

        def found() -> str:
            names = self.host.sh(f"grep -l '{words}' {RUNS}/*.jsonl || true").split()
            return names[-1].rpartition("/")[2].removesuffix(".jsonl") if names else ""

        return self.host.wait_for(found, timeout, f"a run that says {words}")


def _is_ours(name: str) -> bool:
    return "nvidia" in name or name.startswith(("linux-image", "linux-modules", "binutils"))


@contextlib.contextmanager
def box(bed: Bed, *, mode: str = "act") -> Iterator[Box]:
    """Boot the host, with Holdfast and an engine that serves; nothing is locked yet."""
    assert bed
    offered = mirror.ubuntu_mirror()
    shown = {offered.folder: mirror.PLACE, llama_server(): LLAMA, models(): MODELS}
    with booted("noble", ubuntu_with_driver(), name="host", writable=True, binds=shown) as host:
        run_the_driver(host)
        night = Saturday(host, offered)
        mirror.use(host, "noble")
        night.upgrade("install", *METAS)
        mirror.use(host, *mirror.POCKETS)
        _offer_the_linker(host)
        inbox = installed(host)
        scene = Watched(host, inbox, llama_unit(host))
        scene.configure(mode=mode, engine="gpu = false")
        scene.wait_ready()
        yield Box(host, night, scene)


def _offer_the_linker(host: BootedHost) -> None:
    """A second archive, with what links the modules."""
    for pin in mirror.pinned(LINKER.read_text(encoding="ascii")):
        deb = mirror.fetch(pin)
        assert deb is not None, f"Ubuntu's release pocket no longer has {pin}"
        host.push(deb, f"{REPOSITORY}/{pin.path.rpartition('/')[2]}")
    host.sh(
        f"cd {REPOSITORY}; apt-ftparchive packages . >Packages; "
        f"echo 'deb [trusted=yes] file:{REPOSITORY} ./' >/etc/apt/sources.list.d/linker.list; apt-get -q update",
        timeout=120,
    )
