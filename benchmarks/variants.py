"""What watches the engine in a measurement: Holdfast, and what people use in its place, each as its manual sets it up.

A variant's ``set_up`` finds a booted host with its packages, starts the engine's unit and the watcher, and returns
when both are at work. Every alert arrives at an address inside the host.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

HOST_TIER = Path(__file__).resolve().parents[1] / "tests" / "host"
sys.path.insert(0, str(HOST_TIER))

from bed import (  # noqa: E402 (needs the path above)
    Bed,
    BootedHost,
    LlamaUnit,
    PagerInbox,
    ensure,
    freeze_thread,
    kill,
    llama_unit,
    stopped,
)
from spine import CONFIGURATION, ROUTING_KEY, built_package  # noqa: E402

__all__ = [
    "BY_NAME",
    "GUEST",
    "PROGRAM",
    "VARIANTS",
    "Bed",
    "BootedHost",
    "Variant",
    "engines",
    "ensure",
    "freeze_thread",
    "kill",
    "lines_of",
    "stopped",
]

GUEST = Path(__file__).with_name("guest")
RECORDS = "var/lib/bed/inbox-9099.jsonl"
MAILS = "var/lib/bed/mails.jsonl"
PROGRAM = "/usr/local/bin/llama-server"
"""A link to the real one, so that a broken one can be put in its place."""

SECOND_ENGINE = """
[[engine]]
name = "code"
kind = "llama.cpp"
url = "http://127.0.0.1:8081"
unit = "llama-server-2.service"
"""

ALERT = "curl -fsS -m 10 -o /dev/null --data 'llama-server does not answer' http://127.0.0.1:9099/alert"
TIMER = """\
[Timer]
OnActiveSec=1s
OnUnitActiveSec=30s
AccuracySec=100ms
"""
SERVICE = """\
[Service]
Type=oneshot
ExecStart=/bin/sh -c '{ask} || {{ {alert}; systemctl restart llama-server; }}'
"""
ASK_HEALTH = "curl -fsS -m 5 -o /dev/null http://127.0.0.1:8080/health"
ASK_COMPLETION = (
    'curl -fsS -m 10 -o /dev/null -H "Content-Type: application/json" '
    '--data "{\\\\"prompt\\\\":\\\\"hello\\\\",\\\\"n_predict\\\\":1}" http://127.0.0.1:8080/completion'
)

MONIT = """\
set daemon {cycle_s}
set mailserver 127.0.0.1 port 2525
set alert root@localhost
{processes}
"""
MONIT_PROCESS = """\
check process {name} matching "^{program} .*--port {port}"
  start program = "/usr/bin/systemctl start {name}"
  stop program = "/usr/bin/systemctl stop {name}"
  if failed host 127.0.0.1 port {port} protocol http request "/health" for 2 cycles then restart
  if 5 restarts within 25 cycles then unmonitor
"""

PROMETHEUS = """\
global: {{scrape_interval: 15s, evaluation_interval: 15s}}
alerting: {{alertmanagers: [{{static_configs: [{{targets: ["127.0.0.1:9093"]}}]}}]}}
rule_files: [/etc/prometheus/rules.yml]
scrape_configs:
  - job_name: llama
    static_configs: [{{targets: [{targets}]}}]
  - job_name: blackbox
    metrics_path: /probe
    params: {{module: [http_2xx]}}
    static_configs: [{{targets: [{probes}]}}]
    relabel_configs:
      - {{source_labels: [__address__], target_label: __param_target}}
      - {{source_labels: [__param_target], target_label: instance}}
      - {{target_label: __address__, replacement: "127.0.0.1:9115"}}
"""
RULES = """\
groups:
  - name: llama
    rules:
      - {alert: EngineHealthFails, expr: probe_success == 0, for: 1m}
      - {alert: EngineDown, expr: up == 0, for: 1m}
"""
ALERTMANAGER = """\
route: {receiver: webhook, group_wait: 30s, group_interval: 5m, repeat_interval: 3h}
receivers:
  - name: webhook
    webhook_configs: [{url: "http://127.0.0.1:9099/alert"}]
"""


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to watch an engine.

    cycle_s: how often it looks; faults come at a random moment of this time. restart: the unit's Restart= and more.
    tells: whether it can alert at all. packages: Debian packages of the host. units: what its cost is summed over.
    """

    name: str
    title: str
    set_up: Callable[[BootedHost, Variant, int], None]
    cycle_s: float
    settle_s: float = 5.0
    service: tuple[str, ...] = ("Restart=on-failure",)
    tells: bool = True
    packages: tuple[str, ...] = ()
    alerts: Callable[[BootedHost], list[float]] = lambda _host: []


def engines(host: BootedHost, variant: Variant, count: int = 1) -> list[LlamaUnit]:
    """Start so many real engines, named llama-server and llama-server-2, on ports 8080 and 8081."""
    host.run("ln", "-s", "/opt/llama/llama-server", PROGRAM)
    return [
        llama_unit(
            host, "llama-server" + (f"-{number}" if number > 1 else ""), port=8079 + number, program=PROGRAM,
            service_lines=list(variant.service),
        )
        for number in range(1, count + 1)
    ]  # fmt: skip


