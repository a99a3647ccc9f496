"""Delivery when the receivers misbehave, on a booted host with the installed package and a real engine.

An outage lasts OUTAGE_S: 20 s here, so that CI stays short; with HOLDFAST_OUTAGE_S=300 it is the five minutes that a
pager's own incident takes. The backoff is the shipped one, so the waits after an outage are as long as the last of its
waits: 5 s doubling to 5 min.
"""

from __future__ import annotations

import hashlib
import hmac
import itertools
import json
import os
import time
from collections import defaultdict
from collections.abc import Callable
from datetime import datetime

from bed import BootedHost, Event, PagerInbox, kill
from spine import Page, Watched, watched

Boot = Callable[..., BootedHost]
OUTAGE_S = float(os.environ.get("HOLDFAST_OUTAGE_S", "20"))
ARRIVES_S = 120 + 2 * OUTAGE_S
"""After an outage the next attempt comes within the last wait, which is no longer than the outage was, and jitter."""
SECRET = "hunter2-but-longer"
HEARTBEAT = '\n[heartbeat]\nurl = "http://127.0.0.1:9097/ping"\nevery_s = 10\n'
WEBHOOK = """
[[receiver]]
name = "hook"
kind = "webhook"
url = "http://127.0.0.1:9098/hook"
secret_file = "/etc/holdfast/secrets/hook"
"""


def hooked(host: Boot, more: str = WEBHOOK, **options: object) -> tuple[Watched, PagerInbox]:
    """A watched engine with a second receiver, and that one's inbox."""
    scene = watched(host, **options)  # type: ignore[arg-type]
    scene.host.write("/etc/holdfast/secrets/hook", SECRET + "\n", mode=0o640)
    scene.host.sh("chgrp holdfast /etc/holdfast/secrets/hook")
    hook = PagerInbox(scene.host, port=9098)

    def reloads() -> int:
        return scene.host.journal("holdfast.service").count("configuration reloaded")

    before = reloads()
    scene.configure(more=more)
    scene.host.wait_for(lambda: reloads() > before, 30, "the reload")
    return scene, hook


def kill_daemon(scene: Watched) -> None:
    """SIGKILL; systemd starts it again."""
    kill(scene.host, scene.host.main_pid("holdfast.service"))


def wait_resolved(scene: Watched, timeout: float = 120) -> None:
    """Until the daemon has seen the end of every incident, whatever was told of it."""

    def over() -> bool:
        known = scene.incidents()
        return bool(known) and all(each["phase"] == "resolved" for each in known)

    scene.host.wait_for(over, timeout, "every incident to be over", every=0.5)


def taken(scene: Watched) -> list[Page]:
    """What the pager accepted about the engine. (That the daemon was killed is told too, once and quietly.)"""
    return [page for page in about_engine(scene) if page.status == 202]


def about_engine(scene: Watched) -> list[Page]:
    """Every attempt to tell of the engine."""
    return [page for page in scene.pages() if page.finding == "engine-dead"]


def assert_in_order(scene: Watched) -> None:
    """Per key: a resolve only after its trigger, and once; what was refused is repeated as the same action."""
    accepted: dict[str, list[str]] = defaultdict(list)
    refused: dict[str, list[str]] = defaultdict(list)
    for page in scene.pages():
        if page.status != 202:
            refused[page.key].append(page.action)
            continue
        accepted[page.key].append(page.action)
    for key, actions in accepted.items():
        told = [actions[0], *(b for a, b in itertools.pairwise(actions) if b != a)]
        assert told in (["trigger"], ["trigger", "resolve"]), (key, actions)
        assert actions.count("resolve") <= 1, (key, actions)
    for key, actions in refused.items():
        assert len(set(actions)) == 1, (key, actions)


