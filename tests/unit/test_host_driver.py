"""Reading the driver's traces, versions and lock from files."""

from __future__ import annotations

import pytest

from agent.errors import FileTrouble
from agent.host import driver, nvml
from tests.support.fake_host import FakeHost, Link, Special

PCI = "/sys/bus/pci/devices/0000:01:00"
LIB = "/usr/lib/x86_64-linux-gnu"
PROPRIETARY = (
    "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.178.04  Tue Jul  7 12:38:21 UTC 2026\n"
    "GCC version:  gcc version 13.3.0 (Ubuntu 13.3.0-6ubuntu2~24.04)\n"
)
OPEN = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.178.04  Release Build  "
    "(dvs-builder@U22-I3-AE18-16-4)  Tue Jul  7 12:18:12 UTC 2026\nGCC version:\n"
)


@pytest.mark.parametrize(
    "files",
    [
        {"/proc/driver/nvidia/version": PROPRIETARY},
        {"/sys/module/nvidia/version": "580.178.04\n"},
        {"/dev/nvidiactl": Special()},
        {"/etc/holdfast/driver.lock": "580.178.04\n"},
        {f"{LIB}/libnvidia-ml.so.1": Link("libnvidia-ml.so.580.178.04"), f"{LIB}/libnvidia-ml.so.580.178.04": ""},
        {f"{PCI}.0/vendor": "0x10de\n", f"{PCI}.0/class": "0x030200\n"},
        {"/proc/sys/kernel/osrelease": "6.8.0-31-generic\n",
         "/lib/modules/6.8.0-31-generic/modules.dep": "kernel/a.ko:\nkernel/nvidia-550srv/nvidia.ko: kernel/b.ko\n"},
        {"/proc/sys/kernel/osrelease": "6.1.0-40-amd64\n",
         "/lib/modules/6.1.0-40-amd64/modules.dep": "updates/dkms/nvidia-current.ko:\n"},
        {"/proc/sys/kernel/osrelease": "6.12\n", "/lib/modules/6.12/modules.dep": "updates/dkms/nvidia.ko.zst:\n"},
    ],
)  # fmt: skip
def test_any_trace_of_nvidia_is_seen(files: dict[str, object]) -> None:
    assert driver.traces(FakeHost.build(files))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "files",
    [
        {},
        {f"{PCI}.0/vendor": "0x1002\n", f"{PCI}.0/class": "0x030000\n"},
        # The sound device of a card that was taken out of the driver's hands is not a card.
        {f"{PCI}.1/vendor": "0x10de\n", f"{PCI}.1/class": "0x040300\n"},
        {"/proc/sys/kernel/osrelease": "6.8\n",
         "/lib/modules/6.8/modules.dep": "kernel/drivers/video/fbdev/nvidia/nvidiafb.ko:\nkernel/x/nvidia_wmi.ko:\n"},
    ],
)  # fmt: skip
def test_without_nvidia_there_is_no_trace(files: dict[str, str]) -> None:
    assert not driver.traces(FakeHost.build(files))


@pytest.mark.parametrize("text", [PROPRIETARY, OPEN])
def test_the_loaded_version_is_read_from_both_kinds_of_module(text: str) -> None:
    assert driver.loaded_version(FakeHost.build({"/proc/driver/nvidia/version": text})) == "580.178.04"


def test_the_module_itself_is_believed_first() -> None:
    files = {"/proc/driver/nvidia/version": PROPRIETARY, "/sys/module/nvidia/version": "550.120\n"}
    assert driver.loaded_version(FakeHost.build(files)) == "550.120"


def test_nothing_loaded_is_none() -> None:
    assert driver.loaded_version(FakeHost.build()) is None


@pytest.mark.parametrize(
    "files",
    [{"/proc/driver/nvidia/version": "NVRM version: something else\n"}, {"/sys/module/nvidia/version": "\n"}],
)
def test_a_module_that_does_not_say_its_version_is_not_none(files: dict[str, str]) -> None:
    with pytest.raises(FileTrouble):
        driver.loaded_version(FakeHost.build(files))


def library(folder: str, version: str) -> dict[str, str | Link]:
    return {
        f"{folder}/libnvidia-ml.so.1": Link(f"libnvidia-ml.so.{version}"),
        f"{folder}/libnvidia-ml.so.{version}": "",
    }


def test_the_library_is_found_where_each_distribution_puts_it() -> None:
    assert driver.library_version(FakeHost.build(library(LIB, "580.178.04"))) == "580.178.04"
    debian = library(f"{LIB}/nvidia/current", "535.261.03")
    assert driver.library_version(FakeHost.build(debian)) == "535.261.03"
    alternatives = {
        **debian,
        f"{LIB}/libnvidia-ml.so.1": Link("/etc/alternatives/glx--libnvidia-ml.so.1"),
        "/etc/alternatives/glx--libnvidia-ml.so.1": Link(f"{LIB}/nvidia/current/libnvidia-ml.so.1"),
    }
    assert driver.library_version(FakeHost.build(alternatives)) == "535.261.03"


def test_the_loaders_own_directories_come_first_and_other_word_sizes_never() -> None:
    files = {
        **library(LIB, "580.178.04"),
        **library("/opt/nvidia/lib64", "550.120"),
        **library("/usr/lib/i386-linux-gnu", "470.1"),
        "/etc/ld.so.conf": "include /etc/ld.so.conf.d/*.conf\n",
        "/etc/ld.so.conf.d/a.conf": "# 32 bit\n/usr/lib/i386-linux-gnu\n/usr/lib32\n",
        "/etc/ld.so.conf.d/b.conf": "/opt/nvidia/lib64/  # local\n",
        "/etc/ld.so.conf.d/c.off": "/usr/local/lib\n",
    }
    assert driver.library_version(FakeHost.build(files)) == "550.120"


