"""Looking on time: never the same check twice at once, again after an event, and through a clock that was set."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, TypeAlias

import pytest

from agent.config import CheckSettings, Config
from agent.lookout import Lookout
from agent.model import CheckResult, Judgement, Moment, Observation, Observed, Status
from agent.plugin import Check, NoParameters, Target
from tests.support.fake_host import FakeHost

PATIENCE_S = 10.0
Watch: TypeAlias = "Callable[..., tuple[Lookout, queue.Queue[CheckResult], Clock]]"


class Clock:
    """The real clock, as if it had been set by `ahead_s`."""

    ahead_s = 0.0

    def now(self) -> Moment:
        return Moment(time.time() + self.ahead_s, time.monotonic(), "boot")

    def sleep(self, seconds: float) -> None:
        raise AssertionError("nothing here waits")


class OneCheck(Config):
    """A configuration with just one check on the host."""

    def targets(self) -> Iterator[tuple[Check, Target]]:
        yield CHECKS[-1], Target("host", NoParameters(), CHECKS[-1].every_s)


CHECKS: list[Check] = []


@pytest.fixture
def watch() -> Iterator[Watch]:
    started: list[Lookout] = []

    def begin(
        observe: Callable[[Observed | None], Iterable[Observation]], host: FakeHost | None = None, **settings: Any
    ) -> tuple[Lookout, queue.Queue[CheckResult], Clock]:
        check = Check(
            id="test.check",
            scope="host",
            every_s=settings.get("every_s", 3600.0),
            timeout_s=1.0,
            on_suspicion_s=settings.get("on_suspicion_s", 0.0),
            due_when_changed=settings.get("due_when_changed", ()),
            unsettled=settings.get("unsettled", ""),
            observe=lambda host, target, before: observe(before),
            judge=lambda now, before, params: Judgement(Status(now.value("status", "OK")), ""),
        )
        CHECKS.append(check)
        clock = Clock()
        results: queue.Queue[CheckResult] = queue.Queue()
        lookout = Lookout(
            replace(host or FakeHost.build(), clock=clock),
            results.put,
            lambda host, check, target, before: check.observe(host, target, before),
        )
        started.append(lookout)
        lookout.start({})
        settings_ = CheckSettings(enabled=True, every_s=check.every_s, params=NoParameters())
        lookout.watch(OneCheck(checks={check.id: settings_}))
        return lookout, results, clock

    yield begin
    for lookout in started:
        lookout.stop()


def test_everything_is_looked_at_once_at_the_start(watch: Watch) -> None:
    _, results, _ = watch(lambda before: [])
    assert results.get(timeout=PATIENCE_S).status is Status.OK


def test_what_it_observed_last_time_is_handed_back(watch: Watch) -> None:
    lookout, results, _ = watch(
        lambda before: [Observation("count", (before.value("count") if before is not None else 0) + 1)]
    )
    assert results.get(timeout=PATIENCE_S).value("count") == 1
    lookout.look("test.check", "host")
    assert results.get(timeout=PATIENCE_S).value("count") == 2


def test_an_event_during_a_look_leads_to_one_more_look_and_never_to_two_at_once(
    watch: Watch,
) -> None:
    looking, most, lock, go_on = 0, 0, threading.Lock(), threading.Event()

    def observe(before: Observed | None) -> list[Observation]:
        nonlocal looking, most
        with lock:
            looking += 1
            most = max(most, looking)
        go_on.wait(PATIENCE_S)
        with lock:
            looking -= 1
        return []

    lookout, results, _ = watch(observe)
    for after_s in (0.0, 0.01, 0.02, 0.03):
        lookout.look("test.check", "host", after_s)
    time.sleep(0.3)
    go_on.set()
    results.get(timeout=PATIENCE_S)
    results.get(timeout=PATIENCE_S)
    with pytest.raises(queue.Empty):
        results.get(timeout=0.5)
    assert most == 1


def test_a_result_that_is_not_ok_is_looked_at_again_sooner(watch: Watch) -> None:
    _, results, _ = watch(lambda before: [Observation("status", "CRITICAL")], on_suspicion_s=0.05)
    for _ in range(3):
        assert results.get(timeout=PATIENCE_S).status is Status.CRITICAL


def test_a_clock_set_back_by_an_hour_does_not_blind_it(watch: Watch) -> None:
    lookout, results, clock = watch(lambda before: [])
    results.get(timeout=PATIENCE_S)
    lookout.mind_the_clock(clock.now())
    clock.ahead_s = -3600.0
    lookout.mind_the_clock(clock.now())
    assert results.get(timeout=PATIENCE_S).status is Status.OK


def test_a_look_that_hangs_is_reported_as_overdue(watch: Watch) -> None:
    go_on, inside = threading.Event(), threading.Event()

    def observe(before: Observed | None) -> list[Observation]:
        inside.set()
        go_on.wait(PATIENCE_S)
        return []

    lookout, results, clock = watch(observe)
    assert inside.wait(PATIENCE_S)
    now = clock.now()
    later = Moment(now.wall + 60, now.boot_s + 60, now.boot_id)
    (((check, subject), for_s),) = lookout.overdue(later)
    assert (check, subject) == ("test.check", "host")
    assert for_s >= 59
    go_on.set()
    results.get(timeout=PATIENCE_S)
    assert lookout.overdue(later) == []


def test_a_file_that_changes_makes_its_check_due(watch: Watch) -> None:
    host = FakeHost.build(files={"/watched": "one"})
    lookout, results, clock = watch(lambda before: [], host=host, due_when_changed=("/watched",))
    results.get(timeout=PATIENCE_S)
    lookout.mind_the_paths(clock.now())
    host.files.write_atomic("/watched", "another")
    clock.ahead_s = 5.0
    lookout.mind_the_paths(Moment(clock.now().wall, clock.now().boot_s + 5, "boot"))
    assert results.get(timeout=PATIENCE_S).status is Status.OK
    with pytest.raises(queue.Empty):
        results.get(timeout=0.3)


def test_what_somebody_is_changing_is_looked_at_again_until_it_is_settled(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.lookout.UNSETTLED_S", (0.05, 0.1))
    changes = ["dpkg is at work", "dpkg is at work", ""]
    _, results, _ = watch(lambda before: [Observation("change", changes.pop(0))], unsettled="change")
    assert [results.get(timeout=PATIENCE_S).value("change") for _ in range(3)] == ["dpkg is at work"] * 2 + [""]
    with pytest.raises(queue.Empty):
        results.get(timeout=0.5)


def test_a_look_at_the_host_that_fails_forgets_nothing(watch: Watch) -> None:
    def observe(before: Observed | None) -> list[Observation]:
        count = 0 if before is None else before.value("count")
        if count == 1 and not failed:
            failed.append(True)
            raise RuntimeError
        return [Observation("count", count + 1)]

    failed: list[bool] = []
    lookout, results, _ = watch(observe)
    assert results.get(timeout=PATIENCE_S).value("count") == 1
    lookout.look("test.check", "host")
    assert results.get(timeout=PATIENCE_S).status is Status.UNKNOWN
    lookout.look("test.check", "host")
    assert results.get(timeout=PATIENCE_S).value("count") == 2
