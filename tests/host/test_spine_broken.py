"""A binary that cannot work on this machine: a few starts at most, and one call for a person that says why."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from bed import BootedHost, kill, llama_unit
from spine import Page, Watched, watched

Boot = Callable[..., BootedHost]
PROGRAM = "/usr/local/bin/llama-server"
WORKING = '#!/bin/sh\nexec /opt/llama/llama-server "$@"\n'
LINE = "CUDA error: no kernel image is available for execution on the device"
BROKEN = f"#!/bin/sh\necho '{LINE}' >&2\nexit 127\n"
WATCHED_S = 120.0
NOTHING_MORE_S = 45.0

# "chat" has no Restart=; systemd gives up on "often" after five starts, and never on "patient".
PORTS = {"often": 8081, "patient": 8082}
RESTARTS = {"often": (), "patient": ("RestartSec=3",)}
ENGINES = "".join(
    f"""
[[engine]]
name = "{name}"
kind = "llama.cpp"
url = "http://127.0.0.1:{port}"
unit = "{name}.service"
"""
    for name, port in PORTS.items()
)


def triggers(scene: Watched, subject: str) -> list[Page]:
    """Every page that rings about this engine."""
    return [
        page
        for page in scene.pages()
        if page.action == "trigger" and page.severity != "info" and f"/engine:{subject}" in page.key
    ]


def calls_for_a_person(scene: Watched, subject: str) -> list[Page]:
    return [page for page in triggers(scene, subject) if page.key.endswith("/escalated")]


def attempts(scene: Watched) -> Counter[str]:
    return Counter(record["data"]["subject"].removeprefix("engine:") for record in scene.ledger("attempt"))


def test_a_broken_binary_is_started_three_times_at_most_and_told_once_with_the_line_that_says_why(host: Boot) -> None:
    def with_program(*suite: str, **options: Any) -> BootedHost:
        booted = host(*suite, **options)
        booted.write(PROGRAM, WORKING, 0o755)
        return booted

    scene = watched(with_program, writable=True, program=PROGRAM)
    units = {"chat": scene.engine}
    for name, port in PORTS.items():
        units[name] = llama_unit(
            scene.host, name, port=port, restart="always", service_lines=RESTARTS[name], program=PROGRAM
        )
    scene.configure(more=ENGINES)
    for name in PORTS:
        ready = f"engine.progress engine:{name}: READY"
        scene.host.wait_for(lambda mark=ready: mark in scene.host.journal("holdfast.service"), 60, ready)

    scene.host.write(PROGRAM, BROKEN, 0o755)
    broken_at = time.time()
    for unit in units.values():
        kill(scene.host, unit.pid)
    for name in units:
        scene.host.wait_for(lambda name=name: calls_for_a_person(scene, name), 120, f"the call for {name}")
    scene.host.wait_for(lambda: time.time() - broken_at > WATCHED_S, WATCHED_S + 10, "a while", every=5)
    told = {name: [page.key for page in triggers(scene, name)] for name in units}

    def nothing_new(after: str) -> None:
        for name in units:
            calls = calls_for_a_person(scene, name)
            assert len(calls) == 1, (name, after, [page.summary for page in calls])
            assert LINE in " ".join(calls[0].message.split()), calls[0].message
            assert attempts(scene)[name] <= 3, (name, after)
            assert [page.key for page in triggers(scene, name)] == told[name], (name, after)

    nothing_new("after a while")
    for name, keys in told.items():
        assert len(keys) <= 4, (name, keys)

    scene.host.run("systemctl", "restart", "holdfast")
    time.sleep(NOTHING_MORE_S)
    nothing_new("after a restart of Holdfast")

    scene.host.boot_again()
    scene.inbox.start()
    time.sleep(NOTHING_MORE_S)
    nothing_new("after a reboot")

    # Mended by a person, it is over.
    scene.host.write(PROGRAM, WORKING, 0o755)
    for name, unit in units.items():
        scene.host.run("systemctl", "reset-failed", unit.unit, check=False)
        scene.host.run("systemctl", "restart", unit.unit)
        unit.wait_until_generates()
        scene.host.wait_for(
            lambda name=name: any(
                page.action == "resolve" and page.key.endswith("/escalated") and f"/engine:{name}/" in page.key
                for page in scene.pages()
            ),
            150,
            f"{name} to be told as over",
        )