def test_a_fault_that_nobody_heard_of_becomes_one_event_with_its_times(host: Boot) -> None:
    """500, then 429 with Retry-After, then connections refused for OUTAGE_S; the daemon is killed meanwhile.

    The heartbeat is silent from the first failed attempt until the event is told.
    """
    scene = watched(host, more=HEARTBEAT)
    beats = PagerInbox(scene.host, port=9097)
    beats.wait_for(lambda event: event.path == "/ping", 60)
    scene.inbox.behave(500)
    began = time.time()
    kill(scene.host, scene.engine.pid)
    scene.host.wait_for(lambda: any(page.status == 500 for page in scene.pages()), 60, "the first attempt")
    failed = time.time()
    wait_resolved(scene)
    over = time.time()
    scene.inbox.behave(429, retry_after=3)
    scene.host.wait_for(lambda: any(page.status == 429 for page in scene.pages()), 120, "an attempt told to wait")
    scene.inbox.refuse()
    kill_daemon(scene)
    time.sleep(OUTAGE_S)
    silent_until = time.time()
    scene.inbox.behave(202)
    scene.inbox.start()
    scene.host.wait_for(lambda: len(taken(scene)) >= 2, ARRIVES_S, "the event", every=1)
    time.sleep(5)
    event, end = taken(scene)
    assert (event.action, event.severity, event.finding) == ("trigger", "info", "engine-dead")
    assert (end.action, end.key) == ("resolve", event.key)
    sent = next(each.json() for each in scene.inbox.events() if each.json().get("dedup_key") == event.key)
    details = sent["payload"]["custom_details"]  # type: ignore[index]
    assert began - 2 <= seconds(details["began"]) <= failed
    assert began - 2 <= seconds(details["reported"]) <= failed
    assert failed - 1 <= seconds(details["over"]) <= over + 1
    beaten = [each.at for each in beats.events()]
    assert not [at for at in beaten if failed + 3 < at < silent_until], "it must be silent while nobody was told"
    beats.wait_for(lambda each: each.at > silent_until, 60)
    told = [page for page in about_engine(scene) if page.key == event.key]
    assert {page.action for page in told[:-1]} == {"trigger"}
    others = [page for page in about_engine(scene) if page.key != event.key]
    assert {(page.action, page.status) for page in others} == {("trigger", 500)}, "none of these was taken"
    assert_in_order(scene)


