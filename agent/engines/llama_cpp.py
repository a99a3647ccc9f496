"""llama.cpp's llama-server: what it says of itself, and how to ask it for one token.

`/health` is no proof of anything: it answers 200 for ever while the inference loop hangs. `/slots` and `/metrics` go
through that loop (or show its counters), so they are what is asked, in this order, after `/props` has said that the
server is not asleep: older builds wake up, and load their model, when asked for more. In router mode only models
that are loaded are asked, always with `autoload=false`.

Replies are used for their numbers and dropped; nothing of a prompt is ever kept. Known from
llama.cpp's `tools/server` at b10018 and b10470, and tried with the builds in `tests/engine`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal
from urllib.parse import quote

from pydantic import Field, model_validator

from agent.errors import FileTrouble, Unreachable
from agent.host import Host, Reply
from agent.host.recipe import Recipe
from agent.model import Canary, EngineState, Json, Sample
from agent.plugin import Engine, EngineSettings, Parameters

QUESTION_TIMEOUT_S = 2.0
"""A passive question takes 1 to 3 ms; a whole batch may pass before an older build answers `/slots`."""
REPLY_LIMIT = 4 << 20
"""`/slots` takes about 1.5 KB a slot, `/props` carries the chat template."""
_PATH = r"^/[A-Za-z0-9._+@/-]{1,255}$"
COARSE_AT = 1e7
"""`/metrics` prints six significant digits: from here on a hundred decode calls are invisible."""


class Rebuild(Parameters):
    """How this box builds its llama.cpp: where source, releases and server are. All of it is there offline."""

    source: str = Field(pattern=_PATH)
    """A git repository of llama.cpp on this host, readable by the user holdfast-build; its work tree is not used."""
    commit: str = Field(pattern=r"^[0-9a-f]{40}$")
    """The commit that is known to serve, as its full hash: a tag can be moved."""
    tag: str = Field(default="", pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,63})?$")
    """The tag that this commit had, for people; where it points elsewhere by now, that is said: the commit counts."""
    releases: str = Field(default="/opt/llama.cpp/releases", pattern=_PATH)
    """The folder of the releases, side by side."""
    install: Literal["link", "copy"] = "link"
    """link: the unit runs `current`/bin/llama-server; copy: it runs one file of its own, which is replaced."""
    current: str = Field(default="/opt/llama.cpp/current", pattern=_PATH)
    """The link to the release that serves, with install = "link"."""
    binary: str = Field(default="", pattern=rf"({_PATH})|^$")
    """The file that the unit runs, with install = "copy"."""
    cmake: tuple[
        Annotated[str, Field(pattern=r"^-D[A-Za-z0-9_]{1,64}(:[A-Z]+)?=[A-Za-z0-9_./;:+=, -]{0,256}$")], ...
    ] = ()
    """Further options of cmake, such as -DGGML_CUDA=ON."""
    architectures: tuple[Annotated[str, Field(pattern=r"^[0-9]{2,3}[af]?(-real|-virtual)?$")], ...] = ()
    """CUDA architectures, such as "89"; empty: those of the cards that are there."""
    jobs: int | None = Field(default=None, ge=1, le=512)
    """Compilers at once; unset: as many as the free memory and the cores allow."""
    memory_max_mib: int | None = Field(default=None, ge=512)
    """The build's memory limit, MiB; unset: what is free now, less a reserve."""
    timeout_s: float = Field(default=3 * 3600.0, gt=0, le=86400)
    """How long configuring and compiling may take, seconds."""
    network: bool = False
    """Whether the build may use the network."""
    keep: int = Field(default=3, ge=2, le=50)
    """How many releases are kept; the serving one and the last proven one always are."""
    prove_model: str = Field(default="", pattern=rf"({_PATH})|^$")
    """A small model to try a new binary with; empty: the one that comes with Holdfast."""

    @model_validator(mode="after")
    def _binary_for_copy(self) -> Rebuild:
        if (self.install == "copy") != bool(self.binary):
            raise ValueError('binary names the file the unit runs with install = "copy", and only then')
        return self

    def recipe(self, engine: str) -> Recipe:
        """The same as what the host's functions take."""
        return Recipe(engine=engine, **self.model_dump())


