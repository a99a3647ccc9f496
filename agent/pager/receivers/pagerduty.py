"""PagerDuty, Events API v2.

Triggers, acknowledges and resolves under the alert's dedup key. 202 is the only success; 400 and other client
errors are final; 429, 5xx and the network are tried again.

An `event` (something that is already over, or that needs nobody now) must not leave an incident open, and the API
has no such thing: it is a trigger with severity info under a key of its own, resolved at once. To keep these from
ringing at all, let the service's event rules suppress severity info.
"""

from __future__ import annotations

import hashlib
import json
from datetime import datetime, timezone
from typing import Any

from pydantic import Field

from agent.host import Host
from agent.model import Alert, Delivery, Json
from agent.pager.receivers._http import post, refused, secret
from agent.plugin import Receiver, ReceiverSettings

URL = "https://events.pagerduty.com/v2/enqueue"
"""The US service region; the EU one is https://events.eu.pagerduty.com/v2/enqueue."""
MAX_SUMMARY = 1024
MAX_KEY = 255
MAX_BYTES = 512 << 10
"""Limits of the Events API v2: summary and dedup_key in characters, the whole event in bytes."""


class PagerDutySettings(ReceiverSettings):
    """`[[receiver]]` with kind = "pagerduty"."""

    routing_key_file: str = Field(pattern=r"^/.+")
    """A file that holds the integration key (32 characters), readable by group holdfast; read for every page."""
    url: str = Field(default=URL, pattern=r"^https?://.+")
    """The service region's address, or a proxy's."""


def send(host: Host, settings: PagerDutySettings, alert: Alert) -> Delivery:
    """Send one alert."""
    routing_key = secret(host, settings.routing_key_file)
    if isinstance(routing_key, Delivery):
        return routing_key
    delivery = Delivery.sent()
    for event in events(alert):
        delivery = _enqueue(host, settings.url, {"routing_key": routing_key, **event})
        if delivery.state != "sent":
            break
    return delivery


def events(alert: Alert) -> list[dict[str, Json]]:
    """The requests that one alert becomes, without the routing key."""
    key = dedup_key(alert.key)
    if alert.action in ("acknowledge", "resolve"):
        return [{"event_action": alert.action, "dedup_key": key}]
    if alert.action == "event":
        key = dedup_key(f"{alert.key}/event/{alert.id}")
    trigger: dict[str, Json] = {
        "event_action": "trigger",
        "dedup_key": key,
        "client": "Holdfast",
        "payload": {
            "summary": alert.title[:MAX_SUMMARY],
            "source": alert.source,
            "severity": "info" if alert.action == "event" else alert.urgency.value,
            "timestamp": _timestamp(alert.at),
            "component": alert.subject,
            "group": "holdfast",
            "class": alert.finding,
            "custom_details": {"message": alert.body, **dict(alert.details)},
        },
    }
    if alert.action == "event":
        return [trigger, {"event_action": "resolve", "dedup_key": key}]
    return [trigger]


def dedup_key(key: str) -> str:
    """The key as PagerDuty takes it: one that is too long keeps its beginning and a digest of the whole."""
    if len(key) <= MAX_KEY:
        return key
    return f"{key[: MAX_KEY - 17]}/{hashlib.sha256(key.encode()).hexdigest()[:16]}"


def _enqueue(host: Host, url: str, event: dict[str, Any]) -> Delivery:
    body = json.dumps(event).encode()
    if len(body) > MAX_BYTES:
        event = {**event, "payload": {**event["payload"], "custom_details": {"message": "too large to send"}}}
        body = json.dumps(event).encode()
    reply = post(host, url, body, {"Content-Type": "application/json"})
    if isinstance(reply, Delivery):
        return reply
    if reply.status == 202:
        return Delivery.sent()
    if 200 <= reply.status < 300:
        # A captive portal says 200 to everything; only 202 is PagerDuty's word.
        return Delivery.retry(f"answered {reply.status} where 202 was expected", uncertain=True)
    return refused(host, reply)


def _timestamp(at: float) -> str:
    return datetime.fromtimestamp(at, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


RECEIVER = Receiver(kind="pagerduty", settings=PagerDutySettings, send=send)
