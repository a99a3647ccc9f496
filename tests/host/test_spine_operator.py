"""An operator's hand: what people do to an engine, to Holdfast and to its configuration, and what must follow."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest
from bed import BootedHost, kill
from spine import Watched, watched

Boot = Callable[..., BootedHost]
NOTHING_MORE_S = 20.0
"""Long enough for every check of an engine to have looked again at least twice."""

FIVE_MISTAKES = """\
[autonomy]
mode = "sometimes"

[[engine]]
name = "Chat!"
kind = "llama.cpp"
url = "127.0.0.1:8080"
unit = "llama-server"

[[receiver]]
name = "primary"
kind = "pagerduty"
routing_key_file = "secrets/pagerduty"
"""


def quietly_told_and_left_alone(scene: Watched, before: int) -> None:
    """One more quiet page about the stopped engine than `before`, and nothing is started."""

    def told() -> list[str]:
        pages = [page for page in scene.pages() if page.finding == "engine-stopped" and page.action == "trigger"]
        assert {page.severity for page in pages} <= {"info"}
        return [page.key for page in pages]

    scene.host.wait_for(lambda: len(told()) > before, 30, "the stopped engine to be told")
    time.sleep(NOTHING_MORE_S)
    assert len(told()) == before + 1
    assert scene.engine.pid == 0
    assert scene.starts() == 0


def over(scene: Watched, finding: str) -> None:
    """Wait until the latest incident of this cause is resolved."""

    def resolved() -> bool:
        found = [each for each in scene.incidents() if each["finding"] == finding]
        return bool(found) and all(each["phase"] == "resolved" for each in found)

    scene.host.wait_for(resolved, 60, f"{finding} to be over")


@pytest.mark.parametrize("suite", ["bookworm", "trixie"])
def test_what_an_operator_stops_disables_or_masks_is_told_quietly_and_never_started(host: Boot, suite: str) -> None:
    scene = watched(host, suite, restart="always")
    run, unit = scene.host.run, scene.engine.unit
    # systemctl masks only what the package shipped, not what lies in /etc.
    scene.host.sh(f"mv /etc/systemd/system/{unit} /usr/lib/systemd/system/; systemctl daemon-reload")
    scene.host.sh(f"systemctl reenable {unit}")
    by_hand = (
        (("stop",), ("start",)),
        (("disable", "--now"), ("enable", "--now")),
        (("mask", "--now"), ("unmask",)),
    )
    for told, (away, back) in enumerate(by_hand):
        run("systemctl", *away, unit)
        quietly_told_and_left_alone(scene, told)
        status = run("holdfast", "status", check=False)
        assert "STOPPED" in status.stdout
        run("systemctl", *back, unit)
        run("systemctl", "start", unit)
        over(scene, "engine-stopped")
        assert scene.engine.generates()
    assert {page.finding for page in scene.pages()} == {"engine-stopped"}


def test_nothing_is_started_while_paused_and_the_dead_engine_is_repaired_after_resume(host: Boot) -> None:
    scene = watched(host)
    scene.host.run("holdfast", "pause", "1h", "--reason", "changing the riser card")
    kill(scene.host, scene.engine.pid)
    assert scene.triggered("engine-dead", 30).severity == "info"
    time.sleep(NOTHING_MORE_S)
    assert scene.engine.pid == 0
    assert scene.starts() == 0
    assert {page.severity for page in scene.pages() if page.action == "trigger"} == {"info"}
    assert "PAUSED" in scene.host.run("holdfast", "status", check=False).stdout
    scene.host.run("holdfast", "resume")
    scene.host.wait_for(scene.engine.generates, 60, "the engine to be repaired")
    over(scene, "engine-dead")
    assert scene.starts() == 1


def test_a_stopped_engine_stays_stopped_over_a_restart_of_holdfast_and_a_reboot(host: Boot) -> None:
    scene = watched(host, writable=True)
    scene.host.run("systemctl", "disable", "--now", scene.engine.unit)
    quietly_told_and_left_alone(scene, 0)
    scene.host.run("systemctl", "restart", "holdfast")
    time.sleep(NOTHING_MORE_S)
    assert scene.engine.pid == 0
    scene.host.boot_again()
    scene.inbox.start()
    time.sleep(NOTHING_MORE_S)
    assert scene.engine.pid == 0
    assert scene.starts() == 0
    told = [page for page in scene.pages() if page.action == "trigger"]
    assert [(page.finding, page.severity) for page in told] == [("engine-stopped", "info")]


def test_five_mistakes_are_five_messages_and_leave_the_running_daemon_unharmed(host: Boot) -> None:
    scene = watched(host)
    daemon = scene.host.main_pid("holdfast.service")
    scene.host.write("/etc/holdfast/holdfast.toml", FIVE_MISTAKES, mode=0o644)

    said = scene.host.run("holdfast", "check", "--config", check=False)
    assert said.returncode == 78
    messages = [line for line in (said.stdout + said.stderr).splitlines() if "/etc/holdfast/holdfast.toml: " in line]
    assert len(messages) == 5
    for place in ("autonomy.mode", "engine[0].name", "engine[0].url", "engine[0].unit", "receiver[0].routing_key_file"):
        assert sum(f"/etc/holdfast/holdfast.toml: {place}: " in line for line in messages) == 1, messages
    as_json = scene.host.run("holdfast", "check", "--config", "--json", check=False)
    assert as_json.returncode == 78
    assert len(json.loads(as_json.stdout)["errors"]) == 5

    scene.host.run("systemctl", "reload", "holdfast")
    page = scene.triggered("configuration-rejected", 30)
    assert page.severity == "warning"
    assert "and 4 more mistakes" in " ".join(page.message.split())
    assert scene.host.main_pid("holdfast.service") == daemon

    # It still watches with the old configuration. The runner acts on none that is wrong, and the page says so.
    kill(scene.host, scene.engine.pid)
    scene.triggered("engine-dead", 30)
    told = scene.page(
        lambda page: page.finding == "engine-dead" and "configuration" in page.message, 60, "why it is not repaired"
    )
    assert "autonomy.mode" in " ".join(told.message.split())
    assert scene.starts() == 0

    scene.configure()
    scene.resolved("configuration-rejected", 60)
    scene.resolved("engine-dead", 180)
    assert scene.engine.generates()
    assert scene.host.main_pid("holdfast.service") == daemon
