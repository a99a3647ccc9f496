"""The driver's truths over time: what is read again, what stands while packages change, and what contradicts what."""

from __future__ import annotations

from typing import Any

import pytest

from agent import frame, plugin
from agent.host import driver_truth, packages
from agent.model import CheckResult, Results, Status
from agent.plugin import Target
from tests.support.fake_host import FakeHost
from tests.support.kernels import NEW, OLD, A, B, kernel, libraries, modinfo, module_path, running, tells

PLACE = "kernel/nvidia-550srv/nvidia.ko"
LOCK = {"/etc/holdfast/driver.lock": f"{A}\n"}
CHECK = plugin.checks()["driver.next_boot"]


def box(**more: Any) -> FakeHost:
    """A locked host with two good kernels."""
    files = {**running(OLD, A), **libraries(A), **kernel(OLD, PLACE), **kernel(NEW, PLACE), **LOCK}
    files |= {packages.LOCKS[0]: "", "/proc/locks": "", "/proc/77/comm": "unattended-upgr\n"}
    answers = {module_path(release, PLACE): modinfo(A, release) for release in (OLD, NEW)}
    return FakeHost.build({**files, **more}, commands=tells(answers))  # type: ignore[arg-type]


def look(host: FakeHost, before: CheckResult | None = None) -> CheckResult:
    return frame.run_check(host, CHECK, Target("host", CHECK.params(), CHECK.every_s), frame.before_of(before))


def begin_change(host: FakeHost) -> None:
    """Someone takes dpkg's lock, and the next kernel's module goes away for a moment."""
    del host.files.entries[module_path(NEW, PLACE)]
    inode = host.files.stat(packages.LOCKS[0]).inode
    host.files.entries["/proc/locks"] = f"1: POSIX  ADVISORY  WRITE 77 fe:00:{inode} 0 EOF\n"


def findings(result: CheckResult) -> set[str]:
    rules = plugin.rules()
    results = Results({(result.check, result.subject): result})
    return {found.id for name in ("next-boot-no-driver", "next-boot-drift", "reboot-will-break")
            for found in rules[name].diagnose(results, result.at)}  # fmt: skip


def test_a_second_look_asks_no_program_again() -> None:
    host = box()
    first = look(host)
    assert first.status is Status.OK
    asked = len(host.run.calls)
    second = look(host, first)
    assert second.evidence == first.evidence
    assert len(host.run.calls) == asked == 2


def test_a_module_that_was_replaced_is_seen_at_the_next_look() -> None:
    host = box()
    first = look(host)
    host.files.entries[module_path(NEW, PLACE)] = "rebuilt, and of another size"
    host.run.answer(("modinfo", module_path(NEW, PLACE)), modinfo(B, NEW))
    assert look(host, first).status is Status.CRITICAL


def test_while_packages_change_the_last_answer_stands() -> None:
    host = box()
    settled = look(host)
    begin_change(host)
    during = look(host, settled)
    assert during.status is Status.OK
    assert "unattended-upgr (pid 77) is changing packages" in str(during.value("change"))
    assert findings(during) == set()
    host.files.entries["/proc/locks"] = ""
    after = look(host, during)
    assert after.status is Status.CRITICAL
    assert findings(after) == {"next-boot-no-driver"}
    assert after.value("change.since") is None


def test_what_was_wrong_before_a_change_stays_wrong_during_it() -> None:
    host = box()
    del host.files.entries[module_path(NEW, PLACE)]
    wrong = look(host)
    inode = host.files.stat(packages.LOCKS[0]).inode
    host.files.entries["/proc/locks"] = f"1: POSIX  ADVISORY  WRITE 77 fe:00:{inode} 0 EOF\n"
    assert findings(look(host, wrong)) == {"next-boot-no-driver"}


def test_a_change_that_is_found_running_is_waited_for() -> None:
    host = box()
    begin_change(host)
    first = look(host)
    assert first.status is Status.UNKNOWN
    assert "is changing packages" in first.summary
    host.clock.advance(600)
    assert look(host, first).status is Status.UNKNOWN


def test_a_change_that_never_ends_does_not_blind_us() -> None:
    host = box()
    settled = look(host)
    begin_change(host)
    during = look(host, settled)
    host.clock.advance(1799)
    during = look(host, during)
    assert during.status is Status.OK
    host.clock.advance(2)
    assert look(host, during).status is Status.CRITICAL


def test_what_is_locked_now_counts_also_during_a_change() -> None:
    host = box()
    settled = look(host)
    begin_change(host)
    host.files.entries["/etc/holdfast/driver.lock"] = f"{B}\n"
    assert look(host, settled).status is Status.WARNING


@pytest.mark.parametrize("rubbish", [None, "x", 5, [1], ["a", "b", "c"]])
def test_a_memory_of_another_version_of_ours_is_no_crash(rubbish: Any) -> None:
    host = box()
    first = look(host)
    spoiled = tuple(
        type(each)(each.name, rubbish if each.name in ("known", "change.since") else each.value)
        for each in first.evidence
    )
    before = CheckResult(first.check, "host", first.status, "", spoiled, first.at, 0.0)
    assert look(host, before).status is Status.OK
    begin_change(host)
    assert look(host, before).status is Status.OK


def test_a_host_at_one_with_itself_contradicts_nothing() -> None:
    host = box()
    now, later = driver_truth.present(host), driver_truth.future(host, {})
    assert driver_truth.contradictions(now, later) == ()
    assert driver_truth.unreadable(now, later) == ()


def test_every_contradiction_is_named() -> None:
    host = box(**libraries(B, cuda="590.10"))
    host.run.answer(("modinfo", module_path(OLD, PLACE)), modinfo(B))
    del host.files.entries[module_path(NEW, PLACE)]
    found = driver_truth.contradictions(driver_truth.present(host), driver_truth.future(host, {}))
    assert [words.partition(":")[0] for words in found] == [
        f"the loaded module is {A}, libnvidia-ml on disk is {B}",
        f"the loaded module is {A}, libcuda on disk is 590.10",
        f"the kernel that boots next, {NEW}, would load no driver",
        f"the loaded module is {A}, the running kernel, {OLD}, would load {B}",
    ]


def test_what_cannot_be_read_contradicts_nothing_and_is_named() -> None:
    host = box(**{"/sys/kernel/kexec_loaded": "1\n", "/sys/module/nvidia/version": "?\n"})
    host.run.answer(("modinfo", module_path(OLD, PLACE)), 1)
    now, later = driver_truth.present(host), driver_truth.future(host, {})
    assert driver_truth.contradictions(now, later) == ()
    assert len(driver_truth.unreadable(now, later)) == 3
