"""The driver lock: shown beside what is there, written from what is loaded, never over a disagreement by accident."""

from __future__ import annotations

import pytest

from agent.cli.lock import Versions, judge
from agent.host.driver import read_lock
from agent.model import Status
from tests.support.cli import holdfast
from tests.support.fake_host import FakeHost, Link

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
    ],
)
def test_the_three_versions_agree_or_do_not(versions: Versions, status: Status) -> None:
    assert judge(versions)[0] is status


def test_show_puts_lock_loaded_and_library_side_by_side() -> None:
    said = holdfast("lock", "show", host=FakeHost.build({**LOADED, **LIBRARY, LOCK: "580.178.04\n"}))
    assert said.code == 0
    assert said.out.count("580.178.04") == 4
    data = holdfast("lock", "show", "--json", host=FakeHost.build({**LOADED, **OTHER_LIBRARY})).json["data"]
    assert (data["locked"], data["problem"], data["loaded"], data["library"]) == (
        None,
        "absent",
        "580.178.04",
        "590.10",
    )


def test_write_locks_the_loaded_version_and_says_who_and_when() -> None:
    host = FakeHost.build({**LOADED, **LIBRARY})
    said = holdfast("lock", "write", host=host, environ={"SUDO_USER": "alice"})
    assert said.code == 0, said.err
    text = host.files.read_text(LOCK)
    assert text.splitlines()[-1] == "580.178.04"
    assert "locked 2027-01-15T08:00:00.000Z by alice" in text
    assert read_lock(host).version == "580.178.04"


def test_write_refuses_while_driver_and_libraries_disagree() -> None:
    host = FakeHost.build({**LOADED, **OTHER_LIBRARY})
    said = holdfast("lock", "write", host=host)
    assert said.code == 77
    assert "[driver-mismatch]" in said.err
    assert "--force" in said.err
    assert not host.files.exists(LOCK)


def test_write_with_force_says_so_in_the_file() -> None:
    host = FakeHost.build({**LOADED, **OTHER_LIBRARY})
    assert holdfast("lock", "write", "--force", host=host).code == 0
    assert "# forced: the libraries on disk were 590.10" in host.files.read_text(LOCK)
    assert read_lock(host).version == "580.178.04"


def test_write_without_a_driver_writes_nothing() -> None:
    host = FakeHost.build(LIBRARY)
    said = holdfast("lock", "write", host=host)
    assert (said.code, host.files.written) == (77, [])
    assert "[no-driver]" in said.err


def test_write_leaves_a_lock_alone_that_already_says_so() -> None:
    host = FakeHost.build({**LOADED, **LIBRARY, LOCK: "# mine\n580.178.04\n"})
    assert holdfast("lock", "write", host=host).code == 0
    assert host.files.read_text(LOCK) == "# mine\n580.178.04\n"


def test_only_root_writes() -> None:
    host = FakeHost.build({**LOADED, **LIBRARY})
    said = holdfast("lock", "write", host=host, uid=1000)
    assert (said.code, host.files.written) == (77, [])
    assert "sudo holdfast lock write" in said.err


def test_a_name_with_line_breaks_cannot_add_a_line_to_the_lock() -> None:
    host = FakeHost.build({**LOADED, **LIBRARY})
    holdfast("lock", "write", host=host, environ={"SUDO_USER": "eve\n550.54.15"})
    assert read_lock(host).version == "580.178.04"


def test_verify_is_the_check() -> None:
    said = holdfast("lock", "verify", host=FakeHost.build({**LOADED, **LIBRARY, LOCK: "550.54.15\n"}))
    assert said.code == 2
    assert said.out.startswith("driver.lock CRITICAL - ")