class LlamaCppSettings(EngineSettings):
    """The settings of one llama-server."""

    api_prefix: str = Field(default="", pattern=r"^(/[A-Za-z0-9._~-]+)*$")
    """What `--api-prefix` says: it stands before every path."""
    rebuild: Rebuild | None = None
    """How to rebuild it; unset: it is not rebuilt here."""


@dataclass(frozen=True, slots=True)
class _Server:
    """How to reach one llama-server: every request goes through here, with its key and its prefix."""

    host: Host
    base: str
    headers: Mapping[str, str]
    model: str = ""

    def get(self, path: str, timeout_s: float = QUESTION_TIMEOUT_S) -> Reply:
        """One question. In router mode it is about one loaded model, and loads none."""
        query = f"?model={quote(self.model, safe='')}&autoload=false" if self.model else ""
        return self.host.http(
            "GET", self.base + path + query, timeout_s=timeout_s, headers=self.headers, limit=REPLY_LIMIT
        )

    def post(self, path: str, body: dict[str, Json], timeout_s: float) -> Reply:
        """One request for work; the socket is closed when the time is up, which cancels it in the server."""
        named = {**body, "model": self.model} if self.model else body
        return self.host.http(
            "POST", self.base + path, timeout_s=timeout_s, json=named, headers=self.headers, limit=REPLY_LIMIT
        )


def _server(host: Host, settings: LlamaCppSettings) -> _Server:
    headers: dict[str, str] = {}
    if settings.api_key_file:
        try:
            headers["Authorization"] = "Bearer " + host.files.read_text(settings.api_key_file, limit=4096).strip()
        except FileTrouble:
            headers = {}  # asked without: the answer 401 tells what is wrong
    return _Server(host, settings.url + settings.api_prefix, headers)


# --- fingerprint ---------------------------------------------------------------------------------------------


def fingerprint(host: Host, url: str) -> Mapping[str, Json] | None:
    """Settings for a server that calls itself llama.cpp, None for any other."""
    try:
        reply = host.http("GET", url.rstrip("/") + "/health", timeout_s=QUESTION_TIMEOUT_S)
    except Unreachable:
        return None
    if reply.headers.get("server", "").lower() != "llama.cpp":
        return None
    return {"kind": "llama.cpp", "url": url.rstrip("/")}


# --- sample --------------------------------------------------------------------------------------------------


def sample(host: Host, settings: LlamaCppSettings) -> Sample:
    """One passive look: `/props`, then `/slots` or else `/metrics`. Loads, wakes and pins nothing."""
    server = _server(host, settings)
    try:
        props = server.get("/props")
    except Unreachable as error:
        return _unreachable(error, "/props")
    said = _said(props, "/props")
    if said is not None:
        return said
    about = props.json()
    if not isinstance(about, dict):
        return Sample(EngineState.FAILING, "/props is not JSON")
    version = str(about.get("build_info") or "")[:80]
    if about.get("role") == "router":
        return _router(server, version)
    models = (str(about.get("model_alias") or about.get("model_path") or "").rsplit("/", 1)[-1][:200],)
    if about.get("is_sleeping") is True:
        return Sample(EngineState.SLEEPING, "asleep", models=models, version=version)
    return replace(_work(server), models=models, version=version)


def _unreachable(error: Unreachable, question: str) -> Sample:
    if error.kind == "refused":
        return Sample(EngineState.REFUSED, "connection refused")
    if error.kind != "timeout":
        return Sample(EngineState.UNREADABLE, f"{question} cannot be asked: {error.message}"[:200])
    return Sample(EngineState.SILENT, f"{question}: {error.kind}", unanswered=(question,))


def _said(reply: Reply, question: str) -> Sample | None:
    """What a reply other than 200 says of the server; None for a 200."""
    if reply.status == 200:
        return None
    if reply.status == 503 and _is_loading(reply):
        return Sample(EngineState.LOADING, "loading its model")
    if reply.status in (401, 403):
        return Sample(EngineState.READY, "refuses the API key, so its progress cannot be seen (api_key_file)")
    if reply.status < 500:
        return Sample(
            EngineState.READY, f"HTTP {reply.status} for {question}, so its progress cannot be seen (api_prefix)"
        )
    return Sample(EngineState.FAILING, f"HTTP {reply.status} for {question}")


