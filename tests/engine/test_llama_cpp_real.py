"""A real llama-server, watched as the daemon watches it: what is wedged is told in seconds, what is busy never is."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable

import pytest
import requests

from agent.engines import llama_cpp
from agent.model import CheckResult, EngineState, Status, Verdict
from tests.engine.conftest import Watched

Llama = Callable[..., Watched]
WITHIN_S = 20.0
"""Told within: two looks of 5 s, the time a question is given, and the fault's place between looks."""


def wedged(result: CheckResult) -> bool:
    return result.verdict is Verdict.WEDGED


def in_background(watched: Watched, count: int, tokens: int) -> list[threading.Thread]:
    """Clients that ask for so many tokens each, and do not care for the end."""

    def ask() -> None:
        with contextlib.suppress(OSError):  # the server may be killed under it
            watched.complete(tokens)

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads


def test_idle_it_is_ready_and_a_token_proves_it(llama: Llama) -> None:
    engine = llama()
    first = engine.check("engine.progress")
    assert (first.status, first.verdict) == (Status.OK, Verdict.READY)
    alive = engine.check("engine.alive")
    assert alive.status is Status.OK
    assert "tiny" in alive.summary
    token = engine.check("engine.generates")
    assert (token.status, token.value("canary.tokens")) == (Status.OK, 1)


def test_frozen_while_idle_it_is_wedged_within_20_s(llama: Llama) -> None:
    engine = llama()
    engine.check("engine.progress")
    with engine.thread_fault("freeze"):
        result, took_s = engine.watch(wedged, 40)
        assert took_s < WITHIN_S
        assert "stillness" in result.summary
    assert engine.watch(lambda result: result.verdict is Verdict.READY, 15)


@pytest.mark.parametrize("extra", [(), ("--no-slots", "--metrics")])
def test_frozen_mid_decode_it_is_wedged_within_20_s(llama: Llama, extra: tuple[str, ...]) -> None:
    engine = llama(*extra)
    in_background(engine, 2, 2_000_000)
    time.sleep(0.5)
    with engine.thread_fault("freeze"):
        result, took_s = engine.watch(wedged, 40)
        assert took_s < WITHIN_S
        assert "stillness" in result.summary


def test_frozen_under_a_stream_of_requests_it_is_wedged_within_20_s(llama: Llama) -> None:
    engine = llama()
    stop = threading.Event()

    def stream() -> None:
        while not stop.wait(0.05):
            in_background(engine, 1, 1)

    sender = threading.Thread(target=stream)
    sender.start()
    try:
        with engine.thread_fault("freeze"):
            _, took_s = engine.watch(wedged, 40)
            assert took_s < WITHIN_S
    finally:
        stop.set()
        sender.join()


def test_sigstopped_it_is_wedged_within_20_s_and_ready_again_after(llama: Llama) -> None:
    engine = llama()
    first = engine.check("engine.progress")
    engine.process.send_signal(signal.SIGSTOP)
    try:
        began, last = time.monotonic(), first
        while not wedged(last):
            time.sleep(max(0.0, 5 - last.duration_s))
            last = engine.check("engine.progress", last)
            assert time.monotonic() - began < WITHIN_S, last.summary
    finally:
        engine.process.send_signal(signal.SIGCONT)
    time.sleep(5)
    assert engine.check("engine.progress", last).verdict is Verdict.READY


def test_a_frozen_control_group_is_never_wedged(llama: Llama) -> None:
    engine = llama()
    last = engine.check("engine.progress")
    engine.process.send_signal(signal.SIGSTOP)
    engine.files.frozen = True
    try:
        for _ in range(5):
            time.sleep(5)
            last = engine.check("engine.progress", last)
            assert last.verdict is not Verdict.WEDGED
    finally:
        engine.process.send_signal(signal.SIGCONT)


def test_killed_it_is_dead_at_once(llama: Llama) -> None:
    engine = llama()
    last = engine.check("engine.progress")
    engine.process.kill()
    engine.process.wait()
    result = engine.check("engine.progress", last)
    assert result.verdict is Verdict.DEAD
    assert "SIGKILL" in result.summary


def test_a_full_queue_is_busy_and_its_tokens_are_the_proof(llama: Llama) -> None:
    engine = llama()
    in_background(engine, 20, 2_000_000)
    time.sleep(0.5)
    last = engine.check("engine.progress")
    for _ in range(4):
        time.sleep(5)
        last = engine.check("engine.progress", last)
        assert last.verdict is Verdict.BUSY
    proof = engine.check("engine.generates")
    assert (proof.status, proof.value("tokens_flow"), proof.value("canary.tokens")) == (Status.OK, True, 0)


def test_a_long_prefill_with_a_slow_step_is_busy(llama: Llama) -> None:
    engine = llama("--batch-size", "2048", "--ubatch-size", "2048", model="big", slots=1)
    thread = threading.Thread(target=engine.complete, args=(1, "a" * 2000), daemon=True)
    thread.start()
    last, seen = engine.check("engine.progress"), []
    while thread.is_alive():
        seen.append(last.verdict)
        time.sleep(5)
        last = engine.check("engine.progress", last)
    assert set(seen) <= {Verdict.BUSY, Verdict.READY}
    assert Verdict.BUSY in seen


def test_loading_says_so_from_the_first_second(llama: Llama) -> None:
    engine = llama(model="big", wait=False)
    states = set()
    for _ in range(200):
        sample = llama_cpp.sample(engine.host, engine.settings)
        states.add(sample.state)
        if sample.state is EngineState.READY:
            break
        time.sleep(0.02)
    assert states == {EngineState.REFUSED, EngineState.LOADING, EngineState.READY}


