"""The exposition of /metrics: a pure function from plain data to Prometheus text.

Nothing is remembered between two scrapes: each builds its own registry from what the daemon knows now, so that
a check or engine that is gone leaves no stale series.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import AF_INET6  # noqa: TID251 - only the number, to serve loopback over IPv6

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from agent.model import Status, Urgency, Verdict
from agent.views.texts import InFlightLine

log = logging.getLogger(__name__)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""The media type of the text format that every Prometheus since 0.4 reads."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the daemon knows at one moment.

    driver_running, driver_locked: versions, "" when there is none. driver_matches: None when either is unknown.
    checks: (check, subject, status). engines: (name, verdict). incidents_open: how many, by urgency.
    runs: how many ended, by (runbook, outcome), since the ledger began. outbox_depth: alerts not yet accepted, by
    receiver. loop_lag_s: how late the last tick was. last_token_at: Unix seconds of the last proven token, by engine.
    in_flight: the runs that have not ended. rehearsals: when each last succeeded, Unix seconds, and how long it took,
    seconds, by (runbook, subject).
    """

    version: str = ""
    driver_running: str = ""
    driver_locked: str = ""
    driver_matches: bool | None = None
    checks: tuple[tuple[str, str, Status], ...] = ()
    engines: tuple[tuple[str, Verdict], ...] = ()
    incidents_open: Mapping[Urgency, int] = field(default_factory=dict)
    runs: Mapping[tuple[str, str], int] = field(default_factory=dict)
    outbox_depth: Mapping[str, int] = field(default_factory=dict)
    receivers_failing: frozenset[str] = frozenset()
    loop_lag_s: float = 0.0
    last_token_at: Mapping[str, float] = field(default_factory=dict)
    paused: bool = False
    in_flight: tuple[InFlightLine, ...] = ()
    rehearsals: Mapping[tuple[str, str], tuple[float, float | None]] = field(default_factory=dict)