def lines_of(host: BootedHost, path: str) -> list[dict[str, object]]:
    """Records a helper in the host has written so far; read from outside, so that looking costs the host nothing."""
    try:
        text = (host.root / path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return [json.loads(line) for line in text.splitlines() if line.endswith("}")]


def posts(host: BootedHost) -> list[float]:
    """When alerts arrived at the webhook; resolves and heartbeats are none."""
    return [float(str(record["at"])) for record in lines_of(host, RECORDS) if _is_alert(str(record["body"]))]


def mails(host: BootedHost) -> list[float]:
    """When mails arrived."""
    return [float(str(record["at"])) for record in lines_of(host, MAILS)]


def _is_alert(body: str) -> bool:
    try:
        said = json.loads(body)
    except ValueError:
        return True
    if isinstance(said, dict) and "event_action" in said:
        return bool(said["event_action"] == "trigger")
    return not (isinstance(said, dict) and said.get("status") == "resolved")


def _inbox(host: BootedHost, status: int = 200) -> PagerInbox:
    inbox = PagerInbox(host, port=9099)
    inbox.behave(status)
    return inbox


def _holdfast(host: BootedHost, variant: Variant, count: int) -> None:
    inbox = _inbox(host, 202)
    engines(host, variant, count)
    host.install_deb(built_package())
    host.write("/etc/holdfast/secrets/pagerduty", ROUTING_KEY + "\n", mode=0o640)
    text = CONFIGURATION.format(mode="act", engine="", more=SECOND_ENGINE if count > 1 else "", url=inbox.url)
    host.write("/etc/holdfast/holdfast.toml", text, mode=0o640)
    host.sh("chgrp holdfast /etc/holdfast/holdfast.toml /etc/holdfast/secrets/pagerduty")
    host.sh("systemctl reload-or-restart holdfast")
    names = ("chat", "code")[:count]
    host.wait_for(
        lambda: all(
            f"engine.progress engine:{name}: READY" in host.journal("holdfast.service") for name in names
        ), 60, "READY", every=1,
    )  # fmt: skip


def _systemd(host: BootedHost, variant: Variant, count: int) -> None:
    engines(host, variant, count)


def _timer(ask: str) -> Callable[[BootedHost, Variant, int], None]:
    def set_up(host: BootedHost, variant: Variant, count: int) -> None:
        _inbox(host)
        engines(host, variant, count)
        host.write("/etc/systemd/system/watch.service", SERVICE.format(ask=ask, alert=ALERT.replace("'", '"')))
        host.write("/etc/systemd/system/watch.timer", TIMER)
        host.sh("systemctl daemon-reload; systemctl start watch.timer")

    return set_up


def _monit(cycle_s: int) -> Callable[[BootedHost, Variant, int], None]:
    def set_up(host: BootedHost, variant: Variant, count: int) -> None:
        host.push(GUEST / "mailbox.py", "/var/lib/bed/mailbox.py")
        host.sh(f"systemd-run -q --unit=bed-mailbox python3 -IS /var/lib/bed/mailbox.py 2525 /{MAILS}")
        units = engines(host, variant, count)
        watched = "\n".join(MONIT_PROCESS.format(name=u.name, port=u.port, program=PROGRAM) for u in units)
        host.write("/etc/monit/conf.d/engines", MONIT.format(cycle_s=cycle_s, processes=watched), mode=0o600)
        host.run("systemctl", "restart", "monit")

    return set_up


def _prometheus(host: BootedHost, variant: Variant, count: int) -> None:
    _inbox(host)
    units = engines(host, variant, count)
    targets = ", ".join(f'"127.0.0.1:{unit.port}"' for unit in units)
    probes = ", ".join(f'"http://127.0.0.1:{unit.port}/health"' for unit in units)
    files: Mapping[str, str] = {
        "prometheus.yml": PROMETHEUS.format(targets=targets, probes=probes),
        "rules.yml": RULES,
        "alertmanager.yml": ALERTMANAGER,
    }
    for name, text in files.items():
        host.write(f"/etc/prometheus/{name}", text)
    # Its cluster port wants an address that is not loopback; a single one needs no cluster.
    host.write("/etc/default/prometheus-alertmanager", 'ARGS="--cluster.listen-address="\n')
    host.sh("systemctl restart prometheus prometheus-alertmanager prometheus-blackbox-exporter")


PROMETHEUS_THREE = ("prometheus", "prometheus-alertmanager", "prometheus-blackbox-exporter")
VARIANTS = (
    Variant("holdfast", "Holdfast", _holdfast, 30, alerts=posts),
    Variant("holdfast-alone", "Holdfast, unit without Restart=", _holdfast, 30, service=(), alerts=posts),
    Variant("systemd", "systemd Restart=on-failure", _systemd, 5, tells=False),
    Variant("systemd-always", "systemd Restart=always, RestartSec=3", _systemd, 5,
            service=("Restart=always", "RestartSec=3"), tells=False),
    Variant("timer-health", "timer 30 s, curl /health, restart", _timer(ASK_HEALTH), 30, packages=("curl",),
            alerts=posts),
    Variant("timer-token", "timer 30 s, one-token completion, restart", _timer(ASK_COMPLETION), 30, packages=("curl",),
            alerts=posts),
    Variant("monit-120", "monit, Debian's default 120 s", _monit(120), 120, packages=("monit",), alerts=mails),
    Variant("monit-10", "monit, 10 s", _monit(10), 10, settle_s=15, packages=("monit",), alerts=mails),
    Variant("prometheus", "Prometheus, blackbox exporter, Alertmanager", _prometheus, 15, settle_s=35,
            packages=PROMETHEUS_THREE, alerts=posts),
)  # fmt: skip
BY_NAME = {variant.name: variant for variant in VARIANTS}
