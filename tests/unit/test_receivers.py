"""What each receiver sends for an alert, and what it makes of the answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from agent import plugin
from agent.config import HeartbeatSettings
from agent.host import Reply
from agent.model import Alert, Delivery, DeliveryState, Urgency
from agent.pager import heartbeat, outbox
from agent.pager.receivers import pagerduty
from agent.pager.receivers.webhook import WebhookSettings, signature
from agent.store import Attempt
from tests.support.fake_host import FakeHost, in_turn, unreachable

DATA = Path(__file__).resolve().parents[1] / "data"
CASES = sorted(path for kind in ("pagerduty", "webhook") for path in (DATA / kind).iterdir())
PAGERDUTY = "https://events.pagerduty.com/v2/enqueue"


def an_alert(**changes: Any) -> Alert:
    values: dict[str, Any] = {
        "id": "01T:trigger", "key": "holdfast/1a2b3c4d/disk-full/host", "action": "trigger",
        "urgency": Urgency.WARNING, "title": "Disk full on gpu1", "body": "b", "source": "gpu1", "subject": "host",
        "finding": "disk-full", "at": 1.0, "since": 1.0,
    }  # fmt: skip
    return Alert(**{**values, **changes})


@pytest.mark.parametrize("case", CASES, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_a_recorded_exchange(case: Path) -> None:
    expected = json.loads((case / "expected.json").read_text())
    receiver = plugin.receivers()[case.parent.name]
    host = FakeHost.load(case)
    given = expected["alert"]
    alert = Alert(**{**given, "urgency": Urgency(given["urgency"]), "details": tuple(map(tuple, given["details"]))})
    delivery = receiver.send(host, receiver.settings.model_validate(expected["settings"]), alert)
    wanted = expected["delivery"]
    assert delivery == Delivery(**{**wanted, "state": DeliveryState(wanted["state"])})
    assert [json.loads(call.body or b"") for call in host.http.calls] == expected["sent"]
    for call in host.http.calls:
        assert call.headers.items() >= expected.get("headers", {}).items()
        assert call.timeout_s <= 10


def test_a_repeat_is_byte_for_byte_the_same() -> None:
    host = FakeHost.build({"/k": "key"}, http={f"POST {PAGERDUTY}": in_turn(500, 202)})
    settings = pagerduty.PagerDutySettings(name="p", kind="pagerduty", routing_key_file="/k")
    for number in (1, 2):
        host.clock.advance(60)
        outbox.attempt(host, [settings], Attempt(1, "p", an_alert(), number))
    assert host.http.calls[0].body == host.http.calls[1].body


def test_pagerdutys_limits_are_kept_whatever_the_alert() -> None:
    details = tuple((f"d{number}", "x" * 5000) for number in range(200))
    host = FakeHost.build({"/k": "key"}, http={f"POST {PAGERDUTY}": 202})
    settings = pagerduty.PagerDutySettings(name="p", kind="pagerduty", routing_key_file="/k")
    huge = an_alert(title="t" * 5000, key="k" * 400, details=details)
    assert pagerduty.send(host, settings, huge).state == "sent"
    body = host.http.calls[0].body or b""
    event = json.loads(body)
    assert len(body) <= 512 << 10
    assert len(event["dedup_key"]) <= 255
    assert len(event["payload"]["summary"]) == 1024


def test_two_long_keys_with_the_same_beginning_stay_two() -> None:
    assert pagerduty.dedup_key("k" * 300 + "a") != pagerduty.dedup_key("k" * 300 + "b")


def test_the_eu_region_is_a_matter_of_configuration() -> None:
    url = "https://events.eu.pagerduty.com/v2/enqueue"
    host = FakeHost.build({"/k": "key"}, http={f"POST {url}": 202})
    settings = pagerduty.PagerDutySettings(name="p", kind="pagerduty", routing_key_file="/k", url=url)
    assert pagerduty.send(host, settings, an_alert()).state == "sent"


def test_no_secret_is_in_what_a_delivery_says() -> None:
    host = FakeHost.build({"/k": "TOPSECRET"}, http={f"POST {PAGERDUTY}": b"TOPSECRET"})
    settings = pagerduty.PagerDutySettings(name="p", kind="pagerduty", routing_key_file="/k")
    assert "TOPSECRET" not in pagerduty.send(host, settings, an_alert()).reason


@pytest.mark.parametrize(
    ("settings", "wrong"),
    [
        ({"template": "{{ titel }}"}, "does not render"),
        ({"template": "{% if %}"}, "does not render"),
        ({"template": "x", "template_file": "/x"}, "exclude each other"),
        ({"headers": {"X-Bad": "a\r\nInjected: 1"}}, "control"),
        ({"headers": {"Bad Name": "a"}}, "not a header's name"),
        ({"headers": {"x-holdfast-signature": "a"}}, "set by Holdfast"),
        ({"url": "ftp://x"}, "pattern"),
        ({"tempalte": "x"}, "Extra inputs"),
    ],
)
def test_a_mistake_in_a_webhooks_table_is_found_with_the_configuration(settings: dict[str, Any], wrong: str) -> None:
    with pytest.raises(ValidationError, match=wrong):
        WebhookSettings.model_validate({"name": "w", "kind": "webhook", "url": "http://x/", **settings})


def test_the_signature_covers_timestamp_and_body() -> None:
    """The value is what `printf '1.{}' | openssl dgst -sha256 -hmac key` prints."""
    assert signature("key", "1", b"{}") == "sha256=1ba6b8171186efc613e8bcc0cbdab2748f24984d7c5a84faa2637afa0e40d224"
    assert signature("key", "2", b"{}") != signature("key", "1", b"{}")


def test_a_crash_in_a_receiver_is_a_retry_that_may_have_been_taken() -> None:
    settings = pagerduty.PagerDutySettings(name="p", kind="pagerduty", routing_key_file="/k")
    host = FakeHost.build({"/k": "key"}, http={f"POST {PAGERDUTY}": RuntimeError("secret words")})
    delivery = outbox.attempt(host, [settings], Attempt(1, "p", an_alert(), 1))
    assert (delivery.state, delivery.uncertain) == ("retry", True)
    assert "secret" not in delivery.reason


def test_a_retry_after_is_the_wait_unless_it_is_nonsense() -> None:
    settings = pagerduty.PagerDutySettings(name="p", kind="pagerduty", routing_key_file="/k")
    for value, wait_s in (("90", 90), ("-5", None), ("soon", None), ("9" * 40, 3600), ("", None), ("٣", None)):
        host = FakeHost.build({"/k": "key"}, http={f"POST {PAGERDUTY}": Reply(429, b"", {"retry-after": value})})
        delivery = outbox.attempt(host, [settings], Attempt(1, "p", an_alert(), 1))
        assert delivery.after_s == (wait_s or outbox.wait_s(1, 1)), value


# --- heartbeat -----------------------------------------------------------------------------------------------

BEAT = HeartbeatSettings(url="https://hc.example.org/SECRET", every_s=60)


def test_the_heart_beats_only_after_a_complete_round_with_nothing_untold() -> None:
    host = FakeHost.build()
    now = host.clock.now()
    fresh = heartbeat.Pulse()
    assert heartbeat.due(fresh, BEAT, now, round_complete=True, untold=0)
    assert not heartbeat.due(fresh, BEAT, now, round_complete=False, untold=0)
    assert not heartbeat.due(fresh, BEAT, now, round_complete=True, untold=1)
    assert not heartbeat.due(fresh, None, now, round_complete=True, untold=0)


def test_the_heart_beats_at_most_as_often_as_set_whatever_the_wall_clock_does() -> None:
    host = FakeHost.build()
    pulse, _ = heartbeat.noted(heartbeat.Pulse(), host.clock.now(), "")
    host.clock.advance(59, wall_step=1e6)
    assert not heartbeat.due(pulse, BEAT, host.clock.now(), round_complete=True, untold=0)
    host.clock.advance(1, wall_step=-2e6)
    assert heartbeat.due(pulse, BEAT, host.clock.now(), round_complete=True, untold=0)


def test_a_failing_heartbeat_is_logged_once_per_change_and_without_its_secret() -> None:
    host = FakeHost.build(http={BEAT.url: in_turn(500, unreachable("refused"), 200, 200)})
    pulse, lines = heartbeat.Pulse(), []
    for _ in range(4):
        pulse, line = heartbeat.noted(pulse, host.clock.now(), heartbeat.beat(host, BEAT))
        lines.append(line)
    assert lines == ["the heartbeat fails: answered 500", "", "the heartbeat works again", ""]