def seconds(text: str) -> float:
    """An RFC 3339 time as Unix seconds."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def test_every_state_arrives_in_order_over_a_killed_daemon_and_a_power_cut(host: Boot) -> None:
    """The first page is taken; then nothing is, for OUTAGE_S, while the repair fails, the daemon is killed and the
    power is cut. Afterwards every key tells its latest state, and the end when it has come."""
    scene = watched(host, writable=True)
    quick = scene.host.read("/usr/share/holdfast/runbooks/restart-engine.yaml").replace(
        'cooldown: "5m"', 'cooldown: "2s"'
    )
    assert 'cooldown: "2s"' in quick
    scene.host.write("/etc/holdfast/runbooks.d/restart-engine.yaml", quick)
    broken = "[Service]\nExecStart=\nExecStart=/bin/false\n"
    scene.host.write("/etc/systemd/system/llama-server.service.d/broken.conf", broken)
    scene.host.sh("systemctl daemon-reload; systemctl reload holdfast")
    kill(scene.host, scene.engine.pid)
    first = scene.triggered("engine-dead", 60)
    assert first.status == 202
    scene.inbox.refuse()
    scene.host.wait_for(
        lambda: any(each["phase"] == "escalated" for each in scene.incidents()), 180, "the escalation", every=0.5
    )
    kill_daemon(scene)
    time.sleep(OUTAGE_S / 2)
    scene.host.power_cut()
    scene.host.boot_again()
    time.sleep(OUTAGE_S / 2)
    scene.inbox.start()
    for key in ("/critical", "/escalated"):
        scene.page(lambda page, key=key: page.key.endswith(key), ARRIVES_S, f"the page under {key}")
    assert_in_order(scene)
    scene.host.sh("rm /etc/systemd/system/llama-server.service.d/broken.conf; systemctl daemon-reload")
    scene.host.sh("systemctl reset-failed llama-server; systemctl start llama-server")
    for key in ("engine:chat", "/critical", "/escalated"):
        scene.page(
            lambda page, key=key: page.action == "resolve" and page.key.endswith(key), ARRIVES_S, f"resolve of {key}"
        )
    assert_in_order(scene)
    assert {page.status for page in scene.pages()} == {202}


def test_a_pager_that_drops_answers_hears_the_same_state_again(host: Boot) -> None:
    """An attempt that may have been taken is repeated with the same key and action, also by the next daemon."""
    scene = watched(host)
    scene.inbox.behave(drop=True)
    kill(scene.host, scene.engine.pid)
    scene.host.wait_for(lambda: len(scene.pages()) >= 1, 60, "the first attempt")
    wait_resolved(scene)
    kill_daemon(scene)
    scene.host.wait_for(lambda: len(about_engine(scene)) >= 2, 120, "a repeat")
    scene.inbox.behave(202)
    scene.resolved("engine-dead", ARRIVES_S)
    pages = [(page.key, page.action) for page in about_engine(scene)]
    assert pages == [*[(pages[0][0], "trigger")] * (len(pages) - 1), (pages[0][0], "resolve")]


def test_a_second_receiver_does_not_wait_for_a_dead_first_one(host: Boot) -> None:
    scene, hook = hooked(host)
    scene.inbox.refuse()
    kill(scene.host, scene.engine.pid)
    told = hook.wait_for(lambda event: event.json()["action"] == "trigger", 60)
    over = hook.wait_for(lambda event: event.json()["action"] == "resolve", 120)
    assert told.json()["key"] == over.json()["key"]
    assert "killed by SIGKILL" in str(told.json()["body"])
    for event in hook.events():
        assert signed(event)


def signed(event: Event) -> bool:
    """Whether the signature fits the body, as docs/reference/receivers.md says."""
    over = event.headers["x-holdfast-timestamp"].encode() + b"." + event.body.encode()
    expected = "sha256=" + hmac.new(SECRET.encode(), over, hashlib.sha256).hexdigest()
    return hmac.compare_digest(event.headers["x-holdfast-signature"], expected)


def test_the_fallback_hears_what_nobody_took_and_how_it_ended(host: Boot) -> None:
    more = WEBHOOK + "fallback = true\n\n[pager]\nfallback_after_s = 8\n"
    scene, hook = hooked(host, more, mode="observe")
    scene.inbox.refuse()
    kill(scene.host, scene.engine.pid)
    told = hook.wait_for(lambda event: event.json()["action"] == "trigger", 90)
    opened = seconds(str(told.json()["at"]))
    assert told.at - opened >= 8
    scene.host.run("systemctl", "start", scene.engine.unit)
    hook.wait_for(lambda event: event.json()["action"] == "resolve", 120)


def test_the_fallback_is_silent_while_the_first_receiver_works(host: Boot) -> None:
    more = WEBHOOK + "fallback = true\n\n[pager]\nfallback_after_s = 2\n"
    scene, hook = hooked(host, more)
    kill(scene.host, scene.engine.pid)
    scene.resolved("engine-dead", 120)
    time.sleep(6)
    assert hook.events() == []


def test_an_acknowledgement_reaches_the_pager(host: Boot) -> None:
    scene = watched(host, mode="observe")
    kill(scene.host, scene.engine.pid)
    told = scene.triggered("engine-dead", 60)
    done = scene.host.run("holdfast", "incident", "ack")
    assert "acknowledged" in done.stdout
    acknowledged = scene.page(lambda page: page.action == "acknowledge", 60, "the acknowledgement")
    assert acknowledged.key == told.key
    shown = json.loads(scene.host.run("holdfast", "incident", "show", "--json", check=False).stdout)
    assert shown["data"]["acknowledged_by"]
    status = scene.host.run("holdfast", "status", check=False)
    assert status.returncode == 2
    assert "DAEMON IS DOWN" not in status.stdout
    scene.host.run("systemctl", "start", scene.engine.unit)
    scene.resolved("engine-dead", 120)


def test_the_pager_test_prints_what_each_receiver_answered(host: Boot) -> None:
    scene, hook = hooked(host)
    hook.behave(202)
    done = scene.host.run("holdfast", "pager", "test")
    lines = {line.split()[1]: line for line in done.stdout.splitlines() if line.startswith(("OK", "CRITICAL"))}
    assert set(lines) == {"primary", "hook"}
    assert all(line.startswith("OK") for line in lines.values())
    hook.behave(500)
    done = scene.host.run("holdfast", "pager", "test", check=False)
    assert done.returncode == 2
    failed = next(line for line in done.stdout.splitlines() if "hook" in line)
    assert failed.startswith("CRITICAL")
    assert "500" in failed
    assert "primary" in done.stdout
    assert scene.incidents() == [], "a test page opens no incident"
