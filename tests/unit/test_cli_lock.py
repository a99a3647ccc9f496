"""The driver lock: shown beside what is there, written from what is loaded, never over a disagreement by accident."""

from __future__ import annotations

from typing import Any

import pytest

from agent import plugin
from agent.cli.lock import Versions, judge
from agent.host import changes
from agent.host.driver import read_lock
from agent.model import Moment, Status
from agent.plugin import Noop, Plan, Target
from agent.steps import Performer
from tests.support.cli import Runner, Said, holdfast
from tests.support.door import SOCKET, with_door
from tests.support.fake_host import FakeHost, Link
from tests.support.kernels import NEW, OLD, kernel, libraries, modinfo, module_path, running, tells

LOCK = "/etc/holdfast/driver.lock"
LOADED = {"/sys/module/nvidia/version": "580.178.04\n"}
LIBRARY = {
    "/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1": Link("libnvidia-ml.so.580.178.04"),
    "/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.580.178.04": "",
}
OTHER_LIBRARY = {
    "/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1": Link("libnvidia-ml.so.590.10"),
    "/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.590.10": "",
}


@pytest.mark.parametrize(
    ("versions", "status"),
    [
        (Versions("1", "", "1", "1"), Status.OK),
        (Versions("1", "", "1", None), Status.OK),
        (Versions(None, "absent", None, None), Status.OK),
        (Versions(None, "absent", "1", "1"), Status.WARNING),
        (Versions(None, "malformed", "1", "1"), Status.CRITICAL),
        (Versions("1", "", "2", "2"), Status.CRITICAL),
        (Versions("1", "", "1", "2"), Status.CRITICAL),
        (Versions(None, "absent", "1", "2"), Status.CRITICAL),
        (Versions("1", "", None, "1"), Status.CRITICAL),
        (Versions("1", "", None, None), Status.CRITICAL),
        (Versions("1", "", "1", "1", "1"), Status.OK),
        (Versions("1", "", "1", "1", "2"), Status.CRITICAL),
    ],
)
def test_the_versions_agree_or_do_not(versions: Versions, status: Status) -> None:
    assert judge(versions)[0] is status


PLACE = "kernel/nvidia-580srv/nvidia.ko"


def box(*with_module: str, loaded: str = "580.178.04", **more: str) -> FakeHost:
    """A consistent host on an old and a new kernel; those named have the loaded driver's module."""
    files = {**running(OLD, loaded), **libraries(loaded), **kernel(OLD), **kernel(NEW)}
    for release in with_module:
        files |= kernel(release, PLACE)
    answers = {module_path(release, PLACE): modinfo(loaded, release) for release in with_module}
    return FakeHost.build({**files, **more}, commands=tells(answers))  # type: ignore[arg-type]


def test_show_puts_every_truth_side_by_side() -> None:
    said = holdfast("lock", "show", host=box(OLD, NEW, **{LOCK: "580.178.04\n"}), width=200)
    assert said.code == 0, said.out
    rows = {line[:16].strip(): line[16:].split()[0] for line in said.out.splitlines()[1:7]}
    truths = ("lock", "loaded", "libnvidia-ml", "libcuda", "running kernel", "next boot")
    assert rows == dict.fromkeys(truths, "580.178.04")
    assert f"{NEW} (newest kernel in /boot, no boot loader found): {module_path(NEW, PLACE)}" in " ".join(
        said.out.split()
    )
    assert said.out.splitlines()[-1].startswith("OK")


def test_show_names_the_trap_before_it_snaps() -> None:
    said = holdfast("lock", "show", host=box(OLD, **{LOCK: "580.178.04\n"}), width=120)
    assert said.code == 2
    assert f"next boot       none        {NEW}" in said.out
    assert "has no NVIDIA driver" in said.out


def test_show_says_what_cannot_be_told_and_by_whom() -> None:
    said = holdfast("lock", "show", host=box(OLD, NEW, **{LOCK: "580.178.04\n"}), uid=1000, width=120)
    assert said.code == 3
    assert "next boot       unknown     cannot tell: only root can observe this" in said.out


