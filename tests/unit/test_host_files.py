"""The real `Files` primitive below a root of its own."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from agent.errors import FileTrouble
from agent.host.files import RealFiles


@pytest.fixture
def files(tmp_path: Path) -> RealFiles:
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    return RealFiles(root)


def place(files: RealFiles, path: str) -> Path:
    return files.root / path.lstrip("/")


def kind_of(act: Any, *arguments: Any, **options: Any) -> str:
    with pytest.raises(FileTrouble) as trouble:
        act(*arguments, **options)
    return trouble.value.kind


def test_a_file_is_read_below_the_root(files: RealFiles) -> None:
    place(files, "/etc/a").write_bytes(b"gr\xc3\xbc\xc3\x9fe\r\n\xff")
    assert files.read_text("/etc/a") == "grüße\r\n\ufffd"
    assert kind_of(files.read_text, "/etc/passwd") == "missing"


@pytest.mark.parametrize("target", ["/etc/a", "a", "../etc/a", "../../../../etc/a", "//etc/./a"])
def test_links_are_resolved_inside_the_root(files: RealFiles, target: str) -> None:
    place(files, "/etc/a").write_text("inside")
    place(files, "/etc/link").symlink_to(target)
    assert files.read_text("/etc/link") == "inside"
    assert files.realpath("/etc/link") == "/etc/a"
    assert files.stat("/etc/link").is_link
    assert files.readlink("/etc/link") == target


def test_a_link_out_of_the_root_leads_nowhere(files: RealFiles, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("outside")
    place(files, "/etc/link").symlink_to(tmp_path / "secret")
    place(files, "/up").symlink_to("../..")
    assert kind_of(files.read_text, "/etc/link") == "missing"
    assert kind_of(files.read_text, "/up/secret") == "missing"
    assert kind_of(files.read_text, "/../secret") == "missing"
    assert not files.exists("/etc/link")


def test_a_linked_directory_is_entered(files: RealFiles) -> None:
    place(files, "/usr/lib").mkdir(parents=True)
    place(files, "/lib").symlink_to("usr/lib")
    place(files, "/usr/lib/x").write_text("x")
    assert files.read_text("/lib/x") == "x"
    assert files.listdir("/lib/") == ["x"]
    files.write_atomic("/lib/y", "y")
    assert place(files, "/usr/lib/y").read_text() == "y"


def test_a_loop_of_links_ends(files: RealFiles) -> None:
    place(files, "/a").symlink_to("b")
    place(files, "/b").symlink_to("a")
    assert kind_of(files.read_text, "/a") == "other"
    assert kind_of(files.realpath, "/a") == "other"


def test_what_is_not_a_regular_file_is_never_opened(files: RealFiles) -> None:
    os.mkfifo(place(files, "/fifo"))
    place(files, "/link").symlink_to("fifo")
    for path in ("/fifo", "/link", "/etc"):
        assert kind_of(files.read_text, path) == "other"
    assert kind_of(files.append_durable, "/fifo", "x") == "other"
    assert kind_of(RealFiles().read_text, "/dev/zero") == "other"


def test_a_file_over_the_limit_is_large_and_one_at_the_limit_is_read(files: RealFiles) -> None:
    place(files, "/a").write_text("12345")
    assert files.read_text("/a", limit=5) == "12345"
    assert kind_of(files.read_text, "/a", limit=4) == "large"


def test_a_huge_file_is_refused_without_reading_it(files: RealFiles) -> None:
    with place(files, "/huge").open("wb") as huge:
        huge.write(b"x")
        huge.truncate(1 << 40)
    assert kind_of(files.read_text, "/huge") == "large"


def test_files_of_proc_and_sys_are_read_although_their_size_says_nothing() -> None:
    files = RealFiles()
    assert f"Pid:\t{os.getpid()}" in files.read_text("/proc/self/status")
    assert files.read_text("/sys/kernel/mm/transparent_hugepage/enabled")
    assert kind_of(files.read_text, "/proc/kallsyms", limit=1000) == "large"


def test_a_process_that_ends_between_open_and_read_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(descriptor: int, count: int) -> bytes:
        raise ProcessLookupError(errno.ESRCH, "No such process")

    monkeypatch.setattr(os, "read", gone)
    assert kind_of(RealFiles().read_text, "/proc/self/status") == "missing"


@pytest.mark.parametrize("path", ["", "relative", "./x"])
def test_only_absolute_paths_are_paths(files: RealFiles, path: str) -> None:
    assert kind_of(files.read_text, path) == "other"


@pytest.mark.parametrize("path", ["/nul\0byte", "/lone\ud800surrogate"])
def test_what_cannot_be_a_path_is_trouble_and_nothing_else(path: str) -> None:
    for files in (RealFiles(), RealFiles("/tmp")):
        assert kind_of(files.read_text, path) == "other"
        assert kind_of(files.exists, path) == "other"


def test_a_directory_in_the_place_of_a_parent_is_missing(files: RealFiles) -> None:
    place(files, "/etc/a").write_text("")
    assert kind_of(files.read_text, "/etc/a/b") == "missing"
    assert not files.exists("/etc/a/b")
    assert files.listdir("/") == ["etc"]


def test_writing_replaces_in_one_step_with_mode_and_nothing_left_behind(files: RealFiles) -> None:
    before = os.umask(0o077)
    try:
        files.write_atomic("/etc/a", "one", 0o640)
        files.write_atomic("/etc/a", "two", 0o644)
    finally:
        os.umask(before)
    assert place(files, "/etc/a").read_text() == "two"
    assert stat.S_IMODE(place(files, "/etc/a").stat().st_mode) == 0o644
    assert files.listdir("/etc") == ["a"]


def test_writing_replaces_a_link_and_does_not_follow_it(files: RealFiles) -> None:
    place(files, "/etc/precious").write_text("precious")
    place(files, "/etc/a").symlink_to("precious")
    files.write_atomic("/etc/a", "new")
    assert place(files, "/etc/precious").read_text() == "precious"
    assert not files.stat("/etc/a").is_link


def test_a_write_that_fails_leaves_the_old_file_and_no_other(files: RealFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    files.write_atomic("/etc/a", "old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert kind_of(files.write_atomic, "/etc/a", "new") == "other"
    assert files.read_text("/etc/a") == "old"
    assert files.listdir("/etc") == ["a"]


def test_file_and_directory_reach_the_disk_before_writing_returns(
    files: RealFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
    )
    files.write_atomic("/etc/a", "x")
    assert [Path(each).name.startswith(".a.") for each in synced] == [True, False]
    assert synced[1] == str(place(files, "/etc"))
    synced.clear()
    files.append_durable("/etc/log", "one")
    assert synced == [str(place(files, "/etc/log")), str(place(files, "/etc"))]
    synced.clear()
    files.append_durable("/etc/log", "two")
    assert synced == [str(place(files, "/etc/log"))]


def test_lines_are_appended_whole(files: RealFiles) -> None:
    files.append_durable("/etc/log", "one\n", 0o600)
    files.append_durable("/etc/log", "two")
    assert files.read_text("/etc/log") == "one\ntwo\n"
    assert stat.S_IMODE(place(files, "/etc/log").stat().st_mode) == 0o600
    assert kind_of(files.append_durable, "/etc/log", "a\nb") == "malformed"


def test_a_torn_last_line_does_not_swallow_the_next(files: RealFiles) -> None:
    place(files, "/etc/log").write_text("one\ntor")
    files.append_durable("/etc/log", "two")
    assert files.read_text("/etc/log") == "one\ntor\ntwo\n"


def test_a_line_that_does_not_fit_leaves_nothing(files: RealFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    files.append_durable("/etc/log", "one")
    real, calls = os.write, []

    def half(descriptor: int, data: Any) -> int:
        calls.append(bytes(data))
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, bytes(data)[:2])

    monkeypatch.setattr(os, "write", half)
    assert kind_of(files.append_durable, "/etc/log", "three") == "other"
    monkeypatch.undo()
    assert files.read_text("/etc/log") == "one\n"


def test_nothing_is_appended_through_a_link(files: RealFiles) -> None:
    place(files, "/etc/precious").write_text("")
    place(files, "/etc/log").symlink_to("precious")
    assert kind_of(files.append_durable, "/etc/log", "x") == "other"


def test_an_unknown_group_is_trouble(files: RealFiles) -> None:
    assert kind_of(files.write_atomic, "/etc/a", "x", group="no-such-group") == "other"
    assert files.listdir("/etc") == []


def test_removing_and_making_twice_is_fine(files: RealFiles) -> None:
    files.mkdir("/var/lib/x", 0o750)
    files.mkdir("/var/lib/x", 0o700)
    assert stat.S_IMODE(place(files, "/var/lib/x").stat().st_mode) == 0o750
    files.write_atomic("/var/lib/x/a", "")
    files.remove("/var/lib/x/a")
    files.remove("/var/lib/x/a")
    assert files.listdir("/var/lib/x") == []


def test_a_file_where_a_directory_should_be_is_trouble(files: RealFiles) -> None:
    place(files, "/var").write_text("")
    assert kind_of(files.mkdir, "/var/lib") in ("missing", "other")


def test_room_is_what_ordinary_users_have(files: RealFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    room = files.space("/etc")
    assert 0 < room.bytes_free <= room.bytes_total
    assert kind_of(files.space, "/nowhere") == "missing"
    known = os.statvfs(files.root)
    assert room.bytes_total == known.f_blocks * known.f_frsize


def test_denied_is_neither_missing_nor_there(files: RealFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Any, **options: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "stat", denied)
    assert kind_of(files.exists, "/etc") == "denied"
    assert kind_of(files.read_text, "/etc/a") == "denied"
