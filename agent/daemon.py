"""The daemon: APScheduler decides when to look, workers look, and one thread reconciles and owns the store.

Nothing here judges or decides. Workers put what they found on one queue; the main thread hands it to the
reconciler and carries out the effects it returns. The watchdog is fed only while that thread makes progress and
results keep arriving.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent import futures
from dataclasses import dataclass, replace
from typing import TypeVar

import sdnotify
from ulid import ULID

from agent import __version__, advice, config, control, frame, inspector, ledger, logs, runbook, runs, store
from agent.config import CONFIG_DIRECTORY, CONFIG_FILE
from agent.courier import Courier
from agent.errors import ConfigurationError, DaemonUnreachable, HoldfastError, StoreError
from agent.host import Host
from agent.host.events import RealEvents
from agent.host.real import real_host
from agent.lookout import Lookout
from agent.messages import (
    SELF_CHECKS,
    Acknowledged,
    CheckNow,
    ConfigurationChanged,
    Effect,
    Message,
    ResultArrived,
    RunGoesOn,
    RunReported,
    SelfReported,
    Tick,
)
from agent.model import (
    CheckResult,
    Json,
    Moment,
    Observation,
    Observed,
    Outcome,
    Status,
)
from agent.pager import last_words
from agent.plugin import Check, Target
from agent.protocol import Control, Event, Request
from agent.reconcile import Reconciler
from agent.rehearser import Rehearser
from agent.views import in_flight, metrics
from agent.views.note import NOTE, NOTE_EVERY_S, REHEARSALS, TOKENS, daemon_note, note_of

log = logging.getLogger(__name__)

TICK_S = 1.0
"""How long the main thread waits for news before it looks at the clock."""
LOOK_AGAIN_S = (0.0, 0.3, 1.0, 2.5)
"""When to look after a process ended, seconds: systemd notices a moment later than its pidfd does."""
SILENCE_S = 300.0
"""Without any result for this long although checks are due, the scheduler is dead and the watchdog starves."""
PRUNE_S = 6 * 3600.0
"""How often what is over and old is forgotten."""
ABUSE_S = 600.0
"""For how long a refused request to the runner is told."""
ABUSE = frozenset({"operators-only", "permission", "request-invalid", "request-too-large", "unknown-runbook"})
"""Refusals that no honest client meets."""
UNREACHABLE_TRIES = 5
FOLLOW_AGAIN_S = 2.0
"""A runner that cannot be asked is asked again this often and after this time; a run is followed until it ends."""
KERNEL_S = 1.0
"""The kernel's log is looked at as soon as it says something, at most this often: its buffer holds some thousand
records, which a flood can overwrite, and a flood must not make us busy."""
MAIN_S = 5.0
"""How long another thread waits for an answer of the main thread."""


Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Paths:
    """Where everything lies; a demo and the tests have their own."""

    config: str = CONFIG_FILE
    config_directory: str = CONFIG_DIRECTORY
    runbooks: tuple[str, ...] = (runbook.SHIPPED, runbook.LOCAL)
    store: str = store.PATH
    control: str = "/run/holdfast/control.sock"
    runner: str = runs.SOCKET
    inspector: str = inspector.SOCKET
    group: str | None = "holdfast"


class Daemon:
    """Everything that runs while `holdfast.service` is up. Made once, run once.

    Raises ConfigurationError before anything is started.
    """

    def __init__(self, host: Host, paths: Paths) -> None:
        self._host = host
        self._paths = paths
        self._news: queue.SimpleQueue[Message | Callable[[], object]] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._reload = threading.Event()
        self._notify = sdnotify.SystemdNotifier()
        self._config = config.load(host.files, path=paths.config, directory=paths.config_directory)
        self._store = store.open_store(paths.store, host.clock)
        self._adviser = advice.Adviser(host, self._config, self._load_runbooks(), lambda: self._reconciler.results)
        self._courier = Courier(host, self._store, self._config, self._news.put)
        self._reconciler = Reconciler(
            self._config,
            self._store,
            advise=self._adviser,
            enqueue=self._courier.alerts,
            prefix=last_words.prefix(host),
            new_id=lambda: str(ULID()),
            disturbed=self._adviser.disturbed,
        )
        self._lookout = Lookout(host, lambda result: self._news.put(ResultArrived(result)), self._observe)
        self._rehearser = Rehearser(host, lambda: str(ULID()), host.clock.now())
        self._events = RealEvents()
        self._watched: dict[str, int] = {}
        self._result_at = self._ticked_at = self._pruned_at = host.clock.now()
        self._generation = self._store.generation
        self._started_at = host.clock.now()
        self._noted_at: Moment | None = None
        before = daemon_note(self._store.get(NOTE))
        same_boot = before.boot_id == host.clock.now().boot_id
        self._cut_off_at = before.at if same_boot and not before.stopped else None
        self._tokens: dict[str, float] = dict(self._store.get(TOKENS, {}))
        self._lag_s = 0.0

    def run(self) -> None:
        """Until SIGTERM or SIGINT."""
        logs.set_level(self._config.daemon.log_level)
        signal.signal(signal.SIGTERM, lambda *_: self._stop())
        signal.signal(signal.SIGINT, lambda *_: self._stop())
        signal.signal(signal.SIGHUP, lambda *_: self._reload.set())
        threading.Thread(target=self._watch_processes, name="events", daemon=True).start()
        threading.Thread(target=self._watch_kernel, name="kernel", daemon=True).start()
        self._lookout.start(self._reconciler.results)
        self._lookout.watch(self._config)
        server = control.ControlServer(self._paths.control, self._paths.group, self._controlled)
        exporter = metrics.serve(self._config.daemon.metrics_listen, lambda: self._in_main(self._snapshot))
        self._courier.serve_again(self._cut_off_at)
        self._notify.notify(f"READY=1\nSTATUS={self._status_line()}")
        log.info("watching %d engines, %d receivers", len(self._config.engines), len(self._config.receivers))
        try:
            self._loop()
        finally:
            self._notify.notify("STOPPING=1")
            self._lookout.stop()
            server.stop()
            exporter.stop()
            self._events.wake()
            self._courier.stop()
            now = self._host.clock.now()
            self._reconciler.save(now)
            self._leave_note(now, stopped=True)
            self._store.close()

    # the main thread

    def _loop(self) -> None:
        while not self._stopping.is_set():
            if self._reload.is_set():
                self._reload.clear()
                self._reload_configuration()
            news: Message | Callable[[], object] = Tick()
            with contextlib.suppress(queue.Empty):
                news = self._news.get(timeout=TICK_S)
            if callable(news):
                news()
            else:
                self._take(news)
            self._tick()

    def _take(self, news: Message) -> None:
        if isinstance(news, ResultArrived):
            self._result_at = self._host.clock.now()
            self._watch_process(news.result)
        self._remember_tokens(news)
        for effect in self._reconciler.handle(news, self._host.clock.now()):
            self._carry_out(effect)

    def _carry_out(self, effect: Effect) -> None:
        if isinstance(effect, CheckNow):
            self._lookout.look(effect.check, effect.subject)
        else:
            threading.Thread(target=self._run, args=(effect.request,), name="run", daemon=True).start()

    def _tick(self) -> None:
        """What is done after every message: report on ourselves, deliver, feed the watchdog."""
        now = self._host.clock.now()
        self._lag_s = max(0.0, now.since(self._ticked_at) - TICK_S)
        self._ticked_at = now
        self._lookout.mind_the_clock(now)
        self._lookout.mind_the_paths(now)
        self._report_on_ourselves(now)
        if self._noted_at is None or now.since(self._noted_at) >= NOTE_EVERY_S:
            self._leave_note(now)
        self._rehearse(now)
        self._courier.tick(now, round_complete=now.since(self._result_at) < SILENCE_S)
        if now.since(self._pruned_at) >= PRUNE_S:
            self._pruned_at = now
            self._store.prune()
        if now.since(self._result_at) < SILENCE_S or not self._lookout.busy():
            self._notify.notify(f"WATCHDOG=1\nSTATUS={self._status_line()}")

    def _leave_note(self, now: Moment, *, stopped: bool = False) -> None:
        """Say in the store that we live, for whoever looks while nobody is here to ask."""
        self._noted_at = now
        own = (self._reconciler.results.get((check, "host")) for check in sorted(SELF_CHECKS))
        wrong = [each.summary for each in own if each is not None and each.status is not Status.OK]
        note = note_of(self._config, now, self._started_at, "; ".join(wrong), self._lag_s)
        with contextlib.suppress(StoreError):  # told by holdfast.store
            self._store.set(NOTE, replace(note, stopped=stopped).as_json())

    def _remember_tokens(self, news: Message) -> None:
        """When each engine was last proven to generate a token, by a canary or by a run."""
        if isinstance(news, ResultArrived) and news.result.check == "engine.generates" and news.result.value("proven"):
            subject, at = news.result.subject, news.result.at.wall
        elif isinstance(news, RunReported) and news.run is not None and news.run.outcome is Outcome.SUCCEEDED:
            subject, at = news.run.subject, news.run.ended_at or self._host.clock.now().wall
        else:
            return
        if subject.startswith("engine:"):
            self._tokens[subject.removeprefix("engine:")] = at
            self._store.set(TOKENS, self._tokens)

    def _report_on_ourselves(self, now: Moment) -> None:
        """What the daemon knows of itself enters the flow as results; checks that hang become UNKNOWN."""
        for (check, subject), for_s in self._lookout.overdue(now):
            known = self._reconciler.results.get((check, subject))
            if known is None or known.status is not Status.UNKNOWN:
                why = f"has not answered for {for_s:.0f} s"
                self._take(ResultArrived(frame.unknown(check, subject, why, now, now)))
        if self._store.generation != self._generation:
            self._generation = self._store.generation
            self._courier.told_before(self._reconciler.open_incidents())
            self._reconciler.recommit(now)
        reports = {
            "holdfast.store": (Status.CRITICAL, self._store.degraded) if self._store.degraded else None,
            "holdfast.pager": self._courier.report(now),
            "holdfast.runner": self._runner_report(now),
        }
        if self._rehearser.lines is not None:
            trouble = self._rehearser.trouble
            reports["holdfast.rehearsal"] = (Status.WARNING, trouble) if trouble else None
        for check, report in reports.items():
            self._report(check, *(report or (Status.OK, "nothing to report")))

    def _report(self, check: str, status: Status, summary: str) -> None:
        known = self._reconciler.results.get((check, "host"))
        if known is None or (known.status, known.summary) != (status, summary):
            self._take(SelfReported(check, status, summary))

    def _runner_report(self, now: Moment) -> tuple[Status, str] | None:
        records = self._adviser.records()
        if self._adviser.unreadable:
            return Status.UNKNOWN, f"pauses and spent budgets cannot be seen: {self._adviser.unreadable}"
        abuse = [record for record in ledger.refusals(records, now, ABUSE_S) if record.data.get("code") in ABUSE]
        if not abuse:
            return None
        last = abuse[-1]
        count = sum(int(record.data.get("count", 1)) for record in abuse)
        many = "at least once" if count == 1 else f"at least {10 ** (len(str(count)) - 1)} times"
        return Status.WARNING, f"uid {last.data.get('uid')} asked the runner for {last.data.get('code')}, {many}"

    # runs

    def _run(self, request: Request) -> None:
        """Ask for a run and follow it to its end, over a runner that dies and a recovery that finishes its work."""
        asked, tries = request, 0
        while not self._stopping.is_set():
            try:
                run, decision = runs.ask(self._host, asked, socket=self._paths.runner, heard=self._heard)
            except HoldfastError as error:
                log.warning("the runner cannot be reached: %s", error.message)
                run, decision, tries = None, None, tries + 1
            if run is not None or decision is not None or tries >= UNREACHABLE_TRIES:
                self._news.put(RunReported(request.id, run, decision))
                return
            asked = Request(do="follow", id=request.id) if tries == 0 else asked
            self._stopping.wait(FOLLOW_AGAIN_S)

    def _rehearse(self, now: Moment) -> None:
        """Begin a rehearsal that is due, and keep what is said of all of them for the status page."""
        before = self._rehearser.lines
        known = (self._reconciler.results.values(), self._reconciler.incidents.values())
        request = self._rehearser.tick(now, self._config, self._adviser.runbooks, self._adviser.records(), *known)
        if request is not None:
            threading.Thread(target=self._follow_rehearsal, args=(request,), name="rehearsal", daemon=True).start()
        if self._rehearser.lines is not None and self._rehearser.lines != before:
            with contextlib.suppress(StoreError):
                self._store.set(REHEARSALS, list(self._rehearser.lines))

    def _follow_rehearsal(self, request: Request) -> None:
        """Ask for it; what became of it is read from the ledger, so that a connection that breaks loses nothing."""
        try:
            run, decision = runs.ask(self._host, request, socket=self._paths.runner)
        except HoldfastError as error:
            log.warning("no rehearsal, the runner cannot be reached: %s", error.message)
            return
        words = run.summary if run is not None else decision.reason if decision is not None else "it was cut off"
        log.info("rehearsal of %s on %s: %s", request.runbook, request.subject, words)

    def _heard(self, event: Event) -> None:
        """How far a run is, where it can tell; the reconciler decides whether that is worth telling."""
        elapsed_s, remaining_s = event.data.get("elapsed_s"), event.data.get("remaining_s")
        if event.event == "progress" and isinstance(elapsed_s, (int, float)) and isinstance(remaining_s, (int, float)):
            self._news.put(RunGoesOn(event.id, str(event.data.get("text", "")), float(elapsed_s), float(remaining_s)))

    # other threads

    def _observe(self, host: Host, check: Check, target: Target, before: Observed | None) -> Iterable[Observation]:
        if check.as_root and os.geteuid() != 0:
            return inspector.ask(host, check, target, before, socket=self._paths.inspector)
        return frame.observe_here(host, check, target, before)

    def _watch_process(self, result: CheckResult) -> None:
        """Know at once when the process that serves has ended."""
        pid = result.value("process.pid") if result.check == "engine.progress" else None
        if pid and self._watched.get(result.subject) != pid:
            self._events.forget(result.subject)
            self._watched[result.subject] = int(pid)
            with contextlib.suppress(HoldfastError):  # polling is the net
                self._events.watch_process(int(pid), result.subject)

    def _watch_processes(self) -> None:
        while not self._stopping.is_set():
            for subject in self._events.wait(60.0):
                self._news.put(lambda subject=subject: self._ended(subject))  # type: ignore[misc]

    def _watch_kernel(self) -> None:
        """The kernel said something: make the check that reads it due. Waiting costs nothing."""
        while not self._stopping.wait(KERNEL_S):
            if self._host.kmsg.wait(60.0):
                self._lookout.look("gpu.xid", "host")

    def _ended(self, subject: str) -> None:
        """A process that served has ended: look at once, and again when systemd has had its say."""
        self._watched.pop(subject, None)
        log.info("the process of %s has ended", subject)
        for after_s in LOOK_AGAIN_S:
            for check in ("engine.unit", "engine.progress"):
                self._lookout.look(check, subject, after_s)

    def _controlled(self, request: Control, who: str) -> Mapping[str, Json]:
        """Answer one request on the control socket, from its thread."""
        if request.do == "acknowledge":
            wanted = str(request.args.get("incident", ""))
            found = self._in_main(lambda: [i for i in self._reconciler.open_incidents() if i.id == wanted])
            if not found:
                raise control.unknown(f"open incident {wanted}")
            self._news.put(Acknowledged(wanted, control.on_behalf_of(who, request.args.get("who"))))
            return {"incident": wanted}
        if request.do == "check-now":
            self._in_main(lambda: self._lookout.watch(self._config))
            return {}
        if request.do == "pager-test":
            return {"receivers": self._courier.test(str(request.args.get("receiver") or ""))}
        raise control.unknown(f"request {request.do}")

    def _in_main(self, ask: Callable[[], Answer]) -> Answer:
        """Ask the thread that owns the store and the incidents. Raises DaemonUnreachable when it is stuck."""
        answer: futures.Future[Answer] = futures.Future()

        def carry_out() -> None:
            try:
                answer.set_result(ask())
            except Exception as error:  # noqa: BLE001 - handed to the thread that asked
                answer.set_exception(error)

        self._news.put(carry_out)
        try:
            return answer.result(MAIN_S)
        except futures.TimeoutError as error:  # the built-in one only since Python 3.11
            raise DaemonUnreachable("the daemon is busy and did not answer in time") from error

    def _stop(self) -> None:
        self._stopping.set()
        self._news.put(Tick())

    # configuration and views

    def _load_runbooks(self) -> runbook.Runbooks:
        return runbook.load(self._host.files, directories=self._paths.runbooks)

    def _reload_configuration(self) -> None:
        """Take the new configuration if all of it is valid; otherwise keep the old one and tell."""
        self._notify.notify("RELOADING=1")
        try:
            settings = config.load(self._host.files, path=self._paths.config, directory=self._paths.config_directory)
            runbooks = self._load_runbooks()
        except ConfigurationError as error:
            for mistake in error.mistakes:
                log.error("configuration: %s", mistake)
            more = f" and {len(error.mistakes) - 1} more mistakes" if len(error.mistakes) > 1 else ""
            summary = f"the new configuration is wrong, the old one stays: {error.mistakes[0]}{more}"
            self._report("holdfast.configuration", Status.WARNING, summary)
        else:
            log.info("configuration reloaded")
            self._config = self._adviser.config = self._courier.config = settings
            self._adviser.runbooks = runbooks
            logs.set_level(settings.daemon.log_level)
            self._report("holdfast.configuration", Status.OK, "valid")
            self._take(ConfigurationChanged(settings))
            self._lookout.watch(settings)
        self._notify.notify("READY=1")

    def _status_line(self) -> str:
        if not self._config.configured:
            return "not configured: idle (holdfast init)"
        told = self._reconciler.open_incidents()
        return f"{len(told)} open: {told[0].summary}"[:200] if told else f"watching {len(self._config.engines)} engines"

    def _snapshot(self) -> metrics.Snapshot:
        results = self._reconciler.results
        lock = results.get(("driver.lock", "host"))
        loaded, locked = (lock.value("loaded"), lock.value("locked")) if lock else (None, None)
        urgencies = [each.urgency for each in self._reconciler.open_incidents()]
        attempts = ledger.attempts(self._adviser.records())
        ended = Counter((each.runbook, str(each.outcome)) for each in attempts if each.outcome)
        health, depth = self._store.receivers(), self._store.depth()
        receivers = [settings.name for settings in self._config.receivers]
        return metrics.Snapshot(
            version=__version__,
            driver_running=str(loaded or ""),
            driver_locked=str(locked or ""),
            driver_matches=loaded == locked if loaded and locked else None,
            checks=tuple((check, subject, each.status) for (check, subject), each in results.items()),
            engines=tuple(
                (each.subject.removeprefix("engine:"), each.verdict)
                for (check, _), each in results.items()
                if check == "engine.progress" and each.verdict is not None
            ),
            incidents_open=Counter(urgencies),
            runs=dict(ended),
            outbox_depth={name: depth.get(name, 0) for name in receivers},
            receivers_failing=frozenset(name for name, each in health.items() if each.failing_since),
            loop_lag_s=self._lag_s,
            last_token_at={name: at for name, at in self._tokens.items() if self._config.engine(name)},
            paused=ledger.paused(self._adviser.records(), self._host.clock.now()) is not None,
            rehearsals=self._rehearser.proven,
            in_flight=in_flight.in_flight(self._host, self._adviser.records(), self._host.clock.now()),
        )


def run(paths: Paths | None = None) -> int:
    """What `holdfast daemon` does. Returns the exit code; raises ConfigurationError when it cannot begin."""
    logs.to_journal("info")
    daemon = Daemon(real_host(), paths or Paths())
    daemon.run()
    return 0
