"""Looks at everything on time: runs each check when it is due, never the same one twice at once.

The only user of APScheduler. An event only makes a check due now; what it means is judged like any other look.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from typing import TypeAlias

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.date import DateTrigger
from apscheduler.triggers.interval import IntervalTrigger

from agent import frame
from agent.config import Config
from agent.host import Host
from agent.model import CheckResult, Moment, Status
from agent.plugin import Check, Target

WORKERS = 6
"""Checks that may look at the same time."""
STEP_S = 2.0
"""The wall clock was set, not slewed, when it moved by more than this against the boot clock."""

Key: TypeAlias = tuple[str, str]


class Lookout:
    """Runs every check when it is due, never the same one twice at once, and reports each result.

    report: called from worker threads. observe: how observations are made (root's go through the inspector).
    """

    def __init__(self, host: Host, report: Callable[[CheckResult], None], observe: frame.Observe) -> None:
        self._host = host
        self._report = report
        self._observe = observe
        self._latest: dict[Key, CheckResult] = {}
        self._targets: dict[Key, tuple[Check, Target]] = {}
        self._looking: dict[Key, Moment] = {}
        self._again: set[Key] = set()
        self._wall_minus_boot: float | None = None
        self._lock = threading.Lock()
        self._scheduler = BackgroundScheduler(
            timezone=timezone.utc,
            executors={"default": ThreadPoolExecutor(WORKERS)},
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
        )

    def start(self, latest: Mapping[Key, CheckResult]) -> None:
        """Begin, with what each check observed last time."""
        self._latest.update(latest)
        self._scheduler.start()

    def watch(self, settings: Config) -> None:
        """Look at what this configuration names, and at nothing else; everything once at once."""
        with self._lock:
            self._targets = {(check.id, target.subject): (check, target) for check, target in settings.targets()}
        self._plan()

    def mind_the_clock(self, now: Moment) -> None:
        """Plan afresh when the wall clock was set: APScheduler plans by it, and sleeps through what was set back."""
        offset = now.wall - now.boot_s
        stepped = self._wall_minus_boot is not None and abs(offset - self._wall_minus_boot) > STEP_S
        self._wall_minus_boot = offset
        if stepped:
            self._plan()

    def _plan(self) -> None:
        for job in self._scheduler.get_jobs():
            job.remove()
        for key, (check, target) in self._targets.items():
            if target.every_s > 0:
                trigger = IntervalTrigger(seconds=target.every_s, timezone=timezone.utc)
                self._scheduler.add_job(self._look, trigger, (key,), id=_job(key))
                self.look(check.id, target.subject)

    def look(self, check: str, subject: str, after_s: float = 0.0) -> None:
        """Make one check due, now or a little later."""
        if (check, subject) not in self._targets:
            return
        when = datetime.fromtimestamp(self._host.clock.now().wall + after_s, timezone.utc)
        name = f"{_job((check, subject))}|{after_s:g}"
        self._scheduler.add_job(self._look, DateTrigger(when), ((check, subject),), id=name, replace_existing=True)

    def overdue(self, now: Moment) -> list[tuple[Key, float]]:
        """Checks that have been looking for longer than they may, and for how long."""
        with self._lock:
            return [
                (key, now.since(since))
                for key, since in self._looking.items()
                if key in self._targets and now.since(since) > 2 * self._targets[key][0].timeout_s
            ]

    def busy(self) -> bool:
        """Whether there is anything to look at regularly."""
        return any(target.every_s > 0 for _, target in self._targets.values())

    def stop(self) -> None:
        """Stop looking. A worker that hangs is left behind."""
        with self._lock:
            self._targets = {}
        # Without jobs first: the scheduler's thread would stumble over one that is due while it is shut down.
        self._scheduler.remove_all_jobs()
        self._scheduler.shutdown(wait=False)

    def _look(self, key: Key) -> None:
        with self._lock:
            if key not in self._targets:
                return
            if key in self._looking:
                self._again.add(key)  # something happened while it looked: look once more, after that
                return
            check, target = self._targets[key]
            self._looking[key] = self._host.clock.now()
        result = frame.run_check(
            self._host, check, target, frame.before_of(self._latest.get(key)), observe=self._observe
        )
        with self._lock:
            self._latest[key] = result
            del self._looking[key]
            again = key in self._again
            self._again.discard(key)
        self._report(result)
        if again:
            self.look(*key)
        elif result.status is not Status.OK and 0 < check.on_suspicion_s < target.every_s:
            self.look(*key, after_s=check.on_suspicion_s)


def _job(key: Key) -> str:
    return f"{key[0]}|{key[1]}"
