"""The courier: what the outbox plans is sent by workers, recorded by the owner, and told of when it fails."""

from __future__ import annotations

import json
import queue
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.config import Config, HeartbeatSettings
from agent.courier import FAILING_S, Courier
from agent.errors import UsageError
from agent.model import Incident, Phase, Transition, Urgency
from agent.plugin import receivers
from agent.store import Store, open_store
from tests.support.fake_host import FakeHost, in_turn, unreachable

PAGER = "http://pager.test/enqueue"
BEAT = "http://beat.test/ping"
FILES = {"/etc/machine-id": "0123456789abcdef\n", "/proc/sys/kernel/hostname": "box\n", "/key": "k" * 32}


class Scene:
    """A courier over a real store and a fake network; its workers' reports are taken in by `settle`."""

    def __init__(self, path: Path, http: dict[str, Any], heartbeat: HeartbeatSettings | None = None) -> None:
        self.host = FakeHost.build(FILES, http=http)
        self.store: Store = open_store(path, self.host.clock)
        settings = receivers()["pagerduty"].settings(
            name="primary", kind="pagerduty", routing_key_file="/key", url=PAGER
        )
        self.config = Config(receivers=(settings,), heartbeat=heartbeat)
        self.later: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self.courier = Courier(self.host, self.store, self.config, self.later.put)

    def tell(self, kind: str) -> None:
        """Store a transition of one incident with its alerts, as the reconciler does."""
        now = self.host.clock.now()
        incident = Incident(
            "01J", "holdfast/01234567/engine-dead/engine:chat", "engine-dead", "engine:chat", Phase.OPEN,
            Urgency.CRITICAL, "chat is dead", "exit 1", now.wall, now, now,
        )  # fmt: skip
        transition = Transition(f"t-{kind}", incident.id, now.wall, kind, kind)
        self.store.commit([incident], [transition], self.courier.alerts(incident, transition))

    def settle(self, answers: int = 1) -> None:
        """One round, and the reports of so many workers."""
        self.courier.tick(self.host.clock.now(), round_complete=True)
        for _ in range(answers):
            self.later.get(timeout=10)()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Callable[..., Scene]]:
    made: list[Scene] = []

    def make(http: dict[str, Any], heartbeat: HeartbeatSettings | None = None) -> Scene:
        made.append(Scene(tmp_path / "holdfast.db", http, heartbeat))
        return made[-1]

    yield make
    for each in made:
        each.courier.stop()
        each.store.close()


def test_what_was_stored_is_sent_and_recorded(scene: Callable[..., Scene]) -> None:
    here = scene({f"POST {PAGER}": 202})
    here.tell("opened")
    here.settle()
    assert here.store.depth() == {}
    assert here.store.receivers()["primary"].sent == 1


def test_a_receiver_that_fails_is_tried_again_and_reported_after_ten_minutes(scene: Callable[..., Scene]) -> None:
    here = scene({f"POST {PAGER}": in_turn(500, 500, 202)})
    here.tell("opened")
    here.settle()
    assert here.store.depth() == {"primary": 1}
    assert here.courier.report(here.host.clock.now()) is None
    here.host.clock.advance(FAILING_S)
    told = here.courier.report(here.host.clock.now())
    assert told is not None
    assert "primary takes no alerts" in told[1]
    here.settle()
    here.host.clock.advance(60)
    here.settle()
    assert here.store.depth() == {}
    assert here.courier.report(here.host.clock.now()) is None


def test_what_rang_before_the_memory_was_lost_is_resolved_all_the_same(scene: Callable[..., Scene]) -> None:
    here = scene({f"POST {PAGER}": 202})
    now = here.host.clock.now()
    incident = Incident(
        "01J", "holdfast/01234567/engine-dead/engine:chat", "engine-dead", "engine:chat", Phase.ESCALATED,
        Urgency.CRITICAL, "chat is dead", "exit 1", now.wall, now, now,
    )  # fmt: skip
    here.courier.told_before([incident])
    here.tell("resolved")
    for _ in range(4):
        here.settle()
    resolved = {json.loads(call.body)["dedup_key"].rpartition("/")[2] for call in here.host.http.calls}
    assert resolved == {"engine:chat", "critical", "escalated", "approval"}


def test_a_receiver_that_refuses_is_reported_at_once(scene: Callable[..., Scene]) -> None:
    here = scene({f"POST {PAGER}": 400})
    here.tell("opened")
    here.settle()
    told = here.courier.report(here.host.clock.now())
    assert told is not None
    assert "refuses alerts" in told[1]


def test_the_heart_beats_only_while_everything_was_told(scene: Callable[..., Scene]) -> None:
    beats = HeartbeatSettings(url=BEAT, every_s=60)
    here = scene({f"POST {PAGER}": in_turn(unreachable("refused"), 202), BEAT: 200}, beats)
    here.settle()  # the first beat
    here.tell("opened")
    here.settle()  # the page that fails
    here.host.clock.advance(120)
    here.settle()  # the page again, and no beat beside it
    beaten = [call for call in here.host.http.calls if call.url == BEAT]
    assert len(beaten) == 1
    here.settle()
    assert len([call for call in here.host.http.calls if call.url == BEAT]) == 2


def test_a_test_page_says_what_each_receiver_answered_and_counts_as_proof(scene: Callable[..., Scene]) -> None:
    here = scene({f"POST {PAGER}": 202})
    (answer,) = here.courier.test("")
    assert (answer["name"], answer["state"]) == ("primary", "sent")
    here.later.get(timeout=10)()
    assert here.store.receivers()["primary"].sent == 1


def test_a_test_page_to_nobody_is_refused(scene: Callable[..., Scene]) -> None:
    with pytest.raises(UsageError, match="nobody"):
        scene({}).courier.test("nobody")


def test_a_daemon_that_was_cut_off_and_started_again_is_told_once_and_quietly(scene: Callable[..., Scene]) -> None:
    here = scene({f"POST {PAGER}": 202})
    exited = '{"EXIT_CODE": "dumped", "EXIT_STATUS": "ABRT"}'
    here.host.run.answer("journalctl ...", exited)
    here.courier.serve_again(here.host.clock.now().wall - 42)
    (row,) = here.store.outbox().rows
    assert (row.alert.action, row.alert.urgency) == ("event", Urgency.INFO)
    assert row.alert.key.endswith("/daemon-restarted/host")
    assert "killed by SIGABRT and dumped its core" in row.alert.body.replace("\n", " ")
    assert "42 s" in row.alert.body


def test_a_daemon_that_was_stopped_by_hand_says_nothing_when_it_starts(scene: Callable[..., Scene]) -> None:
    here = scene({f"POST {PAGER}": 202})
    here.courier.serve_again(None)
    assert here.store.depth() == {}


def test_what_was_told_while_the_daemon_was_down_is_resolved_and_not_told_again(scene: Callable[..., Scene]) -> None:
    here = scene({f"POST {PAGER}": 202})
    here.host.files.write_atomic("/var/lib/holdfast/daemon-failed.json", '{"told": ["primary"]}')
    here.courier.serve_again(here.host.clock.now().wall)
    assert [row.alert.action for row in here.store.outbox().rows] == ["resolve"]
