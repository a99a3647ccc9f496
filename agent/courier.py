"""Carries alerts from the store's outbox to the receivers, and the heartbeat to whoever listens for it.

The thread that owns the store plans and records; workers make the attempts and report back through `later`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from agent.config import Config, HeartbeatSettings
from agent.errors import FileTrouble, UsageError
from agent.host import Host, stops
from agent.model import Alert, Delivery, Incident, Json, Moment, Status, Transition, Urgency
from agent.pager import heartbeat, last_words, message, outbox
from agent.plugin import ReceiverSettings
from agent.store import Attempt, Store

log = logging.getLogger(__name__)

FAILING_S = 600.0
"""A receiver that has not taken anything for this long is told of through the others."""
WORKERS = 4
"""Attempts at the same time; at most one for each receiver."""


class Courier:
    """Everything about delivery that has a life of its own. `config` is replaced when it is reloaded.

    later: hands a function to the thread that owns the store.
    """

    def __init__(self, host: Host, store: Store, config: Config, later: Callable[[Callable[[], object]], None]) -> None:
        self.config = config
        self._host = host
        self._store = store
        self._later = later
        self._origin = last_words.origin(host)
        self._workers = ThreadPoolExecutor(WORKERS, thread_name_prefix="deliver")
        self._due_at: float | None = 0.0
        self._pulse = heartbeat.Pulse()
        self._beating = False

    def alerts(self, incident: Incident, transition: Transition) -> list[tuple[str, Alert]]:
        """Which alerts a stored transition becomes, and for which receivers."""
        self._due_at = 0.0
        return outbox.address(self.config.receivers, message.alerts(incident, transition, self._origin))

    def tick(self, now: Moment, *, round_complete: bool) -> None:
        """Send what may be sent now, and beat when a beat is due."""
        if self._due_at is not None and now.boot_s >= self._due_at:
            self._send(now)
        settings = self.config.heartbeat
        if settings is None or self._beating or (self._pulse.at and now.since(self._pulse.at) < settings.every_s):
            return
        untold = outbox.untold(self._store.outbox(), self.config.receivers)
        if heartbeat.due(self._pulse, settings, now, round_complete=round_complete, untold=untold):
            self._beating = True
            self._workers.submit(self._beat, settings)

    def report(self, now: Moment) -> tuple[Status, str] | None:
        """What is wrong with a configured receiver, None when nothing is."""
        configured = {settings.name for settings in self.config.receivers}
        for health in self._store.receivers().values():
            if health.name not in configured or health.failing_since is None:
                continue
            if health.refused:
                return Status.WARNING, f"receiver {health.name} refuses alerts: {health.reason}"
            if now.since(health.failing_since) >= FAILING_S:
                return Status.WARNING, f"receiver {health.name} takes no alerts: {health.reason}"
        return None

    def test(self, name: str) -> list[dict[str, Json]]:
        """Send a test page to one receiver, or to all; what each one answered. From any thread."""
        chosen = [settings for settings in self.config.receivers if name in ("", settings.name)]
        if name and not chosen:
            raise UsageError(f"there is no receiver {name}", code="unknown-receiver")
        lines = ("This is a test of Holdfast's pager.", "Nothing is wrong, and nothing needs to be done.")
        key = f"{last_words.prefix(self._host)}/pager-test/host"
        at = self._host.clock.now().wall
        alert = message.notice(key, "event", Urgency.INFO, "Test page", lines, self._origin, at)
        answers: list[dict[str, Json]] = []
        for settings in chosen:
            delivery = outbox.attempt(self._host, chosen, Attempt(0, settings.name, alert, 1))
            answers.append({"name": settings.name, "state": str(delivery.state), "reason": delivery.reason})
            self._later(partial(self._store.answered, settings.name, delivery, self._host.clock.now()))
        return answers

    def serve_again(self, last_seen: float | None) -> None:
        """Tell how the daemon's last life ended: resolve what `holdfast-failed` told of it, else one quiet event.

        last_seen: when a life that was cut off in this boot last noted that it lived, Unix seconds; None when the last
        life ended as it should.
        """
        told = last_words.told(self._host)
        if not told:
            if last_seen is not None:
                how = stops.last_exit(self._host, last_words.DAEMON, last_seen - 1.0)
                alert = last_words.started_again(self._host, last_seen, how)
                self._store.commit(enqueue=outbox.address(self.config.receivers, [alert]))
            return
        resolve = last_words.serves_again(self._host)
        self._store.told_elsewhere(told, resolve.key)
        self._store.commit(enqueue=[(name, resolve) for name in told])
        try:
            last_words.forget(self._host)
        except FileTrouble as error:
            log.warning("%s", error.message)

    def told_before(self, incidents: Iterable[Incident]) -> None:
        """What was told is forgotten: whatever these incidents rang may still ring, so a resolve must follow."""
        receivers = [settings.name for settings in self.config.receivers]
        for incident in incidents:
            for key in message.keys(incident):
                self._store.told_elsewhere(receivers, key)

    def stop(self) -> None:
        """Leave what is under way; the outbox repeats it."""
        self._workers.shutdown(wait=False, cancel_futures=True)

    def _send(self, now: Moment) -> None:
        receivers = self.config.receivers
        dispatch = outbox.plan(self._store.outbox(), receivers, now, self.config.pager.fallback_after_s)
        self._store.begin(dispatch, now)
        self._due_at = None if dispatch.wake_after_s is None else now.boot_s + dispatch.wake_after_s
        for attempt in dispatch.attempts:
            self._workers.submit(self._attempt, receivers, attempt)

    def _attempt(self, receivers: tuple[ReceiverSettings, ...], attempt: Attempt) -> None:
        delivery = outbox.attempt(self._host, receivers, attempt)
        self._later(lambda: self._delivered(attempt, delivery))

    def _delivered(self, attempt: Attempt, delivery: Delivery) -> None:
        self._due_at = 0.0
        health = self._store.record(attempt.row, delivery, self._host.clock.now())
        if health is not None:
            how = "refuses alerts" if health.refused else "fails" if health.failing_since else "works"
            log.warning("receiver %s %s: %s", health.name, how, health.reason or "accepted")

    def _beat(self, settings: HeartbeatSettings) -> None:
        failure = heartbeat.beat(self._host, settings)
        self._later(lambda: self._beaten(failure))

    def _beaten(self, failure: str) -> None:
        self._beating = False
        self._pulse, line = heartbeat.noted(self._pulse, self._host.clock.now(), failure)
        if line:
            log.warning("%s", line)
