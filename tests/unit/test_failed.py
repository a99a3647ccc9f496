"""When the daemon itself fails, everyone is told, whatever made it fail."""

from __future__ import annotations

import json

import pytest

from agent import failed
from agent.pager import last_words
from tests.support.fake_host import FakeHost, HttpCall, in_turn, unreachable

PRIMARY = "https://events.pagerduty.com/v2/enqueue"
HOOK = "http://127.0.0.1:9/hook"
CONFIGURATION = f"""
[[receiver]]
name = "primary"
kind = "pagerduty"
routing_key_file = "/etc/holdfast/secrets/key"

[[receiver]]
name = "hook"
kind = "webhook"
url = "{HOOK}"
fallback = true
"""
FILES = {
    "/etc/holdfast/holdfast.toml": CONFIGURATION,
    "/etc/holdfast/secrets/key": "key\n",
    "/etc/machine-id": "1a2b3c4d5e6f70819203a4b5c6d7e8f9\n",
    "/proc/sys/kernel/hostname": "gpu1\n",
}
SYSTEMD = {"MONITOR_SERVICE_RESULT": "watchdog", "MONITOR_EXIT_CODE": "dumped", "MONITOR_EXIT_STATUS": "ABRT"}


def test_every_receiver_is_told_why_and_remembered_for_the_resolve() -> None:
    host = FakeHost.build(FILES, http={f"POST {PRIMARY}": 202, f"POST {HOOK}": 200})
    assert failed.run(host, "holdfast.service", SYSTEMD) == 0
    events = [json.loads(call.body or b"") for call in host.http.calls]
    assert events[0]["dedup_key"] == events[1]["key"] == "holdfast/1a2b3c4d/daemon-failed/host"
    assert events[0]["payload"]["severity"] == "critical"
    assert events[0]["payload"]["summary"] == "Holdfast's daemon failed on gpu1"
    assert "watchdog, dumped ABRT" in events[0]["payload"]["custom_details"]["message"]
    assert last_words.told(host) == ("hook", "primary")
    assert last_words.serves_again(host).key == events[0]["dedup_key"]
    last_words.forget(host)
    assert last_words.told(host) == ()


def test_a_configuration_with_mistakes_does_not_silence_its_valid_receivers() -> None:
    broken = 'surprise = 1\n[[receiver]]\nname = "x"\nkind = "carrier-pigeon"\n' + CONFIGURATION
    host = FakeHost.build(
        {**FILES, "/etc/holdfast/holdfast.toml": broken, "/etc/holdfast/conf.d/a.toml": "not toml ["},
        http={f"POST {PRIMARY}": 202, f"POST {HOOK}": 200},
    )
    environment = {"MONITOR_SERVICE_RESULT": "exit-code", "MONITOR_EXIT_CODE": "exited", "MONITOR_EXIT_STATUS": "78"}
    assert failed.run(host, "holdfast.service", environment) == 0
    assert len(host.http.calls) == 2
    assert "configuration is not valid" in str(json.loads(host.http.calls[0].body or b""))


def test_a_receiver_that_is_down_is_tried_again_with_the_same_alert_and_not_for_ever() -> None:
    host = FakeHost.build(
        FILES,
        http={f"POST {PRIMARY}": in_turn(503, unreachable("timeout"), 202), f"POST {HOOK}": unreachable("refused")},
    )
    began = host.clock.now()
    assert failed.run(host, "holdfast.service", {}) == 0
    bodies = [call.body for call in host.http.calls if call.url == PRIMARY]
    assert len(bodies) == 3
    assert len(set(bodies)) == 1
    assert host.clock.now().since(began) <= last_words.PATIENCE_S
    assert len([call for call in host.http.calls if call.url == HOOK]) < 100


def test_who_was_told_is_remembered_before_the_others_are_waited_for() -> None:
    def check(call: HttpCall) -> int:
        return 500

    host = FakeHost.build(FILES, http={f"POST {PRIMARY}": 202, f"POST {HOOK}": check})
    seen: list[tuple[str, ...]] = []
    real_sleep = host.clock.sleep
    host.clock.sleep = lambda seconds: (seen.append(last_words.told(host)), real_sleep(seconds))  # type: ignore[method-assign,assignment,func-returns-value]
    failed.run(host, "holdfast.service", {})
    assert set(seen) == {("primary",)}


def test_another_unit_of_ours_has_a_key_of_its_own_and_nothing_resolves_it_by_itself() -> None:
    host = FakeHost.build(FILES, http={f"POST {PRIMARY}": 202, f"POST {HOOK}": 200})
    assert failed.run(host, "holdfast-recover.service", {}) == 0
    assert json.loads(host.http.calls[0].body or b"")["dedup_key"] == "holdfast/1a2b3c4d/recover-failed/host"
    assert last_words.told(host) == ()


def test_without_a_receiver_it_says_so_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert failed.run(FakeHost.build({}), "holdfast.service", {}) == 1
    assert capsys.readouterr().err == "<2>holdfast.service failed, and there is no usable receiver to tell it to\n"


def test_when_nobody_can_be_told_it_fails_loudly(capsys: pytest.CaptureFixture[str]) -> None:
    host = FakeHost.build(FILES, http={f"POST {PRIMARY}": 400, f"POST {HOOK}": unreachable("refused")})
    assert failed.run(host, "holdfast.service", {}) == 1
    assert capsys.readouterr().err.startswith("<2>")


def test_a_marker_that_makes_no_sense_is_no_marker() -> None:
    for content in ("", "[]", '{"told": 5}', "\0"):
        assert last_words.told(FakeHost.build({last_words.FILE: content})) == ()
