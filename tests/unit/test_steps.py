"""What a long step tells while it goes on, and how it is ended in its middle."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest

from agent import steps
from agent.errors import CommandFailed
from agent.host import Host
from agent.plugin import Command, Condition, Plan, Progress, Wait
from tests.support.fake_host import FakeHost


def waiting(lasts_s: float, progress: Callable[[Host], Progress | None] | None) -> tuple[FakeHost, Plan]:
    """A wait that ends after so many seconds of the fake clock."""
    host = FakeHost.build()
    began = host.clock.now()
    over = Condition("it is built", lambda seen: seen.clock.now().since(began) >= lasts_s)
    return host, Plan((Wait(over, lasts_s + 1, progress=progress),))


def told(host: FakeHost, plan: Plan) -> list[tuple[float, Progress]]:
    """What is told, and after how many seconds."""
    heard: list[tuple[float, Progress]] = []
    began = host.clock.now()
    steps.Performer(host, progress=lambda seen: heard.append((host.clock.now().since(began), seen))).perform(plan)
    return heard


def test_a_long_step_tells_how_far_it_is_every_two_seconds_at_most() -> None:
    host, plan = waiting(20, None)
    began = host.clock.now()
    asked: list[float] = []

    def halfway(seen: Host) -> Progress:
        spent = seen.clock.now().since(began)
        asked.append(spent)
        return Progress("compiling", 5 * spent, 20 - spent)

    host, plan = waiting(20, halfway)
    began = host.clock.now()
    heard = told(host, plan)
    assert [seen.words for _, seen in heard] == ["compiling"] * len(heard)
    assert len(heard) == len(asked) == 10
    assert all(later - earlier >= steps.PROGRESS_S for earlier, later in pairwise(asked))
    assert heard[-1][1].percent is not None
    assert heard[-1][1].percent > 80


def test_what_says_the_same_is_told_seldom_but_goes_on_being_told() -> None:
    host, plan = waiting(60, lambda _: Progress("linking", 97.0, None))
    times = [at for at, _ in told(host, plan)]
    assert 4 <= len(times) <= 7
    assert all(later - earlier >= steps.PROGRESS_AT_LEAST_S for earlier, later in pairwise(times))


def test_that_nobody_can_tell_how_far_it_is_never_ends_a_step() -> None:
    def broken(_: Host) -> Progress:
        raise ValueError("no such log")

    host, plan = waiting(5, broken)
    assert told(host, plan) == []
    host, plan = waiting(5, lambda _: None)
    assert told(host, plan) == []


def test_a_wait_without_progress_says_once_what_it_waits_for() -> None:
    host, plan = waiting(30, None)
    assert [seen for _, seen in told(host, plan)] == [Progress("waiting until it is built")]


def test_only_a_command_that_may_be_interrupted_is_ended_by_a_stop() -> None:
    asked = 0

    def stopping() -> bool:
        nonlocal asked
        asked += 1
        return asked > 1  # not before the command has begun

    host = FakeHost.build(commands={("tar", ...): "", ("mv", ...): ""})
    with pytest.raises(steps.StopAsked, match="tar was stopped"):
        steps.Performer(host, stopping=stopping).perform(Plan((Command(("tar", "-x"), 9, interruptible=True),)))
    asked = 0
    steps.Performer(host, stopping=stopping).perform(Plan((Command(("mv", "a", "b"), 9),)))
    assert host.run.calls[-1] == ("mv", "a", "b")


def test_a_command_that_the_same_signal_reached_first_was_stopped_and_did_not_fail() -> None:
    answers = iter((False, False, True))
    host = FakeHost.build(commands={("tar", ...): -15})
    performer = steps.Performer(host, stopping=lambda: next(answers))
    with pytest.raises(steps.StopAsked, match="asked to stop during tar"):
        performer.perform(Plan((Command(("tar", "-x"), 9, interruptible=True),)))


def test_a_command_that_is_too_slow_has_failed_and_was_not_stopped() -> None:
    host = FakeHost.build(commands={("tar", ...): CommandFailed("too slow", code="command-timeout")})
    with pytest.raises(steps.StepFailed) as caught:
        steps.Performer(host).perform(Plan((Command(("tar", "-x"), 9, interruptible=True),)))
    assert caught.value.code == "command-timeout"
