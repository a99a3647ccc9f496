"""The outbox: every state arrives, in order per key and receiver, and what may have been told is only repeated."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.model import Alert, Delivery, Urgency
from agent.pager import outbox
from agent.pager.receivers.webhook import WebhookSettings
from agent.plugin import ReceiverSettings
from agent.store import Attempt, RowState, Store, Told, open_store
from tests.support.fake_host import FakeClock

FALLBACK_AFTER_S = 120.0
Replies = Callable[[Attempt], Delivery]


def receiver(name: str = "pd", **more: object) -> ReceiverSettings:
    return WebhookSettings.model_validate({"name": name, "kind": "webhook", "url": "http://127.0.0.1:9", **more})


def alert(number: int, action: str = "trigger", key: str = "k", urgency: Urgency = Urgency.CRITICAL) -> Alert:
    return Alert(
        f"a{number}", key, action, urgency, f"title {number}", f"body {number}", "gpu1", "host", "disk-full",
        1000.0 + number, 900.0 + number,
    )  # fmt: skip


@dataclass
class Pager:
    """A store, its clock and receivers that answer as told; `log` is every attempt as it was made."""

    store: Store
    clock: FakeClock
    receivers: list[ReceiverSettings]
    log: list[Attempt] = field(default_factory=list)

    def queue(self, *alerts: Alert) -> None:
        self.store.commit(enqueue=outbox.address(self.receivers, alerts))

    def round(self, replies: Replies) -> float | None:
        """Plan, send, record. Returns when to plan again."""
        now = self.clock.now()
        dispatch = outbox.plan(self.store.outbox(), self.receivers, now, FALLBACK_AFTER_S)
        self.store.begin(dispatch, now)
        for each in dispatch.attempts:
            self.log.append(each)
            delivery = replies(each)
            if delivery.state == "retry":
                delivery = replace(delivery, after_s=outbox.wait_s(each.row, each.number, delivery.after_s))
            self.store.record(each.row, delivery, self.clock.now())
        return None if not dispatch.attempts and dispatch.wake_after_s is None else dispatch.wake_after_s or 0.0

    def drain(self, replies: Replies = lambda _: Delivery.sent(), rounds: int = 200) -> None:
        """Go on until nothing is left to do."""
        for _ in range(rounds):
            wait_s = self.round(replies)
            if wait_s is None:
                return
            self.clock.advance(wait_s)
        raise AssertionError("the outbox never comes to rest")

    def told(self, name: str = "pd", key: str = "k") -> list[tuple[str, str]]:
        """What was sent to one receiver about one key: (action, title)."""
        return [(a.alert.action, a.alert.title) for a in self.log if (a.receiver, a.alert.key) == (name, key)]


@pytest.fixture
def pager(tmp_path: Path) -> Iterator[Pager]:
    clock = FakeClock()
    under_test = Pager(open_store(tmp_path / "holdfast.db", clock), clock, [receiver()])
    yield under_test
    under_test.store.close()  # the one it ended with: a test may have killed and opened it again


def down(_: Attempt) -> Delivery:
    return Delivery.retry("no network")


def silent(_: Attempt) -> Delivery:
    return Delivery.retry("no answer", uncertain=True)


def test_trigger_acknowledge_and_resolve_arrive_in_order(pager: Pager) -> None:
    pager.queue(alert(1), alert(2, "acknowledge"), alert(3, "resolve"))
    pager.store.record(0, Delivery.sent(), pager.clock.now())
    pager.queue(alert(4))
    pager.round(lambda _: Delivery.sent())
    assert [action for action, _ in pager.told()] == ["event"], "nobody had heard of 1 to 3: one event"
    pager.drain()
    pager.queue(alert(5, "acknowledge"), alert(6, "resolve"))
    pager.drain()
    assert [action for action, _ in pager.told()] == ["event", "trigger", "acknowledge", "resolve"]
    assert pager.store.depth() == {}


def test_a_trigger_never_told_and_its_resolve_become_one_event_with_the_original_times(pager: Pager) -> None:
    pager.queue(alert(1))
    pager.round(down)
    pager.clock.advance(3600)
    pager.queue(alert(2, "acknowledge"), alert(3), alert(4, "resolve"))
    pager.drain()
    assert [each.alert.action for each in pager.log] == ["trigger", "event"]
    event = pager.log[-1].alert
    assert event.urgency is Urgency.INFO
    assert event.key == "k"
    times = dict(event.details)
    assert (times["began"], times["reported"], times["over"]) == (
        "1970-01-01T00:15:01Z", "1970-01-01T00:16:41Z", "1970-01-01T00:16:44Z",
    )  # fmt: skip


def test_an_event_between_a_trigger_and_its_resolve_is_told_in_its_own_words(pager: Pager) -> None:
    pager.queue(alert(1), alert(2, "event"), alert(3, "acknowledge"), alert(4, "resolve"))
    pager.drain()
    assert [(each.alert.action, each.alert.id) for each in pager.log] == [("event", "a2"), ("event", "a4:event")]
    assert dict(pager.log[-1].alert.details)["over"] == "1970-01-01T00:16:44Z"


def test_a_trigger_that_may_have_been_taken_is_repeated_and_resolved_never_replaced(pager: Pager) -> None:
    pager.queue(alert(1))
    pager.round(silent)
    pager.queue(alert(2), alert(3, "resolve"))
    pager.drain()
    assert [each.alert for each in pager.log] == [alert(1), alert(1), alert(3, "resolve")]


def test_updates_of_a_key_become_the_latest_one_under_the_time_of_the_first(pager: Pager) -> None:
    pager.queue(alert(1))
    pager.round(down)
    pager.queue(alert(2, urgency=Urgency.WARNING), alert(3))
    pager.drain()
    assert pager.told() == [("trigger", "title 1"), ("trigger", "title 3")]
    assert (pager.log[-1].alert.at, pager.log[-1].alert.since) == (alert(1).at, alert(1).since)


def test_an_update_superseded_by_the_resolve_is_not_told_but_an_acknowledge_is(pager: Pager) -> None:
    pager.queue(alert(1))
    pager.drain()
    pager.queue(alert(2), alert(3, "acknowledge"), alert(4), alert(5, "resolve"))
    pager.drain()
    assert [action for action, _ in pager.told()] == ["trigger", "acknowledge", "resolve"]


def test_a_new_trigger_waits_for_the_resolve_of_the_old_one(pager: Pager) -> None:
    pager.queue(alert(1))
    pager.drain()
    pager.queue(alert(2, "resolve"), alert(3))
    pager.round(down)
    pager.drain()
    assert pager.told()[-2:] == [("resolve", "title 2"), ("trigger", "title 3")]


def test_a_retrying_head_holds_up_only_its_own_key_and_receiver(pager: Pager) -> None:
    pager.receivers.append(receiver("hook"))
    pager.queue(alert(1, key="k"), alert(2, key="other"))

    def replies(what: Attempt) -> Delivery:
        return down(what) if (what.receiver, what.alert.key) == ("pd", "k") else Delivery.sent()

    for _ in range(3):
        pager.round(replies)
    assert pager.told("pd", "other") == pager.told("hook", "other") == [("trigger", "title 2")]
    assert pager.told("hook", "k") == [("trigger", "title 1")]
    assert pager.store.depth() == {"pd": 1}


def test_the_most_urgent_of_several_keys_goes_first(pager: Pager) -> None:
    pager.queue(alert(1, "event", "a", Urgency.INFO), alert(2, key="b", urgency=Urgency.WARNING), alert(3, key="c"))
    pager.drain()
    assert [each.alert.key for each in pager.log] == ["c", "b", "a"]


def test_a_refusal_for_good_is_counted_said_once_and_stops_nothing(pager: Pager) -> None:
    now = pager.clock.now()
    pager.queue(alert(1), alert(2, key="other"))
    said = []
    for _ in range(2):
        dispatch = outbox.plan(pager.store.outbox(), pager.receivers, now, FALLBACK_AFTER_S)
        pager.store.begin(dispatch, now)
        said += [pager.store.record(each.row, Delivery.permanent("answered 400"), now) for each in dispatch.attempts]
    assert [health.reason if health else None for health in said] == ["answered 400", None]
    assert pager.store.receivers()["pd"].dead == 2
    pager.queue(alert(3, key="third"))
    pager.drain()
    assert pager.told(key="third") == [("trigger", "title 3")]
    assert pager.store.receivers()["pd"].failing_since is None


def test_who_refused_the_trigger_for_good_is_told_of_its_end_as_an_event(pager: Pager) -> None:
    pager.queue(alert(1))
    pager.round(lambda _: Delivery.permanent("answered 400"))
    pager.queue(alert(2, "acknowledge"), alert(3, "resolve"))
    pager.drain()
    assert [action for action, _ in pager.told()] == ["trigger", "event"]
    pager.queue(alert(4, "resolve"))
    pager.drain()
    assert len(pager.log) == 2, "its end is told once"


def test_an_acknowledge_or_resolve_without_a_told_trigger_is_dropped(pager: Pager) -> None:
    pager.queue(alert(1, "acknowledge"), alert(2, "resolve"), alert(3, "event"))
    pager.drain()
    assert [each.alert.action for each in pager.log] == ["event"]
    assert pager.store.depth() == {}


def test_a_receiver_hears_nothing_below_its_minimum_nor_how_that_ended(pager: Pager) -> None:
    pager.receivers[:] = [receiver("all"), receiver("loud", minimum="critical")]
    pager.queue(alert(1, urgency=Urgency.WARNING))
    pager.drain()
    pager.queue(alert(2, "resolve", urgency=Urgency.WARNING))
    pager.drain()
    assert [action for action, _ in pager.told("all")] == ["trigger", "resolve"]
    assert pager.told("loud") == []
    pager.queue(alert(3))
    pager.drain()
    pager.queue(alert(4, "resolve", urgency=Urgency.WARNING))
    pager.drain()
    assert [action for action, _ in pager.told("loud")] == ["trigger", "resolve"]


def test_a_day_without_network_costs_few_attempts_and_loses_nothing(pager: Pager) -> None:
    pager.queue(alert(1), alert(2, key="other"))
    end = pager.clock.now().boot_s + 86_400
    while pager.clock.now().boot_s < end:
        pager.clock.advance(pager.round(down) or 1.0)
    assert 2 * 86_400 / 300 <= len(pager.log) < 2 * 86_400 / 200
    pager.queue(alert(3, "resolve", "other"))
    before = len(pager.log)
    pager.drain()
    assert {(each.alert.key, each.alert.action) for each in pager.log[before:]} == {
        ("k", "trigger"),
        ("other", "event"),
    }


def test_waits_double_from_five_seconds_to_five_minutes_and_retry_after_is_honoured_up_to_an_hour() -> None:
    waits = [outbox.wait_s(7, number) for number in range(1, 12)]
    assert 5 <= waits[0] <= 6
    assert 10 <= waits[1] <= 12
    assert waits == sorted(waits)
    assert waits[-1] == 300
    assert outbox.wait_s(7, 1, 90) == 90
    assert outbox.wait_s(7, 1, 0) == waits[0]
    assert outbox.wait_s(7, 1, 1e9) == 3600
    assert outbox.wait_s(7, 1) != outbox.wait_s(8, 1), "two receivers do not come back in the same second"


@pytest.mark.parametrize("jump_s", [-86_400.0, 86_400.0])
def test_a_jump_of_the_wall_clock_neither_delays_nor_hurries_the_next_attempt(pager: Pager, jump_s: float) -> None:
    pager.queue(alert(1))
    pager.round(lambda _: Delivery.retry("busy", after_s=60))
    pager.clock.advance(30, wall_step=jump_s)
    pager.round(down)
    assert len(pager.log) == 1
    pager.clock.advance(31)
    pager.round(down)
    assert len(pager.log) == 2


def test_a_wait_that_a_boot_with_a_wrong_clock_makes_unmeasurable_is_over(pager: Pager) -> None:
    pager.queue(alert(1))
    pager.round(lambda _: Delivery.retry("busy", after_s=60))
    pager.clock.reboot(away_s=-1e6)
    pager.drain()
    assert pager.told() == [("trigger", "title 1")] * 2


# --- fallback ------------------------------------------------------------------------------------------------


@pytest.fixture
def backed(pager: Pager) -> Pager:
    pager.receivers[:] = [receiver("a"), receiver("b"), receiver("last", fallback=True)]
    return pager


def only_last(what: Attempt) -> Delivery:
    return Delivery.sent() if what.receiver == "last" else down(what)


def test_the_fallback_hears_what_nobody_took_for_the_time_set_and_then_its_end(backed: Pager) -> None:
    backed.queue(alert(1))
    while backed.clock.now().boot_s < 10_000 + FALLBACK_AFTER_S - 1:
        backed.clock.advance(min(backed.round(only_last) or 1.0, 10.0))
    assert backed.told("last") == []
    backed.clock.advance(11)
    backed.round(only_last)
    assert backed.told("last") == [("trigger", "title 1")]
    backed.queue(alert(2, "resolve"))
    backed.round(only_last)
    assert backed.told("last") == [("trigger", "title 1"), ("resolve", "title 2")]


def test_who_was_told_by_the_fallback_hears_of_the_end_at_once_also_behind_a_fresh_update(backed: Pager) -> None:
    backed.queue(alert(1))
    backed.round(down)
    backed.clock.advance(FALLBACK_AFTER_S + 1)
    backed.round(only_last)
    backed.queue(alert(2), alert(3, "resolve"))
    backed.round(only_last)
    assert backed.told("last") == [("trigger", "title 1"), ("resolve", "title 3")]


def test_the_fallback_is_not_used_while_one_other_receiver_works(backed: Pager) -> None:
    backed.queue(alert(1))
    replies: Replies = lambda what: down(what) if what.receiver == "a" else Delivery.sent()  # noqa: E731
    for _ in range(40):
        backed.clock.advance(backed.round(replies) or 1.0)
    backed.queue(alert(2, "resolve"))
    for _ in range(40):
        backed.clock.advance(backed.round(replies) or 1.0)
    assert backed.told("last") == []
    assert [action for action, _ in backed.told("b")] == ["trigger", "resolve"]
    assert "last" not in backed.store.depth()


def test_the_fallback_is_used_at_once_when_every_other_receiver_refused_for_good(backed: Pager) -> None:
    backed.queue(alert(1))
    refuse: Replies = lambda what: Delivery.sent() if what.receiver == "last" else Delivery.permanent("400")  # noqa: E731
    backed.round(refuse)
    backed.round(refuse)
    assert backed.told("last") == [("trigger", "title 1")]


def test_a_fallback_without_any_other_receiver_is_used_at_once(backed: Pager) -> None:
    del backed.receivers[:2]
    backed.queue(alert(1))
    backed.round(only_last)
    assert backed.told("last") == [("trigger", "title 1")]


def test_what_no_other_receiver_was_meant_to_hear_is_not_for_the_fallback_either(backed: Pager) -> None:
    backed.receivers[:] = [receiver("a", minimum="critical"), receiver("last", fallback=True)]
    backed.queue(alert(1, urgency=Urgency.WARNING))
    backed.drain(only_last)
    assert backed.log == []


def test_the_fallback_knows_that_an_update_was_told_as_part_of_another_alert(backed: Pager) -> None:
    backed.queue(alert(1), alert(2), alert(3))
    replies: Replies = lambda what: Delivery.sent() if what.receiver == "a" else down(what)  # noqa: E731
    backed.round(replies)
    rows = {row.alert_id: row.state for row in backed.store.outbox().rows if row.receiver == "a"}
    assert rows == {"a1": RowState.SENT, "a2": RowState.MERGED, "a3": RowState.MERGED}
    backed.clock.advance(FALLBACK_AFTER_S + 1)
    backed.round(replies)
    assert backed.told("last") == []
    assert "last" not in backed.store.depth()


def test_a_merged_row_always_leads_straight_to_the_row_that_tells_it(pager: Pager) -> None:
    pager.receivers.append(receiver("hook"))  # which never answers, so that all its rows stay to be looked at
    replies = {"sent": Delivery.sent(), "down": Delivery.retry("refused")}
    for number, action, reply in (
        (1, "trigger", "sent"),
        (2, "trigger", "down"),
        (3, "trigger", "down"),
        (4, "resolve", "down"),
    ):
        pager.queue(alert(number, action))
        pager.clock.advance(400)
        pager.round(lambda what, reply=reply: replies[reply] if what.receiver == "pd" else silent(what))  # type: ignore[misc]
    rows = {row.alert_id: row for row in pager.store.outbox().rows if row.receiver == "pd"}
    assert {rows[name].merged_into for name in ("a2", "a3")} == {rows["a4"].id}


def test_a_fault_that_ends_before_the_fallback_was_needed_reaches_the_others_as_one_event(backed: Pager) -> None:
    backed.queue(alert(1))
    backed.round(down)
    backed.queue(alert(2, "resolve"))
    backed.drain()
    assert backed.told("last") == []
    assert backed.told("a") == backed.told("b") == [("trigger", "title 1"), ("event", "Over: title 1")]


# --- kills ---------------------------------------------------------------------------------------------------


def test_a_kill_between_the_answer_and_its_record_repeats_the_same_alert(pager: Pager, tmp_path: Path) -> None:
    pager.queue(alert(1))
    now = pager.clock.now()
    dispatch = outbox.plan(pager.store.outbox(), pager.receivers, now, FALLBACK_AFTER_S)
    pager.store.begin(dispatch, now)
    pager.log += dispatch.attempts  # taken with 202, never recorded
    pager.store.close()
    pager.store = open_store(tmp_path / "holdfast.db", pager.clock)
    pager.queue(alert(2), alert(3, "resolve"))
    pager.drain()
    assert [each.alert for each in pager.log] == [alert(1), alert(1), alert(3, "resolve")]


def test_nothing_is_sent_twice_at_once(pager: Pager) -> None:
    now = pager.clock.now()
    pager.queue(alert(1), alert(2, key="other"))
    dispatch = outbox.plan(pager.store.outbox(), pager.receivers, now, FALLBACK_AFTER_S)
    pager.store.begin(dispatch, now)
    assert len(dispatch.attempts) == 1
    assert outbox.plan(pager.store.outbox(), pager.receivers, now, FALLBACK_AFTER_S).attempts == ()


def test_an_alert_committed_twice_is_sent_once(pager: Pager) -> None:
    pager.queue(alert(1))
    pager.queue(alert(1))
    pager.drain()
    assert len(pager.log) == 1


def test_what_nobody_took_after_an_attempt_keeps_the_heartbeat_silent(pager: Pager) -> None:
    pager.receivers.append(receiver("hook"))
    assert outbox.untold(pager.store.outbox(), pager.receivers) == 0
    pager.queue(alert(1))
    assert outbox.untold(pager.store.outbox(), pager.receivers) == 0, "not tried yet"
    pager.round(down)
    assert outbox.untold(pager.store.outbox(), pager.receivers) == 1
    pager.clock.advance(10)
    pager.round(lambda what: Delivery.sent() if what.receiver == "hook" else down(what))
    assert outbox.untold(pager.store.outbox(), pager.receivers) == 0, "one receiver took it"


def test_a_resolve_follows_what_was_told_without_the_outbox(pager: Pager) -> None:
    pager.store.told_elsewhere(["pd"], "k")
    pager.queue(alert(1, "resolve"))
    pager.drain()
    assert [action for action, _ in pager.told()] == ["resolve"]
    assert pager.store.outbox().told == {}


def test_rows_of_a_receiver_that_is_no_longer_configured_are_left_alone(pager: Pager) -> None:
    pager.queue(alert(1))
    dispatch = outbox.plan(pager.store.outbox(), [receiver("other")], pager.clock.now(), FALLBACK_AFTER_S)
    assert (dispatch.attempts, dispatch.edits, dispatch.moot) == ((), (), ())
    assert pager.store.depth() == {"pd": 1}


# --- the property --------------------------------------------------------------------------------------------

KEYS = ("k1", "k2")
_STEP = st.one_of(
    st.tuples(st.just("queue"), st.sampled_from(KEYS), st.sampled_from(["trigger", "acknowledge", "resolve", "event"])),
    st.tuples(st.just("send"), st.sampled_from(["sent", "down", "busy", "lost", "unheard"])),
    st.tuples(st.just("kill"), st.booleans()),
    st.tuples(st.just("wait"), st.sampled_from([1.0, 7.0, 400.0])),
    st.tuples(st.just("clock"), st.sampled_from([-1e5, 1e5])),
    st.tuples(st.just("boot"), st.sampled_from([-1e4, 30.0])),
)


class World:
    """A pager under test, and what its one receiver took; incidents change only as an incident can."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.clock = FakeClock()
        self.pager = Pager(open_store(path, self.clock), self.clock, [receiver()])
        self.taken: list[Alert] = []
        self.queued: list[Alert] = []
        self.open: set[str] = set()

    def apply(self, step: tuple[object, ...]) -> None:
        match step:
            case ("queue", str(key), str(action)):
                self._queue(key, action)
            case ("send", str(reply)):
                self.pager.round(lambda what: self.answer(what, reply))
            case ("kill", bool(heard)):
                self._kill(heard)
            case ("wait", float(seconds)):
                self.clock.advance(seconds)
            case ("clock", float(jump_s)):
                self.clock.advance(0, wall_step=jump_s)
            case ("boot", float(away_s)):
                self._kill(heard=False)
                self.clock.reboot(away_s)

    def answer(self, what: Attempt, reply: str) -> Delivery:
        if reply in ("sent", "unheard"):
            self.taken.append(what.alert)
        return {
            "sent": Delivery.sent(),
            "down": Delivery.retry("refused"),
            "busy": Delivery.retry("answered 429", 30.0),
            "lost": Delivery.retry("no answer", uncertain=True),
            "unheard": Delivery.retry("taken, but its answer was lost", uncertain=True),
        }[reply]

    def _queue(self, key: str, action: str) -> None:
        if action in ("acknowledge", "resolve") and key not in self.open:
            return
        {"trigger": self.open.add, "resolve": self.open.discard}.get(action, lambda _: None)(key)
        self.queued.append(alert(len(self.queued), action, key))
        self.pager.queue(self.queued[-1])

    def _kill(self, heard: bool) -> None:
        """The process dies during an attempt, which the receiver has taken or not."""
        now = self.clock.now()
        dispatch = outbox.plan(self.pager.store.outbox(), self.pager.receivers, now, FALLBACK_AFTER_S)
        self.pager.store.begin(dispatch, now)
        if heard:
            self.taken += [each.alert for each in dispatch.attempts]
        self.pager.store.close()
        self.pager.store = open_store(self.path, self.clock)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(_STEP, max_size=40))
