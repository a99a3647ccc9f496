"""The bed itself: what the host tier stands on is proved before anything is tested on it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from bed import (
    Bed,
    BedError,
    BootedHost,
    Client,
    KernelLog,
    PagerInbox,
    fake_devices,
    fake_driver,
    fake_nvml,
    freeze_thread,
    kill,
    llama_unit,
    long_prompt,
    make_deb,
    mirror,
    nvml_library,
    publish,
    set_nvml,
    spin_thread,
    stopped,
    wait_for,
)
from bed.host import sweep
from bed.llama import BIG_STEP
from bed.prerequisites import tools_python

Boot = Callable[..., BootedHost]
SUITES = ("bookworm", "trixie")


def cpu_ticks(host: BootedHost, pid: int) -> int:
    """Return the user-mode CPU time of a process's main thread, in clock ticks."""
    return int(host.read(f"/proc/{pid}/task/{pid}/stat").rpartition(")")[2].split()[11])


@pytest.mark.parametrize("suite", SUITES)
def test_a_host_boots_to_running_alone_in_its_network(host: Boot, suite: str) -> None:
    booted = host(suite)
    assert booted.run("systemctl", "is-system-running").stdout.strip() == "running"
    assert f"VERSION_CODENAME={suite}" in booted.read("/etc/os-release")
    interfaces = [line.split(":")[0].strip() for line in booted.read("/proc/net/dev").splitlines()[2:]]
    assert interfaces == ["lo"]
    assert booted.run("id", "-un", user="nobody").stdout.strip() == "nobody"
    with pytest.raises(BedError, match="exit 3"):
        booted.run("sh", "-c", "exit 3")
    with pytest.raises(TimeoutError):
        booted.run("sleep", "60", timeout=0.5)


@pytest.mark.parametrize("suite", ["resolute", "noble", "jammy"])
def test_an_ubuntu_host_boots_where_its_archive_answers(host: Boot, suite: str) -> None:
    booted = host(suite, llama=False)
    assert f"VERSION_CODENAME={suite}" in booted.read("/etc/os-release")


def test_a_package_with_the_products_dependencies_installs_offline(host: Boot, tmp_path: Path) -> None:
    file = {"/usr/share/bed-probe/version": "1.0"}
    good = make_deb(tmp_path, "bed-probe", fields={"Depends": "python3, adduser, dbus, ca-certificates"}, files=file)
    bad = make_deb(tmp_path, "bed-impossible", fields={"Depends": "no-such-package"})
    for suite in SUITES:
        booted = host(suite, llama=False)
        booted.install_deb(good)
        assert booted.read("/usr/share/bed-probe/version") == "1.0"
        assert booted.install_deb(bad, check=False).returncode != 0


@pytest.mark.parametrize("suite", SUITES)
def test_a_published_upgrade_is_taken_unless_held(host: Boot, tmp_path: Path, suite: str) -> None:
    booted = host(suite, llama=False)
    booted.install_deb(*(make_deb(tmp_path, name, "1.0") for name in ("bed-held", "bed-free")))
    booted.run("apt-mark", "hold", "bed-held")
    publish(booted, [make_deb(tmp_path, name, "2.0") for name in ("bed-held", "bed-free")])
    booted.run("apt-get", "-q", "-y", "upgrade")
    versions = booted.run("dpkg-query", "-W", "-f", "${Package} ${Version}\n", "bed-held", "bed-free").stdout
    assert sorted(versions.splitlines()) == ["bed-free 2.0", "bed-held 1.0"]


def test_further_packages_come_with_the_root_file_system(host: Boot) -> None:
    booted = host(llama=False, packages=["patch"])
    assert "patch" in booted.run("patch", "--version").stdout