def exposition(snapshot: Snapshot) -> bytes:
    """The snapshot in Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Once(tuple(_families(snapshot))))
    return generate_latest(registry)


class _Once(Collector):
    def __init__(self, families: tuple[Metric, ...]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _gauge(name: str, help_text: str, labels: tuple[str, ...], rows: Iterable[tuple[tuple[str, ...], float]]) -> Metric:
    family = GaugeMetricFamily(name, help_text, labels=labels)
    for values, number in rows:
        family.add_metric(values, number)
    return family


def _families(now: Snapshot) -> Iterator[Metric]:
    yield _gauge("holdfast_build_info", "The version of Holdfast; always 1.", ("version",), [((now.version,), 1)])
    yield _gauge(
        "holdfast_driver_info",
        "The NVIDIA driver that is loaded and the one driver.lock demands, empty when there is none; always 1.",
        ("running", "locked"),
        [((now.driver_running, now.driver_locked), 1)],
    )
    if now.driver_matches is not None:
        yield _gauge(
            "holdfast_driver_matches_lock",
            "1 when the loaded driver is the locked one, 0 when not; absent when either is unknown.",
            (),
            [((), float(now.driver_matches))],
        )
    yield _gauge(
        "holdfast_check_status",
        "The latest result of a check: 0 OK, 1 WARNING, 2 CRITICAL, 3 UNKNOWN.",
        ("check", "subject"),
        [((check, subject), status.exit_code) for check, subject, status in now.checks],
    )
    yield _gauge(
        "holdfast_engine_verdict",
        "1 for the verdict the engine has now, 0 for every other.",
        ("engine", "verdict"),
        [((name, each.value), float(each is verdict)) for name, verdict in now.engines for each in Verdict],
    )
    yield _gauge(
        "holdfast_engine_last_token_timestamp_seconds",
        "When a token of the engine was last proven, Unix time.",
        ("engine",),
        [((name,), at) for name, at in now.last_token_at.items()],
    )
    yield _gauge(
        "holdfast_incidents_open",
        "Incidents that are not resolved, by how loudly they are told.",
        ("urgency",),
        [((urgency.value,), now.incidents_open.get(urgency, 0)) for urgency in Urgency],
    )
    runs = CounterMetricFamily(
        "holdfast_run", "Runs that ended, by runbook and outcome.", labels=("runbook", "outcome")
    )
    for (runbook, outcome), count in now.runs.items():
        runs.add_metric((runbook, outcome), count)
    yield runs
    going = [((each.runbook, each.subject), each) for each in now.in_flight if not each.rehearsal]
    yield _gauge(
        "holdfast_run_step",
        "The step that a run in flight is at, 1 for the first; absent when none is in flight.",
        ("runbook", "subject"),
        [(labels, each.step) for labels, each in going],
    )
    yield _gauge(
        "holdfast_run_step_progress_ratio",
        "How much of that step is done, 0 to 1; absent when nobody can tell.",
        ("runbook", "subject"),
        [(labels, each.percent / 100) for labels, each in going if each.percent is not None],
    )
    yield _gauge(
        "holdfast_run_step_remaining_seconds",
        "How long that step will still take, learnt from earlier runs; absent when nobody can tell.",
        ("runbook", "subject"),
        [(labels, each.remaining_s) for labels, each in going if each.remaining_s is not None],
    )
    yield _gauge(
        "holdfast_rehearsal_proven_timestamp_seconds",
        "When a rehearsal of the runbook last succeeded, Unix time; absent when none ever did.",
        ("runbook", "subject"),
        [(labels, at) for labels, (at, _) in now.rehearsals.items()],
    )
    yield _gauge(
        "holdfast_rehearsal_duration_seconds",
        "How long the steps of that rehearsal took.",
        ("runbook", "subject"),
        [(labels, took_s) for labels, (_, took_s) in now.rehearsals.items() if took_s is not None],
    )
    yield _gauge(
        "holdfast_outbox_depth",
        "Alerts that a receiver has not yet accepted.",
        ("receiver",),
        [((name,), depth) for name, depth in now.outbox_depth.items()],
    )
    yield _gauge(
        "holdfast_receiver_failing",
        "1 when the receiver's last delivery failed.",
        ("receiver",),
        [((name,), float(name in now.receivers_failing)) for name in now.outbox_depth],
    )
    yield _gauge("holdfast_loop_lag_seconds", "How late the daemon's last tick was.", (), [((), now.loop_lag_s)])
    yield _gauge("holdfast_paused", "1 while acting is paused.", (), [((), float(now.paused))])


class Exporter:
    """Serves /metrics until it is stopped. `problem` says why nothing is served, "" when it is or should not be."""

    def __init__(self, listen: str, ask: Callable[[], Snapshot]) -> None:
        self.problem = ""
        self._server: ThreadingHTTPServer | None = None
        if listen == "off":
            return
        address, _, port = listen.rpartition(":")
        kind = _ServerV6 if address.startswith("[") else _Server
        try:
            self._server = kind((address.strip("[]"), int(port)), _handler(ask))
        except (OSError, OverflowError) as error:
            self.problem = f"{listen}: cannot listen: {getattr(error, 'strerror', None) or error}"
            log.error("metrics are not served: %s", self.problem)
            return
        threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True).start()

    @property
    def port(self) -> int:
        """The port that is listened on, 0 for none."""
        return int(self._server.server_address[1]) if self._server else 0

    def stop(self) -> None:
        """Stop serving."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


def serve(listen: str, ask: Callable[[], Snapshot]) -> Exporter:
    """Serve /metrics at `listen` ("127.0.0.1:9835", "[::1]:9835" or "off"). Never raises: watching matters more.

    ask: gives the snapshot of this moment; called from a worker thread for each scrape.
    """
    return Exporter(listen, ask)


class _Server(ThreadingHTTPServer):
    daemon_threads = True


class _ServerV6(_Server):
    address_family = AF_INET6


def _handler(ask: Callable[[], Snapshot]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 10  # seconds a client may take; a scraper that hangs must not keep a thread

        def do_GET(self) -> None:
            if self.path.partition("?")[0] != "/metrics":
                self.send_error(404)
                return
            try:
                body = exposition(ask())
            except Exception as error:  # noqa: BLE001 - a failed scrape is the scraper's news, not the daemon's end
                log.error("metrics cannot be told: %s", type(error).__name__)
                self.send_error(503)
                return
            self.send_response(200)
            self.send_header("Content-Type", CONTENT_TYPE)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            """Scrapes are not worth a line each."""

    return Handler