def test_whatever_happens_every_state_arrives_in_order_and_repeats_are_identical(
    steps: list[tuple[object, ...]],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder) / "holdfast.db")
        for step in steps:
            world.apply(step)
        world.pager.drain(lambda what: world.answer(what, "sent"))
        world.pager.store.close()
    for key in KEYS:
        queued = [each for each in world.queued if each.key == key]
        taken = [each for each in world.taken if each.key == key]
        _repeats_are_identical_and_adjacent(taken)
        _in_order(taken)
        _last_state_is_known(queued, taken)
        _no_cycle_is_lost(queued, taken)


def _repeats_are_identical_and_adjacent(taken: list[Alert]) -> None:
    runs = [each for number, each in enumerate(taken) if number == 0 or each != taken[number - 1]]
    assert len({each.id for each in runs}) == len(runs)


def _in_order(taken: list[Alert]) -> None:
    numbers = [int(each.id.partition(":")[0].removeprefix("a")) for each in taken]
    assert numbers == sorted(numbers)


def _last_state_is_known(queued: list[Alert], taken: list[Alert]) -> None:
    states = [each for each in queued if each.action in ("trigger", "resolve")]
    heard = [each for each in taken if each.action in ("trigger", "resolve")]
    is_open = bool(states) and states[-1].action == "trigger"
    assert (bool(heard) and heard[-1].action == "trigger") == is_open
    if is_open:
        assert heard[-1].title == states[-1].title
        acknowledged = [
            each for each in queued if each.action == "acknowledge" and int(each.id[1:]) > int(states[-1].id[1:])
        ]
        assert {each.id for each in acknowledged} <= {each.id for each in taken}


def _no_cycle_is_lost(queued: list[Alert], taken: list[Alert]) -> None:
    """Every trigger up to its resolve was told: by a trigger of its own, or by an event."""
    cycle: list[Alert] = []
    for each in queued:
        if each.action == "trigger":
            cycle.append(each)
        elif each.action == "resolve":
            told = {t.id for t in taken}
            assert {c.id for c in cycle} & told or f"{each.id}:event" in told
            cycle = []
    assert {e.id for e in queued if e.action == "event"} <= {t.id for t in taken}


def test_a_refused_trigger_that_may_have_been_taken_is_still_resolved(pager: Pager) -> None:
    pager.queue(alert(1))
    pager.round(silent)
    pager.clock.advance(10)
    pager.round(lambda _: Delivery.permanent("answered 400"))
    assert pager.store.outbox().told == {("pd", "k"): Told.MAYBE}
    pager.queue(alert(2, "resolve"))
    pager.drain()
    assert [action for action, _ in pager.told()] == ["trigger", "trigger", "resolve"]