def test_libcuda_is_read_like_the_other_library_but_not_where_it_is_newer_on_purpose() -> None:
    files = {
        f"{LIB}/libcuda.so.1": Link("libcuda.so.550.54.15"),
        f"{LIB}/libcuda.so.550.54.15": "",
        "/usr/local/cuda-13.0/compat/libcuda.so.1": Link("libcuda.so.580.178.04"),
        "/usr/local/cuda-13.0/compat/libcuda.so.580.178.04": "",
        "/etc/ld.so.conf.d/000_cuda.conf": "/usr/local/cuda-13.0/compat\n",
    }
    assert driver.library_version(FakeHost.build(files), driver.CUDA_LIBRARY) == "550.54.15"


@pytest.mark.parametrize(("text", "is_open"), [(PROPRIETARY, False), (OPEN, True), ("", None)])
def test_the_loaded_module_says_whether_it_is_the_open_one(text: str, is_open: bool | None) -> None:
    assert driver.loaded_is_open(FakeHost.build({"/proc/driver/nvidia/version": text})) is is_open


def test_no_library_is_none_and_a_nameless_one_is_malformed() -> None:
    assert driver.library_version(FakeHost.build()) is None
    with pytest.raises(FileTrouble) as trouble:
        driver.library_version(FakeHost.build({f"{LIB}/libnvidia-ml.so.1": ""}))
    assert trouble.value.kind == "malformed"


# --- the lock ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "580.178.04",
        "580.178.04\n",
        "\ufeff580.178.04\r\n",
        "# pinned by me\n\n  580.178.04  because it works\n",
        "580.178.04\n580.178.04\n580.178.04\n",  # nvidia-smi on three GPUs
        "580.178.04\n# 550.120\n",
    ],
)
def test_a_lock_is_read(text: str) -> None:
    assert driver.read_lock(FakeHost.build({driver.LOCK_FILE: text})) == driver.Lock("580.178.04")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "empty"),
        ("# only a comment\n\n", "empty"),
        ("latest\n", "malformed"),
        ("580\n", "malformed"),
        ("580.178.04-0ubuntu1\n", "malformed"),
        ("Failed to initialize NVML: Driver/library version mismatch\n", "malformed"),
        ("\ufffd\ufffd5\x008\x000\x00", "malformed"),
        ("580.178.04\n550.120\n", "contradictory"),
        ("580.178.04\nnonsense\n", "malformed"),
        ("1" * 70_000, "malformed"),
        (Special(), "not-a-regular-file"),
        (FileTrouble("Permission denied", kind="denied"), "unreadable"),
        (FileTrouble("Input/output error", kind="other"), "unreadable"),
        (FileTrouble("gone", kind="missing"), "absent"),
    ],
)
def test_each_problem_of_a_lock_has_its_name(content: object, problem: str) -> None:
    lock = driver.read_lock(FakeHost.build({driver.LOCK_FILE: content}))  # type: ignore[dict-item]
    assert (lock.version, lock.problem) == (None, problem)
    assert lock.detail


def test_a_lock_that_is_a_directory_is_not_a_regular_file() -> None:
    host = FakeHost.build({f"{driver.LOCK_FILE}/x": ""})
    assert driver.read_lock(host).problem == "not-a-regular-file"


def test_a_lock_that_is_a_dangling_link_is_not_taken_for_no_lock() -> None:
    lock = driver.read_lock(FakeHost.build({driver.LOCK_FILE: Link("/mnt/gone")}))
    assert (lock.problem, lock.detail) == ("not-a-regular-file", f"{driver.LOCK_FILE} is a link that leads nowhere")


# --- NVML ----------------------------------------------------------------------------------------------------

GPU = {
    "uuid": "GPU-1", "name": "NVIDIA H200", "memory_used_bytes": 5, "memory_total_bytes": 9,
    "utilisation_percent": None, "pids": [[42, 4], [43, None]],
}  # fmt: skip


def test_an_answer_of_nvml_is_read_whole() -> None:
    said = {"code": 0, "meaning": "", "driver_version": "580.178.04", "gpus": [GPU]}
    answer = nvml.ask(FakeHost.build(child={"nvml": said}), 5.0)
    expected = nvml.Gpu("GPU-1", "NVIDIA H200", 5, 9, None, ((42, 4), (43, None)))
    assert answer == nvml.NvmlAnswer(0, "", "580.178.04", (expected,))


def test_silence_is_none_and_a_failed_probe_is_not_silence() -> None:
    assert nvml.ask(FakeHost.build(child={"nvml": None}), 5.0) is None
    failed = nvml.ask(FakeHost.build(child={"nvml": {"failed": "it ended with status -11 and no answer"}}), 5.0)
    assert failed is not None
    assert failed.code == nvml.PROBE_FAILED
    assert "-11" in failed.meaning


@pytest.mark.parametrize("said", [{}, {"code": "x"}, {"code": 0, "meaning": "", "driver_version": "1", "gpus": [{}]}])
def test_an_answer_that_is_not_understood_is_a_failed_probe(said: dict[str, object]) -> None:
    answer = nvml.ask(FakeHost.build(child={"nvml": said}), 5.0)
    assert answer is not None
    assert answer.code == nvml.PROBE_FAILED