def test_show_as_json_has_every_truth_by_name() -> None:
    data = holdfast("lock", "show", "--json", host=box(OLD)).json["data"]
    assert (data["locked"], data["problem"], data["loaded"], data["library"], data["cuda"]) == (
        None, "absent", "580.178.04", "580.178.04", "580.178.04",
    )  # fmt: skip
    assert data["next_boot"]["next.release"] == NEW
    assert data["next_boot"]["next.absent"] == f"kernel {NEW} has no nvidia module"
    assert "known" not in data["next_boot"]


def test_show_on_a_host_without_nvidia_is_quiet() -> None:
    said = holdfast("lock", "show", host=FakeHost.build({"/boot/vmlinuz-6.1": ""}))
    assert said.code == 0
    assert "no NVIDIA driver" in said.out


def test_write_locks_the_loaded_version_and_says_who_and_when() -> None:
    host = FakeHost.build({**LOADED, **LIBRARY})
    said = wrote(host, environ={"SUDO_USER": "alice"})
    assert said.code == 0, said.err
    assert f"{LOCK} now says 580.178.04" in said.out.splitlines(), said.out
    text = host.files.read_text(LOCK)
    assert text.splitlines()[-1] == "580.178.04"
    assert "locked 2027-01-15T08:00:00.000Z by alice" in text
    assert read_lock(host).version == "580.178.04"


def test_write_refuses_while_driver_and_libraries_disagree() -> None:
    host = FakeHost.build({**LOADED, **OTHER_LIBRARY})
    said = wrote(host)
    assert said.code == 77
    assert "[driver-mismatch]" in said.err
    assert "--force" in said.err
    assert not host.files.exists(LOCK)


def test_write_with_force_says_so_in_the_file() -> None:
    host = FakeHost.build({**LOADED, **OTHER_LIBRARY})
    assert wrote(host, "--force").code == 0
    said = "# forced: the loaded module is 580.178.04, libnvidia-ml on disk is 590.10"
    assert said in host.files.read_text(LOCK).splitlines()
    assert read_lock(host).version == "580.178.04"


def wrote(host: FakeHost, *options: str, **surroundings: Any) -> Said:
    """`lock write` through the runner's door; saving what makes up the driver is another step's business."""
    with_runner, _ = with_door(host, leave_out={"driver.save"})
    return holdfast("lock", "write", *options, host=with_runner, **surroundings)


def test_write_refuses_a_host_whose_next_boot_would_break_it() -> None:
    said = wrote(box(OLD))
    assert said.code == 77
    assert "[driver-inconsistent]" in said.err
    assert f"the kernel that boots next, {NEW}, would load no driver" in " ".join(said.err.split())
    assert wrote(box(OLD, NEW)).code == 0


def test_write_refuses_a_library_of_another_version() -> None:
    host = box(OLD, NEW)
    host.files.entries |= libraries("580.178.04", cuda="590.10")
    assert "libcuda on disk is 590.10" in wrote(host).err
    assert wrote(host, "--force").code == 0
    assert "# forced: the loaded module is 580.178.04, libcuda on disk is 590.10" in host.files.read_text(LOCK)


def test_write_says_what_it_could_not_check() -> None:
    host = FakeHost.build({**LOADED, **LIBRARY})
    said = wrote(host)
    assert said.code == 0
    assert "could not be checked: which kernel boots next" in said.out
    assert "# not told: which kernel boots next" in host.files.read_text(LOCK)
    assert read_lock(host).version == "580.178.04"


def test_write_without_a_driver_writes_nothing() -> None:
    host = FakeHost.build(LIBRARY)
    said = wrote(host)
    assert (said.code, host.files.exists(LOCK)) == (77, False)
    assert "[no-driver]" in said.err


def test_write_leaves_a_lock_alone_that_already_says_so() -> None:
    host = FakeHost.build({**LOADED, **LIBRARY, LOCK: "# mine\n580.178.04\n"})
    said = wrote(host, "--json")
    assert (said.code, said.json["kind"], said.json["data"]["changed"]) == (0, "lock-written", False)
    assert host.files.read_text(LOCK) == "# mine\n580.178.04\n"


