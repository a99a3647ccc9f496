"""Busy is not wedged: one host full of engines that are slow, full, loading or asleep, and one that really is sick.

All of them run at once under one daemon with its default settings, so that nothing but the sick one may be touched.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable

from bed import BootedHost, LlamaUnit, llama_unit, long_prompt, spin_thread
from bed.llama import BIG_STEP
from spine import Watched, watched

Boot = Callable[..., BootedHost]

PORTS = {"prefill": 8081, "step": 8082, "queue": 8083, "loading": 8084, "sleeping": 8085, "spinning": 8086}
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
STEP_S = 150.0
LOADING_S = 90.0
SPINNING_S = 240.0
"""The real default: for so long an engine may move without progress (agent/verdict.py)."""


def verdicts(scene: Watched, name: str) -> list[str]:
    """Every verdict that the daemon gave this engine, in order; it logs each change."""
    mark = f"engine.progress engine:{name}: "
    lines = scene.host.journal("holdfast.service").splitlines()
    return [line.split(mark, 1)[1].split(":", 1)[0] for line in lines if mark in line]


def now_is(scene: Watched, name: str) -> str:
    """The verdict of this moment, as `holdfast status` has it."""
    said = json.loads(scene.host.run("holdfast", "status", "--json", check=False).stdout)
    return next((each["verdict"] for each in said["data"]["engines"] if each["name"] == name), "")


def woken(unit: LlamaUnit) -> int:
    """How often a sleeping server has loaded its model."""
    return unit.host.journal(unit.unit).count("load_model: loading model")


def deferred(unit: LlamaUnit) -> int:
    """How many requests wait for a slot."""
    found = re.search(r"^llamacpp:requests_deferred (\d+)", unit.client.get("/metrics", timeout=30).body, re.MULTILINE)
    return int(found[1]) if found else -1


def asleep(unit: LlamaUnit) -> bool:
    """Whether it says so; asking wakes nobody."""
    return '"is_sleeping":true' in unit.client.get("/props").body


def test_only_the_spinning_engine_is_restarted_among_busy_full_loading_and_sleeping_ones(host: Boot) -> None:
    scene = watched(host)
    booted = scene.host
    big = {"model": "big", "parallel": 1}
    prefill = llama_unit(booted, "prefill", port=PORTS["prefill"], **big, extra_args=("--ubatch-size", "128"))
    step = llama_unit(booted, "step", port=PORTS["step"], **big, extra_args=BIG_STEP)
    queue = llama_unit(booted, "queue", port=PORTS["queue"])
    sleeping = llama_unit(booted, "sleeping", port=PORTS["sleeping"], extra_args=("--sleep-idle-seconds", "5"))
    spinning = llama_unit(booted, "spinning", port=PORTS["spinning"])
    loading = LlamaUnit(booted, "loading", PORTS["loading"])
    with contextlib.ExitStack() as load:
        scene.configure(more=ENGINES)
        for unit in (prefill, step, queue, sleeping, spinning):
            booted.wait_for(lambda name=unit.name: verdicts(scene, name), 60, f"{unit.name} to be watched")
        load.enter_context(spin_thread(booted, spinning.pid))
        spun_at = time.time()
        # Slow from its first instruction, and slower still once it answers, so that a fast machine takes as long.
        loading = llama_unit(booted, "loading", port=PORTS["loading"], model="big", cpu_quota=2, wait=False)
        loaded_from = time.time()
        booted.wait_for(lambda: loading.client.get("/health").status == 503, 60, "the loading one to answer")
        loading.throttle(0.1)
        load.enter_context(prefill.client.hung(1, long_prompt(3500)))
        stepping = load.enter_context(step.client.hung(1, long_prompt(2000)))
        load.enter_context(queue.client.hung(60, n=1500))
        for unit, percent in ((prefill, 15), (step, 7), (queue, 1), (spinning, 20)):
            unit.throttle(percent)
        booted.wait_for(lambda: asleep(sleeping), 60, "the sleeping one to sleep")
        loads = woken(sleeping)

        # One step without any progress for 150 s, two full slots with a queue, a model that loads for 90 s.
        booted.wait_for(lambda: time.time() - loaded_from > LOADING_S, 120, "the loading to have lasted", every=2)
        assert loading.client.get("/health", timeout=30).status == 503
        assert "LOADING" in verdicts(scene, "loading")
        loading.throttle(None)
        loading.wait_until_generates(60)
        booted.wait_for(lambda: time.time() - spun_at > STEP_S + 10, 120, "the step to have lasted", every=2)
        assert stepping.records() == []
        assert deferred(queue) >= 20
        for name in ("prefill", "step", "queue"):
            assert now_is(scene, name) == "BUSY", name
        step.throttle(None)  # a step of more than 240 s is no longer told from a wedge
        assert now_is(scene, "sleeping") == "SLEEPING"
        assert [page.summary for page in scene.pages()] == []

        page = scene.page(lambda page: page.finding == "engine-wedged", SPINNING_S, "the spinning one to be told")
        assert page.at - spun_at >= SPINNING_S
        assert "engine:spinning" in page.key
        assert "spinning" in page.message
        scene.resolved("engine-wedged", 120)
        assert spinning.generates()
        assert asleep(sleeping)
        assert woken(sleeping) == loads, "our questions have woken it"
    for unit in (prefill, step, queue):
        unit.throttle(None)
    for unit in (prefill, step, queue, loading, spinning):
        unit.wait_until_generates(120)

    nothing_else_was_touched(scene)


def nothing_else_was_touched(scene: Watched) -> None:
    """Not a page, not a run, not a wrong verdict about any engine but the sick one."""
    assert {page.finding for page in scene.pages()} == {"engine-wedged"}
    assert {page.key.split("/")[3] for page in scene.pages()} == {"engine:spinning"}
    assert [record["data"]["subject"] for record in scene.ledger("attempt")] == ["engine:spinning"]
    for name in ("prefill", "step", "queue", "loading", "sleeping"):
        assert not {"WEDGED", "DEAD"} & set(verdicts(scene, name)), name
        assert restarted(scene.host, name) == 0, name


def restarted(booted: BootedHost, name: str) -> int:
    """How often this unit was started, beyond the first time."""
    return booted.journal(f"{name}.service").count(f"Started {name}.service") - 1
