"""Files that change make checks due: once when they do, not at every write, and once after the last one."""

from __future__ import annotations

import itertools

from agent.errors import FileTrouble
from agent.model import Moment
from agent.paths import Key, WatchedPaths
from tests.support.fake_host import Directory, FakeHost

STATUS = "/var/lib/dpkg/status"
PACKAGES: Key = ("driver.packages", "host")
BOOT: Key = ("driver.next_boot", "host")


def moment(seconds: float) -> Moment:
    return Moment(1_800_000_000.0 + seconds, seconds, "boot")


def write(host: FakeHost, text: str, path: str = STATUS) -> None:
    host.files.write_atomic(path, text)


def watching(*keys: Key, took_s: float = 0.0) -> tuple[FakeHost, WatchedPaths]:
    host = FakeHost.build(files={STATUS: "one"})
    paths = WatchedPaths(host)
    paths.watch(dict.fromkeys(keys, (STATUS,)))
    assert paths.due(moment(0), lambda _: took_s) == []
    return host, paths


def looks(
    host: FakeHost, paths: WatchedPaths, until: float, writes: dict[float, str], took_s: float = 0.0
) -> list[float]:
    """When something was due, asked four times a second, with these writes."""
    found = []
    for quarter in range(1, int(until * 4) + 1):
        at = quarter / 4
        if at in writes:
            write(host, writes[at])
        found += [at for _ in paths.due(moment(at), lambda _: took_s)]
    return found


def test_what_does_not_change_makes_nothing_due() -> None:
    host, paths = watching(PACKAGES)
    assert looks(host, paths, 30, {}) == []


def test_one_change_is_one_look_within_two_seconds() -> None:
    host, paths = watching(PACKAGES)
    (at,) = looks(host, paths, 30, {5.25: "changed"})
    assert 5.25 <= at <= 7.25


def test_every_check_that_reads_a_path_is_due() -> None:
    host, paths = watching(PACKAGES, BOOT)
    write(host, "changed")
    assert paths.due(moment(2), lambda _: 0.0) == [PACKAGES, BOOT]


def test_a_file_that_is_written_all_the_time_is_looked_at_now_and_then_and_after_the_last_write() -> None:
    host, paths = watching(PACKAGES)
    writes = {quarter / 4: "x" * quarter for quarter in range(8, 82)}  # from 2 s to 20.25 s
    found = looks(host, paths, 40, writes)
    assert len(found) <= 8
    assert all(later - earlier >= 3.0 for earlier, later in itertools.pairwise(found))
    assert 20.25 <= found[-1] <= 24.0


def test_a_look_that_takes_long_is_made_due_less_often() -> None:
    host, paths = watching(PACKAGES)
    writes = {quarter / 4: "x" * quarter for quarter in range(8, 82)}
    found = looks(host, paths, 60, writes, took_s=1.0)
    assert all(later - earlier >= 10.0 for earlier, later in itertools.pairwise(found))
    assert found[-1] >= 20.25


def test_a_file_that_comes_or_goes_has_changed() -> None:
    host = FakeHost.build(files={"/run": Directory()})
    paths = WatchedPaths(host)
    paths.watch({PACKAGES: ("/run/scheduled",)})
    write(host, "MODE=reboot", "/run/scheduled")
    assert paths.due(moment(1), lambda _: 0.0) == [PACKAGES]
    host.files.remove("/run/scheduled")
    assert paths.due(moment(5), lambda _: 0.0) == [PACKAGES]


def test_a_path_that_may_not_be_asked_for_says_nothing() -> None:
    host = FakeHost.build(files={STATUS: FileTrouble("no", kind="denied", where=STATUS)})
    paths = WatchedPaths(host)
    paths.watch({PACKAGES: (STATUS,)})
    assert [paths.due(moment(second), lambda _: 0.0) for second in range(1, 9)] == [[]] * 8


def test_what_is_like_at_the_start_is_no_change() -> None:
    host, paths = watching(PACKAGES)
    write(host, "changed while nobody watched")
    paths.watch({BOOT: (STATUS,)})
    assert paths.due(moment(9), lambda _: 0.0) == []
