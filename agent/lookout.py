"""Looks at everything on time: runs each check when it is due, never the same one twice at once.

The only user of APScheduler. An event only makes a check due now; what it means is judged like any other look.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from datetime import datetime, timezone

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.date import DateTrigger
from apscheduler.triggers.interval import IntervalTrigger

from agent import frame
from agent.config import Config
from agent.host import Host
from agent.model import CheckResult, Moment, Observed, Status
from agent.paths import Key, WatchedPaths
from agent.plugin import Check, Target

WORKERS = 6
"""Checks that may look at the same time."""
STEP_S = 2.0
"""The wall clock was set, not slewed, when it moved by more than this against the boot clock."""
UNSETTLED_S = (3.0, 60.0)
"""What is being changed is looked at again after a tenth of the time it has lasted, within these bounds, seconds."""


class Lookout:
    """Runs every check when it is due, never the same one twice at once, and reports each result.

    report: called from worker threads. observe: how observations are made (root's go through the inspector).
    """

    def __init__(self, host: Host, report: Callable[[CheckResult], None], observe: frame.Observe) -> None:
        self._host = host
        self._report = report
        self._observe = observe
        self._latest: dict[Key, CheckResult] = {}
        self._before: dict[Key, Observed | None] = {}
        self._targets: dict[Key, tuple[Check, Target]] = {}
        self._looking: dict[Key, Moment] = {}
        self._again: set[Key] = set()
        self._unsettled: dict[Key, Moment] = {}
        self._paths = WatchedPaths(host)
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
        self._before.update({key: frame.before_of(result) for key, result in latest.items()})
        self._scheduler.start()

    def watch(self, settings: Config) -> None:
        """Look at what this configuration names, and at nothing else; everything once at once."""
        with self._lock:
            self._targets = {(check.id, target.subject): (check, target) for check, target in settings.targets()}
        watched = ((key, check) for key, (check, target) in self._targets.items() if target.every_s > 0)
        self._paths.watch({key: check.due_when_changed for key, check in watched if check.due_when_changed})
        self._plan()

    def mind_the_paths(self, now: Moment) -> None:
        """Look at the checks whose files have changed."""
        for key in self._paths.due(now, self._took_s):
            self.look(*key)

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
        self._look_once((check, subject), after_s, f"{after_s:g}")

    def _look_once(self, key: Key, after_s: float, why: str) -> None:
        """Plan one look; one that is planned for the same reason is put off."""
        if key not in self._targets:
            return
        when = datetime.fromtimestamp(self._host.clock.now().wall + after_s, timezone.utc)
        name = f"{_job(key)}|{why}"
        self._scheduler.add_job(self._look, DateTrigger(when), (key,), id=name, replace_existing=True)

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
        result = frame.run_check(self._host, check, target, self._before.get(key), observe=self._observe)
        seen = frame.before_of(result)
        with self._lock:
            self._latest[key] = result
            if seen is not None or check.scope != "host":
                self._before[key] = seen  # a look at the host that failed forgets nothing of what was seen before
            del self._looking[key]
            again = key in self._again
            self._again.discard(key)
        self._report(result)
        unsettled_s = self._unsettled_s(key, check, result)
        if again:
            self.look(*key)
        elif unsettled_s is not None:
            self._look_once(key, unsettled_s, "unsettled")
        elif result.status is not Status.OK and 0 < check.on_suspicion_s < target.every_s:
            self.look(*key, after_s=check.on_suspicion_s)

    def _took_s(self, key: Key) -> float:
        result = self._latest.get(key)
        return 0.0 if result is None else result.duration_s

    def _unsettled_s(self, key: Key, check: Check, result: CheckResult) -> float | None:
        """How soon to look again at what somebody is changing; None when nobody is."""
        if not check.unsettled or not result.value(check.unsettled):
            self._unsettled.pop(key, None)
            return None
        since = self._unsettled.setdefault(key, result.at)
        least, most = UNSETTLED_S
        return min(most, max(least, result.at.since(since) / 10))


def _job(key: Key) -> str:
    return f"{key[0]}|{key[1]}"
