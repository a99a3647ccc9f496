"""What the kernel says of a card, on booted hosts: told with its meaning, once, over restarts, and never guessed.

The log is a file over /dev/kmsg that only root may read, so the daemon gets it from the real inspector; all that the
kernel would write is written by the tests, all else is real.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest
from bed import BootedHost, KernelLog, fake_driver, kill
from spine import Watched, told, watched

Boot = Callable[..., BootedHost]
DRIVER = "580.95.05"
LIB = "/usr/lib/x86_64-linux-gnu"
UUID = "GPU-b850f46d-d5ea-c752-ddf3-c6fa9afd3cca"
LOST = "NVRM: Xid (PCI:0000:18:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus."
LOOKS_S = 25.0
"""Long enough for two looks of gpu.xid."""


def driven(host: BootedHost) -> KernelLog:
    """A driver that is loaded and fits its libraries, and the kernel's log."""
    fake_driver(host, DRIVER)
    host.sh(f"for l in libnvidia-ml libcuda; do touch {LIB}/$l.so.{DRIVER}; ln -sf $l.so.{DRIVER} {LIB}/$l.so.1; done")
    return KernelLog(host)


def reads(scene: Watched) -> None:
    """Until the daemon has read the log once."""
    scene.host.wait_for(lambda: "gpu.xid host: " in scene.host.journal("holdfast.service"), 60, "a look at the log")


def about(scene: Watched, finding: str) -> list[tuple[str, str]]:
    return [(page.action, page.key.split("/")[3]) for page in scene.pages() if page.finding == finding]


@pytest.mark.parametrize("suite", ["bookworm", "trixie"])
def test_a_lost_card_is_told_with_its_meaning_once_and_over_restarts(host: Boot, suite: str) -> None:
    machine = host(suite, llama=False)
    log = driven(machine)
    log.write("usb 1-1: new high-speed USB device number 2 using xhci_hcd", level=6)
    scene = told(machine)
    reads(scene)
    assert "gpu.xid host: OK" in machine.journal("holdfast.service")

    # What user space writes is nobody's word.
    log.write(LOST, facility=1)
    time.sleep(LOOKS_S)
    assert about(scene, "gpu-lost") == []

    log.write(f"NVRM: GPU at PCI:0000:18:00: {UUID}", level=3)
    log.write(LOST, level=3)
    page = scene.triggered("gpu-lost", 60)
    assert page.severity == "critical"
    assert page.key.split("/")[3].startswith(f"gpu:{UUID}")
    assert "GPU 0000:18:00 is lost: Xid 79 (GPU has fallen off the bus)" in page.message.replace("\n", " ")
    assert "Reboot the host" in page.message
    explained = machine.run("holdfast", "explain", "xid", "79").stdout
    assert "RESTART_BM" in explained

    # A restart tells nothing twice, and misses nothing that was written while nobody read.
    before = about(scene, "gpu-lost")
    machine.run("systemctl", "stop", "holdfast")
    log.write("NVRM: Xid (PCI:0000:19:00): 62, 2b25(3504) 00000000 00000000", level=3)
    machine.run("systemctl", "start", "holdfast")
    scene.triggered("gpu-reset-required", 60)
    time.sleep(LOOKS_S)
    assert about(scene, "gpu-lost") == before
    assert {subject.partition("/")[0] for _, subject in about(scene, "gpu-reset-required")} == {"gpu:0000-19-00"}

    # The card that asked for it takes it back; the lost one stays lost.
    taken_back = "GPU recovery action changed from 0x1 (GPU Reset Required) to 0x0 (None)"
    log.write(f"NVRM: Xid (PCI:0000:19:00): 154, {taken_back}", level=3)
    scene.resolved("gpu-reset-required", 60)
    assert ("resolve", f"gpu:{UUID}") not in about(scene, "gpu-lost")


def test_lost_records_are_never_all_well_and_a_lost_card_behind_them_is_told(host: Boot) -> None:
    machine = host("bookworm", llama=False)
    log = driven(machine)
    log.write("eth0: Link is Up", level=6)
    scene = told(machine)
    reads(scene)

    log.lose(500)
    log.write("eth0: Link is Down", level=6)
    machine.wait_for(
        lambda: "gpu.xid host: UNKNOWN: cannot tell: 500 records" in machine.journal("holdfast.service"), 60, "UNKNOWN"
    )
    status = json.loads(machine.run("holdfast", "status", "--json", check=False).stdout)
    assert "records of the kernel's log were lost" in json.dumps(status)
    log.lose(3)
    log.write(LOST, level=3)
    assert "Xid 79" in scene.triggered("gpu-lost", 60).message


def test_the_page_of_a_dead_engine_names_the_xid_that_killed_it(host: Boot) -> None:
    scene = watched(host, "bookworm", engine="gpu = false")
    log = driven(scene.host)
    scene.host.run("systemctl", "restart", "holdfast")
    scene.wait_ready()
    reads(scene)
    fault = "Ch 00000008, intr 10000000. MMU Fault: ENGINE GRAPHICS GPCCLIENT_T1_0 faulted @ 0x7f12_34500000."
    log.write(f"NVRM: Xid (PCI:0000:18:00): 31, pid={scene.engine.pid}, name=llama-server, {fault}", level=3)
    kill(scene.host, scene.engine.pid)
    page = scene.triggered("engine-dead", 60)
    assert "the kernel reported Xid 31 (GPU memory page fault)" in page.message.replace("\n", " ")
    scene.resolved("engine-dead", 120)
    assert scene.engine.generates()
    assert about(scene, "engine-gpu-fault") == []
    assert scene.starts() == 1


def test_an_engine_that_lives_on_after_a_fault_is_told_and_left_alone(host: Boot) -> None:
    scene = watched(host, "bookworm", engine="gpu = false")
    log = driven(scene.host)
    scene.host.run("systemctl", "restart", "holdfast")
    scene.wait_ready()
    reads(scene)
    pid = scene.engine.pid
    log.write(
        f"NVRM: Xid (PCI:0000:18:00): 13, pid={pid}, name=llama-server, Graphics Exception: ESR 0x504730", level=3
    )
    page = scene.triggered("engine-gpu-fault", 90)
    assert "chat met Xid 13 (Compute engine exception) on 0000:18:00 and still runs" in page.message.replace("\n", " ")
    assert (scene.engine.pid, scene.starts()) == (pid, 0)
    scene.host.run("systemctl", "restart", scene.engine.unit)
    scene.resolved("engine-gpu-fault", 90)
