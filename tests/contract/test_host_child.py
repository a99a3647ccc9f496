"""The disposable child that asks the driver: it may hang, and must never hang its asker or be doubled."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from agent.host import child as child_module
from agent.host import nvml
from agent.host.child import RealChild
from agent.host.files import RealFiles
from agent.host.real import real_host
from tests.support.loopback import assert_at_deadline, wait_until


def child(tmp_path: Path, code: str) -> RealChild:
    program = tmp_path / "probe.py"
    program.write_text(code)
    return RealChild(RealFiles(), {"probe": program})


def test_a_child_answers_with_one_line_and_is_reaped(tmp_path: Path) -> None:
    asked = child(tmp_path, "import sys\nprint('{\"isolated\": %d}' % sys.flags.isolated)")
    assert asked.ask("probe", deadline_s=10) == {"isolated": 1}
    assert asked.stuck() is None
    assert asked.ask("probe", deadline_s=10) == {"isolated": 1}


def test_a_child_that_hangs_is_left_alone_and_never_doubled(tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    asked = child(tmp_path, f"import time\nopen({str(marks)!r}, 'a').write('x')\ntime.sleep(0.8)\nprint('{{}}')")
    started = time.monotonic()
    assert asked.ask("probe", deadline_s=0.4) is None
    assert_at_deadline(time.monotonic() - started, 0.4)
    stuck = asked.stuck()
    assert stuck is not None
    assert stuck["state"] == "S"
    assert stuck["age_s"] > 0.3
    assert asked.ask("probe", deadline_s=0.1) is None
    assert marks.read_text() == "x"
    wait_until(lambda: asked.stuck() is None)  # it was never killed: it ended by itself and was reaped
    assert asked.ask("probe", deadline_s=10) == {}
    assert marks.read_text() == "xx"


@pytest.fixture
def own_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A probe of this test's own: all probes of one file take turns, also those of tests that run beside it."""
    program = tmp_path / "nvml_child.py"
    program.write_bytes(child_module.PROGRAMS["nvml"].read_bytes())
    monkeypatch.setitem(child_module.PROGRAMS, "nvml", program)  # type: ignore[arg-type]


@pytest.mark.usefixtures("own_turn")
def test_a_question_that_hangs_keeps_every_other_asker_of_this_host_out_of_the_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pynvml.py").write_text(
        "import os, time\n"
        "class NVMLError(Exception): pass\n"
        "def nvmlInit():\n"
        f"    open('{tmp_path}/inside', 'a').write(str(os.getpid()) + ' ')\n"
        "    time.sleep(60)\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    first, second = RealChild(RealFiles()), RealChild(RealFiles())
    asking = threading.Thread(target=lambda: first.ask("nvml", deadline_s=30.0))
    asking.start()
    inside = tmp_path / "inside"
    wait_until(lambda: inside.exists() and inside.read_text(encoding="utf-8") != "")
    assert second.ask("nvml", deadline_s=1.0) is None
    late = second.stuck()
    os.kill(int(inside.read_text(encoding="utf-8").split()[0]), signal.SIGTERM)
    asking.join()
    assert late is not None, "it still waits for its turn"
    wait_until(lambda: len(inside.read_text(encoding="utf-8").split()) == 2)  # and gets it when the first has gone
    os.kill(int(late["pid"]), signal.SIGTERM)
    wait_until(lambda: second.stuck() is None)


def test_a_child_that_answers_and_then_hangs_has_answered_and_is_stuck(tmp_path: Path) -> None:
    asked = child(tmp_path, "import time\nprint('{\"a\": 1}', flush=True)\ntime.sleep(6)")
    assert asked.ask("probe", deadline_s=3) == {"a": 1}
    assert asked.stuck() is not None
    wait_until(lambda: asked.stuck() is None)


@pytest.mark.parametrize(
    "code", ["import os\nos.abort()", "raise SystemExit(3)", "print('not json')", "print('[]')", "print('x' * 3000000)"]
)
def test_a_child_that_ends_without_an_answer_is_not_silence(tmp_path: Path, code: str) -> None:
    answer = child(tmp_path, code).ask("probe", deadline_s=10)
    assert answer is not None
    assert answer["failed"]


def test_two_threads_ask_one_after_the_other(tmp_path: Path) -> None:
    asked = child(tmp_path, "import time\ntime.sleep(0.3)\nprint('{}')")
    answers: list[object] = []
    threads = [threading.Thread(target=lambda: answers.append(asked.ask("probe", deadline_s=10))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [{}, {}, {}]


def test_the_real_probe_answers_whatever_driver_there_is() -> None:
    answer = nvml.ask(real_host(), 30.0)
    assert answer is not None
    assert answer.code != nvml.PROBE_FAILED
    assert answer.meaning or answer.code == nvml.SUCCESS


PYNVML = """
import time
class NVMLError(Exception):
    def __init__(self, value):
        self.value = value
    def __str__(self):
        return {15: "GPU is lost"}.get(self.value, "no")
class Of:
    def __init__(self, **known):
        self.__dict__.update(known)
def unsupported(handle):
    raise NVMLError(3)
def nvmlInit():
    INIT
nvmlSystemGetDriverVersion = lambda: "580.178.04"
nvmlDeviceGetCount = lambda: 2
def nvmlDeviceGetHandleByIndex(index):
    if index in LOST:
        raise NVMLError(15)
    return index
nvmlDeviceGetMemoryInfo = lambda handle: Of(used=5, total=9)
nvmlDeviceGetUtilizationRates = unsupported
nvmlDeviceGetComputeRunningProcesses = lambda handle: [Of(pid=7, usedGpuMemory=3)]
nvmlDeviceGetGraphicsRunningProcesses = lambda handle: [Of(pid=8, usedGpuMemory=None)]
nvmlDeviceGetUUID = lambda handle: f"GPU-{handle}"
nvmlDeviceGetName = lambda handle: "NVIDIA H200"
nvmlDeviceGetCudaComputeCapability = lambda handle: [9, 0]
"""


@pytest.mark.usefixtures("own_turn")
@pytest.mark.parametrize(
    ("init", "lost", "code", "gpus"),
    [("pass", (), 0, 2), ("pass", (1,), 15, 1), ("raise NVMLError(18)", (), 18, 0), ("time.sleep(1)", (), None, 0)],
    ids=["well", "one-lost", "mismatch", "hangs"],
)
def test_the_probe_tells_what_pynvml_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, init: str, lost: tuple[int, ...], code: int | None, gpus: int
) -> None:
    (tmp_path / "pynvml.py").write_text(PYNVML.replace("INIT", init).replace("LOST", repr(lost)))
    monkeypatch.syspath_prepend(str(tmp_path))
    host = real_host()
    answer = nvml.ask(host, 10.0 if code is not None else 0.5)
    if answer is None:
        assert code is None
        wait_until(lambda: host.child.stuck() is None)
        return
    assert (answer.code, len(answer.gpus)) == (code, gpus)
    for gpu in answer.gpus:
        assert (gpu.memory_used_bytes, gpu.utilisation_percent, gpu.pids) == (5, None, ((7, 3), (8, None)))
        assert gpu.compute_capability == "9.0"