def test_a_mirror_whose_pins_the_archive_dropped_takes_what_is_offered_now_and_says_so(bed: Bed) -> None:
    assert bed
    offered = mirror.ubuntu_mirror()
    pins = mirror.pinned(mirror.PINS.read_text(encoding="ascii"))
    index = next(number for number, pin in enumerate(pins) if pin.name == "tzdata")
    pins[index] = replace(pins[index], version="1999a-1", path="pool/main/t/tzdata/tzdata_1999a-1_all.deb", sha256="0")
    folder = offered.folder.with_name("dropped")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        made = mirror.make(pins, folder)
        assert (folder / "dists/noble-security/Release").exists()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    assert "has dropped tzdata 1999a-1: noble-security is what it offers now" in made.notes[0]
    assert made.unrelated["tzdata"] >= offered.unrelated["tzdata"]


def test_kernel_messages_of_the_test_reach_a_reader_in_the_host(host: Boot) -> None:
    booted = host(llama=False)
    log = KernelLog(booted)
    log.write("NVRM: Xid (PCI:0000:01:00): 79, GPU has fallen off the bus.")
    record = booted.run("timeout", "5", "head", "-n1", "/dev/kmsg").stdout
    assert record.startswith("4,1,")
    assert record.endswith(",-;NVRM: Xid (PCI:0000:01:00): 79, GPU has fallen off the bus.\n")


def test_two_hosts_share_neither_ports_nor_files(host: Boot) -> None:
    one, other = host(name="one"), host(name="other")
    for booted in (one, other):
        llama_unit(booted, port=8080)
    one.write("/root/mark", "mine")
    assert not other.exists("/root/mark")
    assert (one.read("/etc/hostname"), one.run("hostname").stdout.strip()) != ("", other.run("hostname").stdout.strip())


def test_a_power_cut_keeps_files_and_the_next_boot_has_its_own_boot_id(host: Boot) -> None:
    booted = host(writable=True, llama=False)
    boot_id, machine_id = booted.read("/proc/sys/kernel/random/boot_id"), booted.read("/etc/machine-id")
    booted.sh("echo kept >/root/mark; sync /root/mark")
    booted.power_cut()
    assert not booted.running
    with pytest.raises(BedError, match="not running"):
        booted.run("true")
    booted.boot_again()
    assert booted.read("/root/mark") == "kept\n"
    assert booted.read("/proc/sys/kernel/random/boot_id") != boot_id
    assert booted.read("/etc/machine-id") == machine_id


def test_an_orderly_reboot_stops_units_and_starts_enabled_ones_again(host: Boot) -> None:
    booted = host("trixie", writable=True)
    unit = llama_unit(booted, service_lines=["ExecStopPost=/bin/sh -c 'echo stopped >>/root/stops'"])
    booted.boot_again()
    assert booted.read("/root/stops") == "stopped\n"
    unit.wait_until_generates()
    assert booted.boots == 2


def test_nothing_of_a_host_is_left_when_it_ends(bed: Bed) -> None:
    with bed.boot(llama=False) as booted:
        init, work = booted._pid, booted.work
        assert work.exists()
    assert not work.exists()
    assert not Path(f"/proc/{init}/root/etc").exists()