def _is_loading(reply: Reply) -> bool:
    """`{"error":{"message":"Loading model"}}`, and `{"status":"loading model"}` before b3599."""
    said = reply.json()
    if not isinstance(said, dict):
        return False
    error = said.get("error")
    words = error.get("message") if isinstance(error, dict) else said.get("status")
    return str(words).lower() == "loading model"


def _work(server: _Server) -> Sample:
    """Progress and pending work of one model: from `/slots`, else from `/metrics`."""
    for question, read in (("/slots", _from_slots), ("/metrics", _from_metrics)):
        try:
            reply = server.get(question)
        except Unreachable as error:
            if error.kind == "refused":
                return Sample(EngineState.REFUSED, "connection refused")
            if error.kind != "timeout":
                continue  # too much to say (old builds quote prompts in /slots), or cut off: no sign of a wedge
            return Sample(EngineState.READY, f"{question}: {error.kind}", unanswered=(question,))
        if reply.status in (501, 404):
            continue  # switched off: --no-slots, no --metrics
        said = _said(reply, question)
        if said is not None:
            return said
        work = read(reply)
        if work is not None:
            return work
    return Sample(EngineState.READY, "neither /slots nor /metrics is switched on: only a token can prove that it works")


def _from_slots(reply: Reply) -> Sample | None:
    slots = reply.json()
    if not isinstance(slots, list) or not all(isinstance(slot, dict) for slot in slots):
        return None
    busy = [slot for slot in slots if _is_processing(slot)]
    progress: list[tuple[str, float]] = []
    for slot in busy:
        name = f"slot{_number(slot.get('id')):.0f}"
        progress.append((f"{name}.task", _number(slot.get("id_task", slot.get("task_id")))))
        progress.append((f"{name}.generated", _number(_next_token(slot).get("n_decoded"))))
        progress.append((f"{name}.prompt", _number(slot.get("n_prompt_tokens_processed"))))
    return Sample(EngineState.READY, progress=tuple(progress), pending=len(busy), free_slots=len(slots) - len(busy))


def _is_processing(slot: Mapping[str, Any]) -> bool:
    """Builds before b4000 or so had a number `state`, 0 for idle, in place of `is_processing`."""
    if "is_processing" in slot:
        return bool(slot["is_processing"])
    return bool(slot.get("state"))


def _next_token(slot: Mapping[str, Any]) -> Mapping[str, Any]:
    """An array of one object since 2025, the object itself before."""
    token = slot.get("next_token")
    if isinstance(token, list):
        token = token[0] if token else None
    return token if isinstance(token, dict) else {}


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else 0.0


_METRIC = re.compile(r"^llamacpp:(\w+?)(?:_total)?(?:\{[^}]*\})? +([0-9][0-9.]*(?:e[+-]?[0-9]+)?)\s*$", re.MULTILINE)


def _from_metrics(reply: Reply) -> Sample | None:
    """The counters of `/metrics`; those that are too coarse by now are left out."""
    text = reply.text
    if text.startswith('"'):  # b7010 to b7190 sent it as a JSON string
        decoded = reply.json()
        text = decoded if isinstance(decoded, str) else ""
    values = {name: float(value) for name, value in _METRIC.findall(text)}
    if "requests_processing" not in values:
        return None
    counters = (("decode", "n_decode"), ("generated", "tokens_predicted"), ("prompt", "prompt_tokens"))
    progress = tuple((name, values[key]) for name, key in counters if values.get(key, COARSE_AT) < COARSE_AT)
    return Sample(
        EngineState.READY,
        progress=progress or None,
        pending=int(values["requests_processing"] + values.get("requests_deferred", 0.0)),
    )


def _router(server: _Server, version: str) -> Sample:
    """A router: what its loaded models are doing, asked one by one."""
    models = _loaded(server)
    if isinstance(models, Sample):
        return models
    if not models:
        return Sample(EngineState.READY, "a router without a loaded model", (), 0, version=version)
    progress: list[tuple[str, float]] = []
    unanswered: list[str] = []
    pending, free = 0, 0
    for model in models:
        work = _work(replace(server, model=model))
        unanswered += [f"{question} of {model}" for question in work.unanswered]
        progress += [(f"{model}.{name}", value) for name, value in work.progress or ()]
        pending += work.pending or 0
        free += work.free_slots or 0
    return Sample(EngineState.READY, "", tuple(progress), pending, free, models, version, unanswered=tuple(unanswered))


