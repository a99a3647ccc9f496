"""Planned changes on a real Ubuntu with a real engine: guided over a reboot, proven, and safe to cut off anywhere.

Packages, kernels, modules, holds and the apt guard are real; shown is only what a card would: the loaded driver and the
running kernel.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from bed import Bed, BootedHost, engine, fake_devices, fake_driver, llama_unit, mirror
from bed.bed import LLAMA, MODELS
from bed.host import booted
from bed.kernels import (
    DRIVER,
    KERNEL,
    NEXT_KERNEL,
    NEXT_KERNEL_DEBS,
    make_module,
    run_the_driver,
    show_running_kernel,
    ubuntu_with_driver,
)
from bed.mirror import Mirror
from cutting import GATE, GATE_SCRIPT
from spine import Watched, installed

RUNNER = "/var/lib/holdfast-runner"
CHANGE = f"{RUNNER}/change.json"
QUIET = {"DEBIAN_FRONTEND": "noninteractive"}
EVERY = """\
[check."driver.next_boot"]
every_s = 5.0

[check."driver.packages"]
every_s = 5.0
"""
LOUD = {"critical", "error", "warning"}


@dataclass
class Box:
    """A locked and held Ubuntu on driver 550 with a real engine, watched by Holdfast; and what its archive offers."""

    scene: Watched
    offered: Mirror

    @property
    def host(self) -> BootedHost:
        return self.scene.host

    def change(self, *words: str, check: bool = True) -> Any:
        """`holdfast change WORDS`, and everything it said."""
        return self.host.run("holdfast", "change", *words, check=check, timeout=660)

    def status(self) -> dict[str, Any]:
        """The page of the open change."""
        return dict(json.loads(self.host.run("holdfast", "change", "status", "--json", check=False).stdout)["data"])

    def missing(self) -> list[str]:
        """The truths that have not come true."""
        return [each["name"] for each in self.status()["truths"] if not each["ok"]]

    def locked(self) -> str:
        return self.host.read("/etc/holdfast/driver.lock").split()[-1]

    def held(self) -> set[str]:
        return {name.partition(":")[0] for name in self.host.run("apt-mark", "showhold").stdout.split()}

    def apt(self, *argv: str, check: bool = True) -> tuple[int, str]:
        done = self.host.run("apt-get", "-q", "-y", *argv, check=check, timeout=600, env=QUIET)
        return done.returncode, done.stdout + done.stderr

    def reboot(self, driver: str, kernel: str) -> None:
        """Boot again, into this kernel with this driver loaded."""
        self.host.boot_again()
        show_running_kernel(self.host, kernel)
        fake_driver(self.host, driver)
        fake_devices(self.host)
        self.scene.engine.wait_until_generates()

    def loud(self) -> list[str]:
        """The causes that were told louder than quietly."""
        return [page.finding for page in self.scene.pages() if page.severity in LOUD and page.action == "trigger"]

    def runs(self) -> list[tuple[str, str]]:
        """Every run that a person has asked for: its runbook and its outcome."""
        ended = {record["run"]: record["data"]["outcome"] for record in self.scene.ledger("outcome")}
        attempts = [(each["data"]["runbook"], ended.get(each["run"], "")) for each in self.scene.ledger("attempt")]
        return [each for each in attempts if each[0].endswith("-change")]


@pytest.fixture
def box(bed: Bed) -> Iterator[Box]:
    assert bed
    offered = mirror.ubuntu_mirror()
    for note in offered.notes:
        print(note)
    binds = {offered.folder: mirror.PLACE, engine.llama_server(): LLAMA, engine.models(): MODELS}
    with booted("noble", ubuntu_with_driver(), name="host", writable=True, binds=binds) as host:
        run_the_driver(host)
        mirror.use(host, *mirror.POCKETS)
        inbox = installed(host)
        scene = Watched(host, inbox, llama_unit(host))
        host.run("holdfast", "lock", "write")
        host.run("holdfast", "hold", timeout=120)
        scene.configure(mode="act", engine="gpu = false", more=EVERY)
        scene.wait_ready()
        yield Box(scene, offered)


def typed(line: str) -> Sequence[str]:
    """The names of an apt line as a person would type it."""
    words = shlex.split(line)
    assert words[:3] == ["sudo", "apt", "install"], line
    return words[3:]


def test_driver_550_to_580_with_its_kernel_is_guided_over_a_reboot_proven_and_locked(box: Box) -> None:
    to, kernel = box.offered.driver, box.offered.kernel
    held = box.held()
    assert "nvidia-utils-550-server" in held
    code, said = box.apt("install", "nvidia-utils-580-server", check=False)
    assert code != 0, said

    began = box.change("begin", "--to", to, "--kernel", kernel, "--reason", "CVE-2026-1234", "--window", "2h")
    assert f"change   driver {to} and kernel {kernel} (CVE-2026-1234)" in began.stdout
    assert box.held() == set()
    assert box.missing() == [
        "packages",
        "libraries",
        "next boot",
        "module, next boot",
        "loaded module",
        "running kernel",
    ]
    refused = box.host.run("holdfast", "lock", "write", check=False)
    assert (refused.returncode, "[change-open]" in refused.stderr) == (77, True)

    # What the page says is typed as it stands.
    names = typed(box.status()["next"]["command"])
    code, said = box.apt("install", *names)
    print(f"apt install {' '.join(names)}: {code}")
    assert box.missing() == ["loaded module", "running kernel"]
    assert box.status()["next"]["command"] == "sudo reboot"
    early = box.change("finish", check=False)
    assert (early.returncode, "[change-incomplete]" in early.stderr) == (77, True)
    for words in (f"loaded module: {DRIVER}", f"running kernel: {KERNEL}"):
        assert words in " ".join(early.stderr.split())
    box.host.run("systemctl", "restart", "holdfast")
    assert box.host.exists(CHANGE)

    box.reboot(to, kernel)
    page = box.status()
    assert (page["complete"], page["next"]["command"]) == (True, "sudo holdfast change finish"), page
    done = box.change("finish")
    assert "tokens from chat" in done.stdout
    assert (box.locked(), box.host.exists(CHANGE)) == (to, False)
    assert {"nvidia-utils-580-server", "libnvidia-compute-580-server"} <= box.held()
    assert f"linux-modules-nvidia-580-server-{kernel}" in box.held()
    assert box.host.run("holdfast", "lock", "verify").returncode == 0
    assert box.loud() == []
    assert box.runs() == [("begin-change", "succeeded"), ("finish-change", "refused"), ("finish-change", "succeeded")]
    told = box.host.run("holdfast", "audit", "show").stdout
    assert "CVE-2026-1234" in " ".join(told.split())
    code, said = box.apt("remove", "libnvidia-compute-580-server", check=False)
    assert code != 0, said


def test_a_new_kernel_alone_keeps_the_driver_and_its_lock(box: Box) -> None:
    box.change("begin", "--kernel", NEXT_KERNEL, "--reason", "USN-7777")
    step = box.status()["next"]
    assert (step["command"], NEXT_KERNEL in step["why"]) == (None, True), "the archive has no module for this kernel"
    box.host.sh(f"dpkg -i {NEXT_KERNEL_DEBS}/*.deb; grub-mkconfig -o /boot/grub/grub.cfg", timeout=300)
    assert "module, next boot" in box.missing()
    trap = box.scene.triggered("next-boot-no-driver", 60)
    assert trap.severity == "critical", "a reboot without a driver was never planned"
    make_module(box.host, NEXT_KERNEL, DRIVER, place="kernel/nvidia-550srv/nvidia.ko")
    box.scene.resolved("next-boot-no-driver", 60)
    assert box.missing() == ["running kernel"]

    box.reboot(DRIVER, NEXT_KERNEL)
    before = box.host.read("/etc/holdfast/driver.lock")
    box.change("finish")
    assert box.host.read("/etc/holdfast/driver.lock") == before
    assert not box.host.exists(CHANGE)
    assert "nvidia-utils-550-server" in box.held()
    assert box.loud() == ["next-boot-no-driver"]


def test_while_a_change_is_open_faults_are_told_quietly_and_afterwards_they_are_not(box: Box) -> None:
    to = box.offered.driver
    box.change("begin", "--to", to, "--reason", "CVE")
    box.host.sh(f"cd /usr/lib/x86_64-linux-gnu; for l in libnvidia-ml libcuda; do cp -a $l.so.{DRIVER} $l.so.{to}; "
                f"ln -sfn $l.so.{to} $l.so.1; done; systemctl kill --signal=KILL llama-server")  # fmt: skip
    for finding in ("driver-mismatch", "engine-dead"):
        page = box.scene.triggered(finding, 60)
        assert page.severity == "info", (finding, page.severity)
    unit = box.host.unit(box.scene.engine.unit, "ActiveState")
    assert unit["ActiveState"] == "failed", "nothing is restarted during a change"
    assert box.loud() == []

    aborted = box.change("abort")
    assert f"no longer is what the lock says ({DRIVER})" in " ".join(aborted.stdout.split())
    assert not box.host.exists(CHANGE)
    assert (box.locked(), "nvidia-utils-550-server" in box.held()) == (DRIVER, True)
    box.scene.page(lambda page: page.finding == "driver-mismatch" and page.severity == "critical", 60, "it to be loud")
    # The engine needs no GPU here, so its repair is not held up by the driver.
    box.scene.engine.wait_until_generates(120)
    box.host.wait_for(
        lambda: any(each["data"]["runbook"] == "restart-engine" for each in box.scene.ledger("attempt")), 10, "a repair"
    )


def test_without_a_planned_kernel_the_guide_leads_to_one_for_which_the_archive_has_the_module(box: Box) -> None:
    to, kernel = box.offered.driver, box.offered.kernel
    box.change("begin", "--to", to, "--reason", "CVE")
    names = typed(box.status()["next"]["command"])
    assert list(names[-2:]) == [f"linux-image-{kernel}", f"linux-modules-nvidia-580-server-{kernel}"]
    box.apt("install", *names)
    assert box.missing() == ["loaded module"]
    box.reboot(to, kernel)
    box.change("finish")
    assert (box.locked(), box.host.exists(CHANGE)) == (to, False)


def test_an_abort_on_a_machine_that_nothing_has_changed_leaves_it_as_it_was(box: Box) -> None:
    held = box.held()
    box.change("begin", "--to", box.offered.driver, "--reason", "CVE")
    second = box.change("begin", "--to", "595.10", "--reason", "other", check=False)
    assert (second.returncode, "[change-open]" in second.stderr) == (77, True)
    done = box.change("abort")
    assert f"this machine is what the lock says, driver {DRIVER}" in done.stdout
    assert (box.locked(), box.held()) == (DRIVER, held)
    nothing = box.change("finish", check=False)
    assert (nothing.returncode, "[no-change]" in nothing.stderr) == (77, True)


def test_a_change_beyond_its_window_and_a_record_that_nobody_can_read_are_told(box: Box) -> None:
    box.change("begin", "--to", box.offered.driver, "--reason", "CVE", "--window", "3s")
    page = box.scene.triggered("change-overdue", 60)
    assert "open beyond its window" in page.message
    assert "OVERDUE" in box.host.run("holdfast", "status", check=False).stdout
    assert box.change("status", check=False).returncode == 1
    box.host.write(CHANGE, "garbage\n", mode=0o640)
    box.host.sh(f"chgrp holdfast {CHANGE}")
    box.host.wait_for(
        lambda: "its record is broken" in box.host.run("holdfast", "status", check=False).stdout, 60, "it to be told"
    )
    refused = box.change("begin", "--to", box.offered.driver, "--reason", "CVE", check=False)
    assert (refused.returncode, "[change-unreadable]" in refused.stderr) == (77, True)
    box.change("abort")
    box.scene.resolved("change-overdue", 60)


def test_finish_names_an_engine_that_is_down_and_goes_on_when_it_is_up_again(box: Box) -> None:
    box.change("begin", "--kernel", NEXT_KERNEL, "--reason", "USN-7777")
    box.host.sh(f"dpkg -i {NEXT_KERNEL_DEBS}/*.deb; grub-mkconfig -o /boot/grub/grub.cfg", timeout=300)
    make_module(box.host, NEXT_KERNEL, DRIVER, place="kernel/nvidia-550srv/nvidia.ko")
    box.reboot(DRIVER, NEXT_KERNEL)
    box.host.sh("systemctl kill --signal=KILL llama-server")
    box.host.wait_for(lambda: box.host.main_pid(box.scene.engine.unit) == 0, 10, "the engine to be gone")
    down = box.change("finish", check=False)
    assert (down.returncode, "[engine-down]" in down.stderr) == (77, True)
    assert "sudo systemctl restart llama-server.service" in " ".join(down.stderr.split())
    assert box.host.exists(CHANGE)
    box.host.run("systemctl", "restart", "llama-server.service")
    box.change("finish")
    assert not box.host.exists(CHANGE)


@pytest.mark.parametrize("how", ["killed", "power"])
def test_a_begin_and_a_finish_that_are_cut_off_can_be_done_again(box: Box, how: str) -> None:
    held = box.held()
    box.host.write("/usr/local/sbin/apt-mark", GATE_SCRIPT, 0o755)
    cut(box, how, "apt-mark unhold", "begin", "--kernel", NEXT_KERNEL, "--reason", "USN-7777")
    assert not box.host.exists(CHANGE)
    assert box.held() == held

    box.change("begin", "--kernel", NEXT_KERNEL, "--reason", "USN-7777")
    box.host.sh(f"dpkg -i {NEXT_KERNEL_DEBS}/*.deb; grub-mkconfig -o /boot/grub/grub.cfg", timeout=300)
    make_module(box.host, NEXT_KERNEL, DRIVER, place="kernel/nvidia-550srv/nvidia.ko")
    box.reboot(DRIVER, NEXT_KERNEL)
    cut(box, how, "apt-mark hold", "finish")
    assert box.host.exists(CHANGE)
    assert box.locked() == DRIVER
    box.change("finish")
    assert not box.host.exists(CHANGE)
    assert "nvidia-utils-550-server" in box.held()
    assert [outcome for _, outcome in box.runs()].count("succeeded") == 2
    assert box.host.run("holdfast", "audit", "verify", check=False).returncode == 0


def cut(box: Box, how: str, gate: str, *words: str) -> None:
    """Ask for a change's run, and cut it off where it calls this command; return when recovery is done."""
    host = box.host
    host.write(GATE, gate)
    asking = host.popen("holdfast", "change", *words)
    try:
        host.wait_for(lambda: host.exists(f"{GATE}.reached") or asking.poll() is not None, 120, f"a call of {gate}")
        assert asking.poll() is None, asking.communicate()[0]
        kernel = host.read("/proc/sys/kernel/osrelease").strip()
        if how == "power":
            host.power_cut()
            box.reboot(DRIVER, kernel)
        else:
            host.run("kill", "-KILL", str(json.loads(host.read(f"{RUNNER}/locks/host"))["pid"]))
            host.sh(f"rm -f {GATE} {GATE}.reached")
    finally:
        asking.kill()
        asking.communicate(timeout=60)
    host.wait_for(
        lambda: len(box.scene.ledger("attempt")) == len(box.scene.ledger("outcome")), 120, "the run to be finished"
    )