def test_a_sleeping_server_is_not_woken(llama: Llama) -> None:
    engine = llama("--sleep-idle-seconds", "1")
    time.sleep(3)
    for _ in range(3):
        assert llama_cpp.sample(engine.host, engine.settings).state is EngineState.SLEEPING
        assert llama_cpp.canary(engine.host, engine.settings, 5).refused == "asleep"
        time.sleep(1)
    assert engine.check("engine.progress").verdict is Verdict.SLEEPING


def test_an_api_key_and_a_prefix_are_sent_and_a_missing_key_is_a_warning(llama: Llama, tmp_path: object) -> None:
    key = f"{tmp_path}/key"
    with open(key, "w", encoding="utf-8") as file:  # noqa: PTH123 - a path for the server and for us
        file.write("sesame\n")
    engine = llama("--api-key", "sesame", "--api-prefix", "/llm", wait=False, api_prefix="/llm", api_key_file=key)
    engine.watch(lambda result: result.verdict is Verdict.READY, 20)
    assert engine.check("engine.generates").status is Status.OK
    engine.settings = engine.settings.model_copy(update={"api_key_file": None})
    without = engine.check("engine.alive")
    assert (without.status, without.verdict) == (Status.WARNING, Verdict.READY)
    assert "API key" in without.summary


def test_neither_slots_nor_metrics_leaves_the_token_as_the_only_proof(llama: Llama) -> None:
    engine = llama("--no-slots")
    assert engine.check("engine.alive").status is Status.WARNING
    assert engine.check("engine.generates").status is Status.OK


def test_a_canary_on_a_frozen_server_ends_in_time(llama: Llama) -> None:
    engine = llama("--no-slots")
    with engine.thread_fault("freeze"):
        began = time.monotonic()
        canary = llama_cpp.canary(engine.host, engine.settings, 3)
        assert time.monotonic() - began < 8
        assert canary.tokens == 0


def test_it_is_recognised_and_others_are_not(llama: Llama) -> None:
    engine = llama()
    assert llama_cpp.fingerprint(engine.host, engine.url) == {"kind": "llama.cpp", "url": engine.url}
    assert llama_cpp.fingerprint(engine.host, "http://127.0.0.1:9") is None


def test_an_older_build_is_understood(llama: Llama) -> None:
    engine = llama("--slots", older=True)
    last = engine.check("engine.progress")
    assert (last.verdict, last.value("free_slots")) == (Verdict.READY, 2)
    assert engine.check("engine.generates").value("canary.tokens") == 1
    in_background(engine, 3, 2_000_000)
    time.sleep(0.5)
    last = engine.check("engine.progress", last)
    assert last.verdict is Verdict.BUSY
    assert engine.check("engine.generates").value("proven")
    with engine.thread_fault("freeze"):
        _, took_s = engine.watch(wedged, 40)
        assert took_s < WITHIN_S


def test_an_older_build_whose_slots_block_during_a_step_is_busy_and_asked_ever_more_rarely(llama: Llama) -> None:
    engine = llama("--slots", "--batch-size", "2048", "--ubatch-size", "2048", model="big", slots=1, older=True)
    thread = threading.Thread(target=engine.complete, args=(1, "a" * 2000), daemon=True)
    last = engine.check("engine.progress")
    thread.start()
    seen, misses = [], 0
    while thread.is_alive():
        time.sleep(5)
        last = engine.check("engine.progress", last)
        seen.append(last.verdict)
        misses = max(misses, last.value("misses"))
    assert set(seen) <= {Verdict.BUSY, Verdict.READY}
    assert misses >= 1
    assert misses < max(len(seen), 3)


def listed(engine: Watched) -> dict[str, str]:
    """What the router says of each model."""
    models = requests.get(f"{engine.url}/models", timeout=5).json()["data"]
    return {model["id"]: model["status"]["value"] for model in models}


def test_a_router_loads_nothing_for_us_and_a_frozen_model_of_it_is_wedged(llama: Llama) -> None:
    engine = llama(model="")
    last = engine.check("engine.progress")
    assert last.verdict is Verdict.READY
    assert engine.check("engine.generates").value("canary.refused") == "no model is loaded"
    assert set(listed(engine).values()) == {"unloaded"}
    requests.post(f"{engine.url}/models/load", json={"model": "tiny"}, timeout=30).raise_for_status()
    deadline = time.monotonic() + 30
    while listed(engine)["tiny"] != "loaded" and time.monotonic() < deadline:
        time.sleep(0.1)
    assert engine.check("engine.generates").value("canary.tokens") == 1
    last = engine.check("engine.progress", last)
    assert (last.verdict, last.value("models")) == (Verdict.READY, ["tiny"])
    (child,) = engine.files.children()
    with engine.thread_fault("freeze", child):
        result, took_s = engine.watch(wedged, 40)
        assert took_s < WITHIN_S
        assert "/slots of tiny" in result.summary
    assert listed(engine)["big"] == "unloaded"


@pytest.mark.timeout(400)
def test_spinning_without_progress_is_wedged_after_the_long_time_only(llama: Llama) -> None:
    engine = llama()
    in_background(engine, 1, 2_000_000)
    time.sleep(0.5)
    with engine.thread_fault("spin"):
        result, took_s = engine.watch(wedged, 300)
        assert took_s > 235
        assert "spinning" in result.summary