def test_only_root_writes() -> None:
    host = FakeHost.build({**LOADED, **LIBRARY})
    said = holdfast("lock", "write", host=host, uid=1000)
    assert (said.code, host.files.written) == (77, [])
    assert "sudo holdfast lock write" in said.err


def test_a_name_with_line_breaks_cannot_add_a_line_to_the_lock() -> None:
    host = FakeHost.build({**LOADED, **LIBRARY})
    assert wrote(host, environ={"SUDO_USER": "eve\n550.54.15"}).code == 0
    assert read_lock(host).version == "580.178.04"
    assert "by eve_550.54.15" in host.files.read_text(LOCK)


def test_write_is_asked_of_the_runner_with_who_and_whether_forced() -> None:
    host, door = with_door(FakeHost.build({**LOADED, **OTHER_LIBRARY}), leave_out={"driver.save"})
    assert holdfast("lock", "write", "--force", host=host, environ={"SUDO_USER": "alice"}).code == 0
    asked = door.asked[0]
    assert (asked["runbook"], asked["subject"], asked["force"]) == ("write-lock", "host", True)
    assert asked["args"] == {"by": "alice", "force": True}


def test_an_open_change_refuses_to_write_because_finishing_it_does() -> None:
    change = changes.Change("1", "580.178.04", "", "CVE", Moment(0.0, 0.0, "boot-1"), 3600.0, "alice", "550.54.15")
    said = wrote(FakeHost.build({**LOADED, **LIBRARY, changes.FILE: changes.text(change)}))
    assert (said.code, "[change-open]" in said.err) == (77, True)
    assert "holdfast change status" in said.err
    broken = wrote(FakeHost.build({**LOADED, **LIBRARY, changes.FILE: "?"}), "--force")
    assert (broken.code, "[change-unreadable]" in broken.err) == (77, True)


def test_a_lock_that_cannot_be_written_is_an_error_with_the_run_that_tells() -> None:
    events = [("ended", {"outcome": "failed", "summary": "No space left on device", "code": "step-failed"})]
    said = holdfast("lock", "write", host=FakeHost.build(ipc={SOCKET: Runner(events)}))
    assert (said.code, "No space left on device [step-failed]" in said.err) == (70, True)
    assert "holdfast audit show" in said.err
    gone = holdfast("lock", "write", host=FakeHost.build(ipc={SOCKET: Runner([("accepted", {})])}))
    assert (gone.code, "[runner-gone]" in gone.err) == (69, True)


def test_undo_puts_the_old_lock_back_and_no_other_hands_work() -> None:
    for old in (None, "# mine\n550.54.15\n"):
        host = FakeHost.build({**LOADED, **LIBRARY, **({LOCK: old} if old else {})})
        action = plugin.actions()["lock.write"]
        target = Target("host", action.params.model_validate({"by": "alice"}), 0.0)
        plan = action.plan(host, target, target.params)
        assert action.undo is not None
        assert plan.before is not None
        assert untouched(action.undo(host, target, target.params, plan.before))
        Performer(host).perform(plan)
        Performer(host).perform(action.undo(host, target, target.params, plan.before))
        assert (host.files.read_text(LOCK) if host.files.exists(LOCK) else None) == old
        Performer(host).perform(plan)
        host.files.write_atomic(LOCK, "595.10\n")
        Performer(host).perform(action.undo(host, target, target.params, plan.before))
        assert host.files.read_text(LOCK) == "595.10\n"


def untouched(plan: Plan) -> bool:
    return [isinstance(step, Noop) and step.untouched for step in plan.steps] == [True]


def test_verify_is_the_check() -> None:
    said = holdfast("lock", "verify", host=FakeHost.build({**LOADED, **LIBRARY, LOCK: "550.54.15\n"}))
    assert said.code == 2
    assert said.out.startswith("driver.lock CRITICAL - ")
