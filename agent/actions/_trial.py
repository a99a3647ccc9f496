"""One completion by a fresh llama-server on a spare port of this host, in a transient unit of its own.

The unit stands behind walls of its own (packaging/deb/units/prove-walls.conf) and ends by itself when nobody stops it.
Its model is random weights: what it says is nonsense, and proves that the whole way from HTTP to the GPU works. Its log
is in the journal, and only known failures are read from there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from agent.errors import HostError
from agent.host import Host, binary_proof, journal, nvml, ports, systemd
from agent.host.recipe import BUILD_USER, Recipe
from agent.model import EngineState, Json
from agent.plugin import Command, Condition, PlanStep, Read, Target, Wait

FIRST_PORT = 18480
READY_S = 180.0
"""How long it may take until it answers: the first start of a CUDA build compiles what it needs for the card."""
CANARY_S = 60.0
START_S = 30.0
STOP_S = 60.0
GONE = (0, 5)
"""systemctl's status for a unit that is not loaded (any more): as good as stopped."""
NVML_S = 10.0
LEAST_VRAM = 1 << 30
"""Bytes of a card's memory that must be free: CUDA takes 300 to 600 MiB for itself, and users need theirs."""
SEEN_VRAM = 64 << 20
"""By so much a card's use must have grown where NVML does not show the process."""


@dataclass
class Trial:
    """One trial: gpu is the card's UUID, "" for the processor; why says why not on a card. words: how it went."""

    unit: str
    server: str
    model: str
    port: int
    gpu: str = ""
    used_bytes: int = 0
    why: str = ""
    words: str = ""

    @property
    def argv(self) -> tuple[str, ...]:
        """The server and arguments that every version knows."""
        return (
            self.server, "--model", self.model, "--host", "127.0.0.1", "--port", str(self.port), "--ctx-size", "256",
            "--parallel", "1", "--threads", "2", "--n-gpu-layers", "99" if self.gpu else "0",
        )  # fmt: skip


def prepared(host: Host, target: Target, known: Recipe, server: str) -> Trial:
    """A trial on the card with the most free memory, else on the processor. Raises HostError."""
    name = f"holdfast-prove-{known.engine}.service"
    tried = Trial(name, server, binary_proof.model(known.prove_model), ports.spare(host, FIRST_PORT))
    if not known.cuda:
        return tried
    answer = nvml.ask(host, NVML_S)
    cards = [] if answer is None or answer.code != nvml.SUCCESS else list(answer.gpus)
    room = {each.uuid: (each.memory_total_bytes or 0) - (each.memory_used_bytes or 0) for each in cards}
    best = max(cards, key=lambda each: room[each.uuid], default=None)
    if best is None:
        tried.why = "NVML does not say how much memory is free"
    elif room[best.uuid] < LEAST_VRAM:
        tried.why = f"only {room[best.uuid] >> 20} MiB of GPU memory are free"
    else:
        tried.gpu, tried.used_bytes = best.uuid, best.memory_used_bytes or 0
    return tried


def steps(host: Host, target: Target, tried: Trial) -> Iterator[PlanStep]:
    """Start it, wait until it answers, ask for a token, end it."""
    at = f"http://127.0.0.1:{tried.port}"
    # Every setting of the engine's own that says how to reach it stays out.
    settings = target.settings.model_copy(update={"url": at, "api_key_file": None, "api_prefix": ""})
    answers = Condition(
        "the new llama-server answers",
        lambda host: _answers(host, target, settings, tried),
        ("curl", "--silent", f"{at}/health"),
    )
    yield from ended(tried.unit)
    yield Command(_start(tried), START_S, words="trying the new llama-server")
    yield Wait(answers, READY_S, why=f"the new llama-server did not answer within {READY_S:g} s", code="binary-silent")
    body = '{"prompt": "a", "n_predict": 1}'
    by_hand = ("curl", "--silent", "--data", body, f"{at}/completion")
    yield Read("a token of it", lambda host: _token(host, target, settings, tried), by_hand)
    yield from ended(tried.unit)