def _loaded(server: _Server) -> tuple[str, ...] | Sample:
    """The models a router has loaded, or what it said instead."""
    try:
        reply = server.get("/models")
    except Unreachable as error:
        return _unreachable(error, "/models")
    said = _said(reply, "/models")
    if said is not None:
        return said
    listed = reply.json()
    data = listed.get("data") if isinstance(listed, dict) else None
    loaded = []
    for model in data if isinstance(data, list) else ():
        status = model.get("status") if isinstance(model, dict) else None
        if isinstance(status, dict) and status.get("value") == "loaded":
            loaded.append(str(model.get("id"))[:200])
    return tuple(loaded)


# --- canary --------------------------------------------------------------------------------------------------

_FIELDS = ["tokens_predicted", "tokens_evaluated", "stop_type", "timings"]


def canary(host: Host, settings: LlamaCppSettings, timeout_s: float) -> Canary:
    """Ask for one token, in the idle slot whose cache costs least; never where it would wait behind users.

    Takes at most `timeout_s` after the passive questions. The proof is a token, not a status.
    """
    server = _server(host, settings)
    look = sample(host, settings)
    if look.state is not EngineState.READY:
        return Canary(0, 0.0, refused=look.detail or str(look.state))
    if look.unanswered:
        return Canary(0, 0.0, refused=f"does not answer {', '.join(look.unanswered)}")
    if _is_router(server):
        if not look.models:
            return Canary(0, 0.0, refused="no model is loaded")
        server = replace(server, model=look.models[0])
    slot, refused = _idle_slot(server)
    if refused:
        return Canary(0, 0.0, refused=refused)
    started = host.clock.now()
    body: dict[str, Json] = {"prompt": "a", "n_predict": 1, "temperature": 0, "cache_prompt": False, "stream": False}
    body["response_fields"] = _FIELDS
    if slot is not None:
        body["id_slot"] = slot
    try:
        reply = server.post("/completion", body, timeout_s)
        if reply.status in (400, 404, 501):
            reply = server.post("/v1/embeddings", {"input": "a"}, timeout_s)
    except Unreachable as error:
        took_s = host.clock.now().since(started)
        if slot is None and error.kind == "timeout":
            return Canary(
                0, took_s, refused=f"no token in {took_s:.0f} s, and it does not show whether a slot was free"
            )
        return Canary(0, took_s, f"no token: {error.kind}")
    took_s = host.clock.now().since(started)
    tokens = _tokens(reply)
    return Canary(tokens, took_s, "" if tokens else f"no token: HTTP {reply.status}")


def _is_router(server: _Server) -> bool:
    try:
        about = server.get("/props").json()
    except Unreachable:
        return False
    return isinstance(about, dict) and about.get("role") == "router"


def _idle_slot(server: _Server) -> tuple[int | None, str]:
    """The idle slot with the smallest cached prompt, or why none may be used; (None, "") when it shows none."""
    slots: Json = None
    try:
        reply = server.get("/slots")
        slots = reply.json() if reply.status == 200 else None
    except Unreachable as error:
        if error.kind in ("refused", "timeout"):
            return None, f"/slots: {error.kind}"
    if isinstance(slots, list) and slots:
        idle = [slot for slot in slots if isinstance(slot, dict) and not _is_processing(slot)]
        if not idle:
            return None, "no free slot"
        return int(_number(min(idle, key=lambda slot: _number(slot.get("n_prompt_tokens"))).get("id"))), ""
    work = _work(server)
    if work.pending:
        return None, "requests are in work and free slots cannot be seen"
    return None, ""


def _tokens(reply: Reply) -> int:
    """How many tokens a reply proves; an embedding counts as one."""
    said = reply.json()
    if reply.status != 200 or not isinstance(said, dict):
        return 0
    timings = said.get("timings")
    counted = said.get("tokens_predicted", timings.get("predicted_n") if isinstance(timings, dict) else None)
    if counted is not None:
        return int(_number(counted))
    data = said.get("data")
    first = data[0] if isinstance(data, list) and data else None
    return 1 if isinstance(first, dict) and first.get("embedding") else 0


ENGINE = Engine(
    kind="llama.cpp",
    settings=LlamaCppSettings,
    fingerprint=fingerprint,
    sample=sample,
    canary=canary,
    signatures="llama_cpp.yaml",
    inference_threads="main",
    default_port=8080,
)
