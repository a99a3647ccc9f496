"""What llama-server's answers mean, in the shapes that its builds have given them over the years."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.engines import llama_cpp
from agent.engines.llama_cpp import LlamaCppSettings, canary, fingerprint, sample
from agent.host import Reply
from agent.host.journal import load_signatures
from agent.model import EngineState
from tests.support.fake_host import FakeHost, HttpCall, unreachable

URL = "http://127.0.0.1:8080"
SETTINGS = LlamaCppSettings(name="chat", kind="llama.cpp", url=URL)
PROPS = {"build_info": "b10447-abc", "model_alias": "tiny", "is_sleeping": False, "total_slots": 2}
IDLE_SLOTS = [{"id": 0, "is_processing": False, "n_prompt_tokens": 900}, {"id": 1, "is_processing": False}]
LOADING = Reply(503, b'{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}')
DISABLED = Reply(501, b'{"error":{"code":501,"message":"This server does not support","type":"not_supported_error"}}')
TOKEN = {"tokens_predicted": 1, "tokens_evaluated": 2, "stop_type": "limit", "timings": {"predicted_n": 1}}


def server(**answers: Any) -> FakeHost:
    """A server with these answers; `v1__embeddings` stands for /v1/embeddings, POST is found out by the name."""
    http = {"/props": PROPS, "/slots": IDLE_SLOTS, **{"/" + name.replace("__", "/"): answers[name] for name in answers}}
    posted = ("/completion", "/v1/embeddings")
    return FakeHost.build(http={f"{'POST' if path in posted else 'GET'} {URL}{path}": http[path] for path in http})


def busy(slot: int, generated: int, **more: Any) -> dict[str, Any]:
    token = [{"n_decoded": generated, "has_next_token": True}]
    return {"id": slot, "is_processing": True, "id_task": 7, "next_token": token, "prompt": "a secret", **more}


def test_idle_slots_are_free_and_nothing_waits() -> None:
    seen = sample(server(), SETTINGS)
    assert (seen.state, seen.pending, seen.free_slots, seen.progress) == (EngineState.READY, 0, 2, ())
    assert (seen.models, seen.version) == (("tiny",), "b10447-abc")


@pytest.mark.parametrize("shape", [lambda token: [token], lambda token: token])
def test_next_token_is_read_as_an_array_or_as_an_object(shape: Any) -> None:
    slot = {"id": 0, "is_processing": True, "id_task": 3, "next_token": shape({"n_decoded": 41})}
    seen = sample(server(slots=[slot]), SETTINGS)
    assert dict(seen.progress or ()) == {"slot0.task": 3, "slot0.generated": 41, "slot0.prompt": 0}


def test_the_slots_of_old_builds_have_a_number_for_their_state() -> None:
    seen = sample(server(slots=[{"id": 0, "state": 1, "task_id": 5}, {"id": 1, "state": 0}]), SETTINGS)
    assert (seen.pending, seen.free_slots) == (1, 1)


def test_no_word_of_a_prompt_is_kept() -> None:
    assert "secret" not in repr(sample(server(slots=[busy(0, 1)]), SETTINGS))


@pytest.mark.parametrize("reply", [LOADING, Reply(503, b'{"status":"loading model"}')])
def test_a_loading_model_is_loading_in_new_and_old_words(reply: Reply) -> None:
    assert sample(server(props=reply), SETTINGS).state is EngineState.LOADING


def test_an_error_that_is_not_loading_is_failing() -> None:
    assert sample(server(props=Reply(500, b'{"status":"error"}')), SETTINGS).state is EngineState.FAILING


def test_a_sleeping_server_is_asked_nothing_more() -> None:
    host = server(props={**PROPS, "is_sleeping": True})
    assert sample(host, SETTINGS).state is EngineState.SLEEPING
    assert [call.url for call in host.http.calls] == [f"{URL}/props"]


@pytest.mark.parametrize(
    ("kind", "state"),
    [("refused", EngineState.REFUSED), ("timeout", EngineState.SILENT), ("broken", EngineState.UNREADABLE),
     ("too-large", EngineState.UNREADABLE)],
)  # fmt: skip
def test_no_answer_at_all(kind: str, state: EngineState) -> None:
    assert sample(server(props=unreachable(kind)), SETTINGS).state is state


@pytest.mark.parametrize("kind", ["too-large", "broken"])
def test_slots_that_cannot_be_read_are_no_unanswered_question(kind: str) -> None:
    seen = sample(server(slots=unreachable(kind), metrics=METRICS), SETTINGS)
    assert (seen.unanswered, seen.pending) == ((), 4)


def test_slots_too_large_to_read_do_not_keep_a_token_from_being_asked_for() -> None:
    host = server(slots=unreachable("too-large"), metrics=DISABLED, completion={"tokens_predicted": 1})
    assert canary(host, SETTINGS, 5.0).tokens == 1


def test_unanswered_slots_are_said_and_the_server_still_answers() -> None:
    seen = sample(server(slots=unreachable("timeout")), SETTINGS)
    assert (seen.state, seen.unanswered, seen.pending) == (EngineState.READY, ("/slots",), None)


def test_a_refused_key_is_an_answer_that_shows_nothing() -> None:
    seen = sample(server(props=Reply(401, b"{}")), SETTINGS)
    assert (seen.state, seen.progress) == (EngineState.READY, None)
    assert "api_key_file" in seen.detail


def test_the_key_and_the_prefix_are_sent() -> None:
    host = FakeHost.build({"/key": "sesame\n"}, http={f"{URL}/llm/props": PROPS, f"{URL}/llm/slots": IDLE_SLOTS})
    settings = SETTINGS.model_copy(update={"api_prefix": "/llm", "api_key_file": "/key"})
    assert sample(host, settings).pending == 0
    assert {call.headers["Authorization"] for call in host.http.calls} == {"Bearer sesame"}


# --- metrics ----------------------------------------------------------------------------------------------------------

METRICS = """# HELP llamacpp:prompt_tokens_total Number of prompt tokens processed
llamacpp:prompt_tokens_total 120
llamacpp:tokens_predicted_total{model="x"} 1.23457e+06
llamacpp:n_decode_total 2e+08
llamacpp:requests_processing 1
llamacpp:requests_deferred 3
llamacpp:predicted_tokens_seconds nan
"""


def test_metrics_stand_in_for_slots_and_counters_too_coarse_to_move_are_left_out() -> None:
    seen = sample(server(slots=DISABLED, metrics=METRICS), SETTINGS)
    assert (seen.pending, seen.free_slots) == (4, None)
    assert dict(seen.progress or ()) == {"generated": 1234570.0, "prompt": 120.0}


def test_metrics_as_a_json_string_are_decoded() -> None:
    assert sample(server(slots=DISABLED, metrics=json.dumps(METRICS)), SETTINGS).pending == 4


@pytest.mark.parametrize("metrics", [DISABLED, "", "\0\xff", '"unclosed', "llamacpp:requests_processing x"])
def test_without_slots_and_metrics_nothing_is_known_of_progress(metrics: Any) -> None:
    seen = sample(server(slots=DISABLED, metrics=metrics), SETTINGS)
    assert (seen.state, seen.progress, seen.pending) == (EngineState.READY, None, None)


@pytest.mark.parametrize("body", [b"", b"null", b"[1,2]", b'{"a":1}', b"<html>", b'[{"id":"x","is_processing":1}]'])
def test_odd_bodies_crash_nothing(body: bytes) -> None:
    host = server(props=Reply(200, body), slots=Reply(200, body), metrics=Reply(200, body), completion=Reply(200, body))
    sample(host, SETTINGS)
    host.http.answer(f"GET {URL}/props", PROPS)
    assert sample(host, SETTINGS).state is EngineState.READY
    assert canary(host, SETTINGS, 5).tokens == 0


# --- router -----------------------------------------------------------------------------------------------------------


def router(*models: dict[str, Any], **answers: Any) -> FakeHost:
    return server(props={"role": "router", "build_info": "b9000"}, models={"data": list(models)}, **answers)


def test_a_router_is_asked_about_loaded_models_only_and_loads_none() -> None:
    host = router(
        {"id": "a b", "status": {"value": "loaded"}},
        {"id": "c", "status": {"value": "unloaded"}},
        {"id": "d", "status": {"value": "sleeping"}},
    )
    host.http.answer(f"GET {URL}/slots?model=a%20b&autoload=false", [busy(0, 5)])
    seen = sample(host, SETTINGS)
    assert (seen.pending, seen.models) == (1, ("a b",))
    assert ("a b.slot0.generated", 5) in (seen.progress or ())


def test_a_routers_unanswered_question_names_its_model() -> None:
    host = router({"id": "m", "status": {"value": "loaded"}})
    host.http.answer(f"GET {URL}/slots?model=m&autoload=false", unreachable("timeout"))
    assert sample(host, SETTINGS).unanswered == ("/slots of m",)


def test_a_router_without_a_loaded_model_is_ready_and_gets_no_canary() -> None:
    host = router({"id": "m", "status": {"value": "unloaded"}})
    assert sample(host, SETTINGS).pending == 0
    assert canary(host, SETTINGS, 5).refused == "no model is loaded"
    assert all(call.method == "GET" for call in host.http.calls)


def test_a_routers_canary_names_a_loaded_model() -> None:
    host = router({"id": "m", "status": {"value": "loaded"}}, completion=TOKEN)
    host.http.answer(f"GET {URL}/slots?model=m&autoload=false", IDLE_SLOTS)
    assert canary(host, SETTINGS, 5).tokens == 1
    assert host.http.calls[-1].json["model"] == "m"


# --- canary -----------------------------------------------------------------------------------------------------------


def posted(host: FakeHost) -> list[HttpCall]:
    return [call for call in host.http.calls if call.method == "POST"]


def test_the_canary_takes_the_idle_slot_with_the_smallest_cache() -> None:
    host = server(completion=TOKEN)
    assert canary(host, SETTINGS, 5).tokens == 1
    (asked,) = posted(host)
    assert asked.json["id_slot"] == 1
    assert (asked.json["n_predict"], asked.json["cache_prompt"], asked.timeout_s) == (1, False, 5)


@pytest.mark.parametrize(
    ("answers", "refused"),
    [
        ({"slots": [busy(0, 1)]}, "no free slot"),
        ({"props": LOADING}, "loading its model"),
        ({"props": {**PROPS, "is_sleeping": True}}, "asleep"),
        ({"slots": unreachable("timeout")}, "does not answer /slots"),
        ({"slots": DISABLED, "metrics": METRICS}, "requests are in work and free slots cannot be seen"),
    ],
)
def test_no_canary_where_it_would_disturb_or_wait(answers: dict[str, Any], refused: str) -> None:
    host = server(**answers)
    assert canary(host, SETTINGS, 5).refused == refused
    assert not posted(host)


def test_a_canary_that_times_out_with_a_free_slot_counts() -> None:
    outcome = canary(server(completion=unreachable("timeout")), SETTINGS, 5)
    assert (outcome.tokens, outcome.refused) == (0, "")


def test_a_canary_that_times_out_where_slots_cannot_be_seen_does_not_count() -> None:
    host = server(slots=DISABLED, metrics=DISABLED, completion=unreachable("timeout"))
    assert canary(host, SETTINGS, 5).refused


def test_200_without_a_token_is_no_proof() -> None:
    assert canary(server(completion={"tokens_predicted": 0}), SETTINGS, 5).tokens == 0


def test_a_server_for_embeddings_proves_itself_by_one() -> None:
    host = server(completion=DISABLED, v1__embeddings={"data": [{"embedding": [0.1]}]})
    assert canary(host, SETTINGS, 5).tokens == 1


# --- fingerprint, settings, signatures --------------------------------------------------------------------------------


def test_the_fingerprint_is_the_servers_own_name() -> None:
    for name, expected in (("llama.cpp", {"kind": "llama.cpp", "url": URL}), ("uvicorn", None)):
        host = FakeHost.build(http={f"{URL}/health": Reply(200, b"", {"server": name})})
        assert fingerprint(host, URL) == expected
    assert fingerprint(FakeHost.build(http={f"{URL}/health": unreachable("refused")}), URL) is None


@pytest.mark.parametrize("prefix", ["llm", "/llm/", "/a?b", "//x"])
def test_a_prefix_that_is_no_path_is_a_mistake(prefix: str) -> None:
    with pytest.raises(ValueError, match="api_prefix"):
        LlamaCppSettings(name="chat", kind="llama.cpp", url=URL, api_prefix=prefix)


LINES = {
    "CUDA error: no kernel image is available for execution on the device": ("cuda-no-kernel-image", False),
    "/src/ggml-cuda.cu:94: CUDA error: an illegal memory access was encountered": ("cuda-illegal-access", True),
    "0.00.123.456 E ggml_cuda_init: failed to initialize CUDA: unknown error": ("cuda-not-initialized", True),
    "ggml_cuda_init: failed to initialize CUDA: CUDA driver version is insufficient for CUDA runtime version": (
        "cuda-driver-too-old", False),
    "error: invalid argument: --no-mmap": ("invalid-argument", False),
    "llama-server: error while loading shared libraries: libcudart.so.12: cannot open shared object file: No such": (
        "library-missing", False),
    "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 5 MiB on device 0: cudaMalloc failed: out of memory": (
        "gpu-memory-full", False),
    "/usr/lib/libc.so.6: version `GLIBC_2.38' not found (required by llama-server)": ("library-too-old", False),
    "/src/fattn.cuh:12: ERROR: CUDA kernel flash_attn has no device code compatible with CUDA arch 750. x was": (
        "cuda-no-device-code", False),
    "llama-server: error while loading shared libraries: libcuda.so.1: cannot open shared object file: No such": (
        "driver-library-missing", False),
    "/opt/llama-server: symbol lookup error: /opt/llama-server: undefined symbol: ggml_new": ("library-other", False),
    "CUDA error: something new": ("cuda-error", True),
    "srv  llama_server: exiting due to model loading error": ("model-load-failed", False),
}  # fmt: skip


@pytest.mark.parametrize("line", LINES)
def test_a_known_line_names_its_failure(line: str) -> None:
    first = next(each for each in load_signatures("llama_cpp") if re.search(each.pattern, line))
    assert (first.cause, first.curable) == LINES[line]


def test_what_no_restart_and_no_driver_package_cures_is_cured_by_a_rebuild() -> None:
    known = {each.cause: each for each in load_signatures("llama_cpp")}
    assert {cause for cause, each in known.items() if each.cure} == {
        "cuda-no-kernel-image", "cuda-kernel-image-invalid", "cuda-ptx-unsupported", "cuda-function-invalid",
        "cuda-no-device-code", "cuda-driver-too-old", "library-missing", "library-too-old", "library-other",
    }  # fmt: skip
    assert all(each.cure in ("", "rebuild") and not (each.cure and each.curable) for each in known.values())


def test_no_signature_keeps_a_word_of_a_prompt() -> None:
    prompt = "CANARY-PROMPT please explain CUDA error: CANARY-PROMPT and error: invalid argument: CANARY-PROMPT"
    for signature in load_signatures("llama_cpp"):
        found = re.search(signature.pattern, prompt)
        assert found is None or "CANARY" not in found[0], signature.cause


def test_every_signature_says_where_it_is_known_from_and_no_cause_appears_twice() -> None:
    document = yaml.safe_load(Path(llama_cpp.__file__).with_name("..").joinpath("data/llama_cpp.yaml").read_text())
    causes = [each["cause"] for each in document["signatures"]]
    assert all(each["source"] and each["meaning"] for each in document["signatures"])
    assert len(causes) == len(set(causes))