def test_a_host_dies_with_its_test_run_and_the_next_run_sweeps_up(bed: Bed) -> None:
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from bed import ensure\n"
        "with ensure().boot(llama=False) as host: print(host.outer_pid(1), host.work, flush=True); input()"
    )
    argv = [sys.executable, "-c", script, str(Path(__file__).parent)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        pid, work = run.stdout.readline().split()
        run.kill()
    wait_for(lambda: not Path(f"/proc/{pid}").exists(), 20, "the host to die")
    sweep()
    assert not Path(work).exists()


@pytest.mark.parametrize("suite", SUITES)
def test_a_frozen_loop_answers_health_and_completes_nothing_until_released(host: Boot, suite: str) -> None:
    booted = host(suite)
    unit = llama_unit(booted)
    with freeze_thread(booted, unit.pid):
        assert unit.client.get("/health").ok
        assert not unit.generates()
        before = cpu_ticks(booted, unit.pid)
        with unit.client.hung(2):
            time.sleep(1)
        assert cpu_ticks(booted, unit.pid) == before
    unit.wait_until_generates()


def test_a_spinning_loop_burns_cpu_and_completes_nothing_until_released(host: Boot) -> None:
    booted = host()
    unit = llama_unit(booted)
    pid = unit.pid
    with spin_thread(booted, pid):
        before = cpu_ticks(booted, pid)
        assert unit.client.get("/health").ok
        assert not unit.generates()
        assert cpu_ticks(booted, pid) > before + 50
    unit.wait_until_generates()
    assert unit.pid == pid


def test_a_frozen_engine_dies_by_kill_and_systemd_sees_it(host: Boot) -> None:
    booted = host()
    unit = llama_unit(booted)
    with freeze_thread(booted, unit.pid):
        kill(booted, unit.pid)
        booted.wait_for(lambda: booted.unit(unit.unit, "Result")["Result"] == "signal", 20, "systemd to see the death")


def test_a_stopped_process_answers_nothing_and_goes_on_afterwards(host: Boot) -> None:
    booted = host()
    unit = llama_unit(booted)
    with stopped(booted, unit.pid):
        assert unit.client.get("/health", timeout=1).status == 0
    unit.wait_until_generates()


def test_an_engine_short_of_cpu_loads_slowly_and_still_comes_up(host: Boot) -> None:
    booted = host()
    unit = llama_unit(booted, model="big", cpu_quota=5, wait=False)
    assert not unit.generates(timeout=1)
    unit.throttle(None)
    unit.wait_until_generates(120)


def test_a_long_prefill_is_one_slow_step_of_a_moving_thread(host: Boot) -> None:
    booted = host()
    unit = llama_unit(booted, model="big", parallel=1, extra_args=BIG_STEP)
    with unit.client.hung(1, long_prompt(2000)) as prefill:
        booted.wait_for(lambda: unit.client.get("/slots").body.count('"is_processing":true'), 20, "the slot to start")
        before = cpu_ticks(booted, unit.pid)
        booted.wait_for(lambda: cpu_ticks(booted, unit.pid) > before + 50, 30, "the thread to have computed")
        assert prefill.records() == []


def test_load_and_timeline_record_when_completions_succeed(host: Boot) -> None:
    booted = host()
    unit = llama_unit(booted)
    began = time.time()
    with unit.client.timeline(0.1) as timeline, unit.client.load(5) as load:
        time.sleep(2)
        with freeze_thread(booted, unit.pid):
            time.sleep(3)
        time.sleep(2)
        assert load.successes()
        assert timeline.longest_gap(began, time.time()) >= 2.5
        assert len(timeline.successes()) >= 10


def test_the_inbox_records_and_misbehaves_as_told(host: Boot) -> None:
    booted = host(llama=False)
    inbox = PagerInbox(booted)
    sender = Client(booted, inbox.port)
    inbox.behave(503, 202, retry_after=7)
    assert [sender.post("/v2/enqueue", {"n": n}).status for n in range(3)] == [503, 202, 202]
    assert [(event.path, event.json()["n"], event.status) for event in inbox.events()] == [
        ("/v2/enqueue", 0, 503), ("/v2/enqueue", 1, 202), ("/v2/enqueue", 2, 202),
    ]  # fmt: skip
    assert inbox.wait_for(lambda event: event.json()["n"] == 2, 5).headers["content-type"] == "application/json"
    inbox.behave(drop=True)
    assert sender.get("/").status == 0
    inbox.refuse()
    assert "Refused" in sender.get("/").error
    inbox.start()
    inbox.behave(hang_s=30)
    assert sender.get("/", timeout=1).status == 0
    assert len(inbox.events()) == 5
    with pytest.raises(BedError, match="what arrived"):
        inbox.wait_for(lambda event: event.path == "/never", 1)


ASK_NVML = """
import sys, pynvml
try:
    pynvml.nvmlInit()
    card = pynvml.nvmlDeviceGetHandleByIndex(1)
    print(pynvml.nvmlSystemGetDriverVersion(), pynvml.nvmlDeviceGetCount(), pynvml.nvmlDeviceGetUUID(card),
          pynvml.nvmlDeviceGetMemoryInfo(card).used >> 20,
          pynvml.nvmlDeviceGetMemoryInfo(card, version=pynvml.nvmlMemory_v2).used >> 20,
          [(p.pid, p.usedGpuMemory >> 20) for p in pynvml.nvmlDeviceGetComputeRunningProcesses(card)],
          pynvml.nvmlDeviceGetName(card), sep="|")
    pynvml.nvmlShutdown()
except pynvml.NVMLError as error:
    print(error.value)
"""


@pytest.mark.usefixtures("bed")
@pytest.mark.parametrize(
    ("settings", "answer"),
    [
        ("gpus = 2\\ndriver = 550.54.15\\nuuid = GPU-0a\\nmemory_used_mib = 77\\nprocesses = 41:7, 42:9\\nname = Card",
         "550.54.15|2|GPU-0b|77|77|[(41, 7), (42, 9)]|Card"),
        ("behaviour = mismatch", "18"),
        ("behaviour = not_loaded", "9"),
        ("gpus = 2\\nbehaviour = lost", "15"),
        ("gpus = 2\\nlost_gpu = 1", "15"),
        ("behaviour = error:999", "999"),
    ],
)  # fmt: skip
def test_the_real_pynvml_believes_the_fake_library(tmp_path: Path, settings: str, answer: str) -> None:
    conf = tmp_path / "nvml.conf"
    conf.write_text(settings.replace("\\n", "\n"))
    done = subprocess.run(
        [str(tools_python()), "-c", ASK_NVML], text=True, check=True, capture_output=True, timeout=60,
        env={"LD_LIBRARY_PATH": str(nvml_library().parent), "HOLDFAST_FAKE_NVML": str(conf)},
    )  # fmt: skip
    assert done.stdout.strip() == answer


@pytest.mark.parametrize("suite", SUITES)
def test_driver_and_library_disagree_in_a_host_as_after_a_night_of_upgrades(host: Boot, suite: str) -> None:
    booted = host(suite, llama=False)
    init = "import ctypes; print(ctypes.CDLL('libnvidia-ml.so.1').nvmlInit_v2())"

    def answer() -> str:
        return booted.run("python3", "-IS", "-c", init).stdout.strip()

    fake_nvml(booted, library="550.54.15", behaviour="auto")
    assert answer() == "9"
    fake_driver(booted, "550.54.15")
    fake_devices(booted)
    assert answer() == "0"
    assert "Kernel Module  550.54.15" in booted.read("/proc/driver/nvidia/version")
    fake_nvml(booted, library="580.178.04", behaviour="auto")
    assert answer() == "18"
    fake_driver(booted, "580.178.04", open_kernel=True)
    assert answer() == "0"
    fake_driver(booted, None)
    assert answer() == "9"


def test_a_hanging_library_looks_like_a_stuck_driver(host: Boot) -> None:
    booted = host(llama=False)
    fake_nvml(booted, behaviour="hang_d", hang_s=300)
    init = "import ctypes; ctypes.CDLL('libnvidia-ml.so.1').nvmlInit_v2()"
    booted.run("systemd-run", "--unit=prober", "python3", "-IS", "-c", init)
    pid = booted.main_pid("prober.service")
    booted.wait_for(lambda: "State:\tD" in booted.read(f"/proc/{pid}/status"), 20, "state D")
    set_nvml(booted, behaviour="ok")
    assert booted.run("python3", "-IS", "-c", init, check=False).returncode == 0