def ended(unit: str) -> tuple[PlanStep, ...]:
    """No trial of this engine runs, and systemd has forgotten the last one."""
    return (
        Command(("systemctl", "stop", unit), STOP_S, accept=GONE),
        Command(("systemctl", "reset-failed", unit), START_S, accept=(0, 1)),
    )


def _start(tried: Trial) -> tuple[str, ...]:
    return (
        "systemd-run",
        "--quiet",
        f"--unit={tried.unit}",
        "--service-type=exec",
        f"--uid={BUILD_USER}",
        f"--gid={BUILD_USER}",
        f"--setenv=CUDA_VISIBLE_DEVICES={tried.gpu}",
        "--",
        *tried.argv,
    )


def _answers(host: Host, target: Target, settings: Any, tried: Trial) -> bool:
    """Whether it has loaded its model. Raises HostError with the reason when it has ended."""
    state = systemd.unit_state(host, tried.unit)
    if state.active_state not in ("active", "activating"):
        code = state.exec_main_status
        ending = f"killed by signal {code}" if state.exec_main_code in (2, 3) else f"exit {code}"
        raise HostError(f"the new llama-server does not start: {_known_failure(host, target, tried) or ending}")
    sample = target.engine.sample(host, settings) if target.engine is not None else None
    return sample is not None and sample.state is EngineState.READY


def _known_failure(host: Host, target: Target, tried: Trial) -> str:
    """The known failure in its log, "" for none."""
    if target.engine is None or not target.engine.signatures:
        return ""
    known = journal.load_signatures(target.engine.signatures)
    invocation = systemd.unit_state(host, tried.unit).invocation_id or None
    try:
        found = journal.matches(host, tried.unit, known, invocation_id=invocation, since_wall=None)
    except HostError:
        return ""
    worst = next((each for each in reversed(found) if not each.curable), found[-1] if found else None)
    return "" if worst is None else f"{worst.meaning.rstrip('.')}: {worst.text}"


def _token(host: Host, target: Target, settings: Any, tried: Trial) -> Json:
    """One token, and where it was made. Raises HostError."""
    canary = None if target.engine is None else target.engine.canary(host, settings, CANARY_S)
    if canary is None or canary.tokens < 1:
        why = "" if canary is None else canary.detail or canary.refused
        reason = _known_failure(host, target, tried) or why
        raise HostError(f"the new llama-server generates nothing: {reason}", code="binary-silent")
    seen = on_card(host, tried) if tried.gpu else None
    if seen is False:
        words = "the new llama-server generates on the processor, although a GPU has room for it"
        raise HostError(words, code="no-gpu")
    tried.words = f"generated a token {_where(tried, seen)}".strip()
    return {"tokens": canary.tokens, "gpu": bool(tried.gpu), "seconds": round(canary.duration_s, 3)}


def _where(tried: Trial, seen: bool | None) -> str:
    """Where the token was made, in words; "" for a build that knows only the processor."""
    if tried.gpu:
        return "on the GPU" if seen else "on a device that NVML does not tell"
    return f"on the processor, because {tried.why}" if tried.why else ""


def on_card(host: Host, tried: Trial) -> bool | None:
    """Whether it holds memory of the card: by NVML's list of processes, else by what the card's use has grown.

    None where NVML does not say.
    """
    answer = nvml.ask(host, NVML_S)
    if answer is None or answer.code != nvml.SUCCESS:
        return None
    pid = systemd.unit_state(host, tried.unit).main_pid
    for card in answer.gpus:
        if any(owner == pid for owner, _ in card.pids):
            return True
        if card.uuid == tried.gpu and (card.memory_used_bytes or 0) - tried.used_bytes >= SEEN_VRAM:
            return True
    return False
