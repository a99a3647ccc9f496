"""Whether an engine makes progress: its counters, and whether its inference thread runs at all.

One look takes the engine's own counters and the run time of the thread that does the inference. What needs memory is
carried on from look to look: for how long the thread has been still and for how long there was no progress, counted
only while something waits for the engine, and never over an interval that proves nothing (our own tick was late, the
control group is frozen, a core is being written, memory, IO or CPU pressure is high). A question that the engine does
not answer is asked again ever more rarely, because each one may occupy a thread of the server.

The verdict is made of this in `agent.verdict`, which explains the names; this check adds how long loading may take.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from agent.errors import HostError, InternalError
from agent.host import Host, serving, stops, systemd
from agent.model import EngineState, Judgement, Moment, Observation, Observed, Sample, Status, Verdict
from agent.plugin import Check, NoParameters, Target

EVERY_S = 5.0
TIMEOUT_S = 12.0
AMD_GPU = "/dev/kfd"
GPU_AGAIN_S = 30.0
"""A question to NVML costs a fresh process."""
ASK_AGAIN_S = 60.0
"""The longest wait before an unanswered question is asked again."""
STEP_CAP_S = 1800.0
STEP_KEPT_S = 7 * 86400.0
"""The longest step counts for half an hour at most and is kept for a week, so that one odd step cannot blind us."""


@dataclass(frozen=True, slots=True)
class Unit:
    """What is known of the engine's unit. `alive` is None for an engine without one, or when it cannot be known."""

    control_group: str = ""
    alive: bool | None = None
    processes: tuple[serving.Process, ...] = ()
    main: serving.Process | None = None
    addressed: bool = False
    """Whether that process's own command line says that it listens, in plain HTTP, where we ask."""
    aborting: bool = False
    state: systemd.UnitState | None = None
    invocation: str = ""


@dataclass(frozen=True, slots=True)
class Look:
    """Everything one look read. `asked` says whether the engine was asked, or its last answer stands."""

    at: Moment
    sample: Sample
    asked: bool
    unit: Unit
    ran: bool | None
    """Whether the watched inference thread has run since the last look; None when that cannot be told."""
    excuse: tuple[str, str] = ("", "")
    """kind and words"""


@dataclass(frozen=True, slots=True)
class Memory:
    """What is carried from look to look; durations in seconds, `*_at` on the boot clock."""

    at_s: float = 0.0
    boot_id: str = ""
    identity: str = ""
    known: bool = False
    served: bool = False
    suspected: bool = False
    moved: bool | None = None
    counters: tuple[tuple[str, float], ...] | None = None
    asked_at: float = 0.0
    misses: int = 0
    still_s: float = 0.0
    stalled_s: float = 0.0
    longest_step_s: float = 0.0
    longest_step_at: float = 0.0
    refused_s: float = 0.0
    failing_s: float = 0.0
    loading_s: float = 0.0


# --- memory: pure --------------------------------------------------------------------------------------------


def remember(past: Memory | None, look: Look) -> Memory:
    """What this look adds to what was known. Another process, or another boot, starts afresh."""
    if past is not None and past.boot_id != look.at.boot_id:
        past = replace(Memory(), known=past.known, longest_step_s=past.longest_step_s, longest_step_at=look.at.boot_s)
    sample, kind = look.sample, look.excuse[0]
    identity = _identity(look.unit)
    same = past is not None and past.identity == identity and past.boot_id == look.at.boot_id
    old = past if same and past is not None else _kept(past)
    interval_s = max(0.0, look.at.boot_s - old.at_s) if same else 0.0
    moved = _moved(old.counters, sample) if look.asked and same else None
    suspected = sample.state is EngineState.SILENT or bool(sample.unanswered) or bool(sample.pending and moved is False)
    # A question of ours that stays open waits since the last look, and so does a request whose counters are flat.
    counted_s = interval_s if kind != "late" else 0.0
    waited_s = counted_s if suspected and (old.suspected or moved is False) else 0.0
    still = suspected and look.ran is False and not kind
    stalls = suspected and kind in ("", "cpu")
    step_s = min(STEP_CAP_S, old.stalled_s + counted_s) if moved and old.suspected else 0.0
    longer = step_s > old.longest_step_s or look.at.boot_s - old.longest_step_at > STEP_KEPT_S
    answered = sample.state in (EngineState.READY, EngineState.SLEEPING)
    return Memory(
        at_s=look.at.boot_s,
        boot_id=look.at.boot_id,
        identity=identity,
        known=old.known or sample.answered or look.unit.addressed,
        served=old.served or answered,
        suspected=suspected,
        moved=moved,
        counters=sample.progress if sample.progress is not None else old.counters,
        asked_at=look.at.boot_s if look.asked else old.asked_at,
        misses=old.misses + int(look.asked) if sample.unanswered else 0,
        still_s=old.still_s + waited_s if still else 0.0,
        stalled_s=old.stalled_s + (waited_s if stalls else 0.0) if suspected else 0.0,
        longest_step_s=step_s if longer else old.longest_step_s,
        longest_step_at=look.at.boot_s if longer else old.longest_step_at,
        refused_s=old.refused_s + counted_s if sample.state is EngineState.REFUSED else 0.0,
        failing_s=old.failing_s + counted_s if sample.state is EngineState.FAILING else 0.0,
        loading_s=_loading_s(look, old, interval_s),
    )


def _kept(past: Memory | None) -> Memory:
    """What outlives the engine's process: that its address is right, and how long its steps were."""
    if past is None:
        return Memory()
    return Memory(known=past.known, longest_step_s=past.longest_step_s, longest_step_at=past.longest_step_at)


def _identity(unit: Unit) -> str:
    """Which process this is: pids come back, with their start time they do not."""
    return f"{unit.main.pid}@{unit.main.started_s:.2f}" if unit.main is not None else ""


def _moved(counters: tuple[tuple[str, float], ...] | None, sample: Sample) -> bool | None:
    """Whether a counter changed: any difference counts, because another task or a fresh process is progress too."""
    if counters is None or sample.progress is None:
        return None
    return counters != sample.progress


def _loading_s(look: Look, old: Memory, interval_s: float) -> float:
    starting = look.sample.state in (EngineState.LOADING, EngineState.REFUSED) and look.unit.alive is not False
    if look.unit.state is not None and _starting(look.unit.state):
        starting = True
    if not starting:
        return 0.0
    if look.unit.main is not None:
        return max(0.0, look.at.boot_s - look.unit.main.started_s)
    return old.loading_s + interval_s


def _starting(state: systemd.UnitState) -> bool:
    return state.job or state.active_state == "activating"


# --- looking -------------------------------------------------------------------------------------------------


def observe(host: Host, target: Target, before: Observed | None) -> Iterable[Observation]:
    """One look at the engine and at its process."""
    at = host.clock.now()
    place = [target.settings.url, target.unit]
    if before is not None and before.value("engine", place) != place:
        before = None  # the configuration names another engine now: what was seen of the old one is not its past
    past = _recall(before)
    unit = _unit(host, target, before, past)
    ran = _ran(unit, before if past is not None and past.boot_id == at.boot_id else None)
    carried = _carried_sample(before, past, at, unit, ran)
    sample = carried if carried is not None else _ask(host, target)
    if target.unit and sample.state is EngineState.REFUSED and unit.state is None:
        unit = replace(unit, state=_unit_state(host, target.unit))
    watched = _watched(unit, sample)
    look = Look(at, sample, carried is None, unit, ran.get(watched.pid) if watched else None)
    if sample.unanswered or sample.pending or not sample.answered:
        look = replace(look, excuse=_excuse(host, target, unit, past, at))
        if watched is not None and watched.runnable and look.ran is False and not look.excuse[0]:
            look = replace(look, excuse=("cpu", "its inference thread is ready to run and gets no CPU"))
    memory = remember(past, look)
    yield Observation("engine", place)
    yield from _about_answer(sample)
    yield from _about_unit(host, unit, before)
    yield from _about_memory(memory, look)
    yield from _about_gpu(host, target, before, watched, memory)
    yield Observation("load_timeout_s", target.settings.load_timeout_s, "s")
    yield Observation(
        "threads", [[each.pid, each.started_s, [list(reading) for reading in each.threads]] for each in unit.processes]
    )


def _ask(host: Host, target: Target) -> Sample:
    if target.engine is None:
        raise InternalError("engine.progress was given no engine")
    return target.engine.sample(host, target.settings)


def _unit_state(host: Host, unit: str) -> systemd.UnitState | None:
    try:
        return systemd.unit_state(host, unit)
    except HostError:
        return None


def _unit(host: Host, target: Target, before: Observed | None, past: Memory | None) -> Unit:
    """The unit and its processes. systemd is asked only when the control group is not known, is empty, or changed."""
    if target.unit is None:
        return Unit()
    group = str(before.value("unit.control_group") or "") if before is not None else ""
    invocation = str(before.value("unit.invocation") or "") if before is not None else ""
    found = _processes(host, target, group, 0)
    if found.main is not None and past is not None and _identity(found) == past.identity:
        return replace(found, invocation=invocation)
    state = _unit_state(host, target.unit)
    if state is None:
        return replace(found, alive=found.alive or None, invocation=invocation)
    if state.control_group != group or found.main is None:
        found = _processes(host, target, state.control_group, state.main_pid)
    return replace(found, state=state, invocation=state.invocation_id or invocation)


def _processes(host: Host, target: Target, name: str, main_pid: int) -> Unit:
    """The processes of a control group that serve, the one that answers at the engine's address first."""
    url = target.settings.url
    port = url.rsplit(":", 1)[-1]
    only_main = target.engine is None or target.engine.inference_threads == "main"
    group = serving.look_into(host, name, main_pid, port=port, only_main=only_main)
    main = group.processes[0] if group.processes else None
    addressed = (
        main is not None
        and port in main.words
        and url.startswith("http://")
        and not any(word.startswith("--ssl") for word in main.words)
    )
    return Unit(group.name, group.alive, group.processes, main, addressed, group.debugged)


def _ran(unit: Unit, before: Observed | None) -> dict[int, bool]:
    """For each serving process that was there last time too: whether any of its inference threads has run since."""
    if before is None:
        return {}
    known = {(pid, started): threads for pid, started, threads in before.value("threads") or ()}
    return {
        each.pid: [list(reading) for reading in each.threads] != known[(each.pid, each.started_s)]
        for each in unit.processes
        if each.threads and (each.pid, each.started_s) in known
    }


def _carried_sample(
    before: Observed | None, past: Memory | None, at: Moment, unit: Unit, ran: dict[int, bool]
) -> Sample | None:
    """The last answer, where it is too early to ask a question again that was not answered."""
    if before is None or past is None or past.misses == 0 or past.boot_id != at.boot_id:
        return None
    woke = past.still_s > 0 and any(ran.values())
    wait_s = min(ASK_AGAIN_S, EVERY_S * 2.0 ** (past.misses - 1))
    if _identity(unit) != past.identity or woke or at.boot_s - past.asked_at >= 0.9 * wait_s:
        return None
    return Sample(
        EngineState(before.value("answer.state")),
        str(before.value("answer.detail") or ""),
        None,
        before.value("pending"),
        None,
        tuple(before.value("models") or ()),
        str(before.value("version") or ""),
        tuple(before.value("answer.unanswered") or ()),
    )


def _watched(unit: Unit, sample: Sample) -> serving.Process | None:
    """The process whose stillness would explain what is unanswered; None when that cannot be told."""
    if len(unit.processes) <= 1:
        return unit.main
    models = [question.split(" of ", 1)[1] for question in sample.unanswered if " of " in question]
    if models:  # a router: each model is served by a process that carries its name
        return next((each for each in unit.processes if models[0] in each.words), None)
    return unit.main if not sample.answered or sample.unanswered else None


def _excuse(host: Host, target: Target, unit: Unit, past: Memory | None, at: Moment) -> tuple[str, str]:
    """Why the time since the last look proves nothing: kind and words, empty when it counts."""
    if past is not None and past.boot_id == at.boot_id:
        gap_s = at.boot_s - past.at_s
        if gap_s > 2 * target.every_s + TIMEOUT_S:
            return "late", f"the last look was {gap_s:.0f} s ago"
    if not unit.control_group:
        return "", ""
    return serving.held_up(host, unit.control_group, [each.pid for each in unit.processes])


# --- telling -------------------------------------------------------------------------------------------------


def _about_answer(sample: Sample) -> Iterator[Observation]:
    yield Observation("answer.state", str(sample.state))
    yield Observation("answer.detail", sample.detail)
    yield Observation("answer.unanswered", list(sample.unanswered))
    yield Observation("pending", sample.pending)
    yield Observation("free_slots", sample.free_slots)
    yield Observation("models", list(sample.models))
    yield Observation("version", sample.version)


def _about_unit(host: Host, unit: Unit, before: Observed | None) -> Iterator[Observation]:
    yield Observation("process.alive", unit.alive)
    yield Observation("process.pid", unit.main.pid if unit.main else None)
    yield Observation("process.aborting", unit.aborting)
    yield Observation("unit.control_group", unit.control_group)
    yield Observation("unit.invocation", unit.invocation)
    state = unit.state
    if state is None:
        return
    yield Observation("unit.active", state.active_state)
    yield Observation("unit.pending", _starting(state))
    if unit.alive is not False:
        return
    key = f"{unit.invocation} {state.active_state} {state.unit_file_state} {state.load_state}"
    if before is not None and before.value("unit.key") == key and before.value("unit.operator") is not None:
        operator, how = before.value("unit.operator"), before.value("unit.operator_how")
    else:
        operator, how = stops.operators_hand(host, state, unit.invocation)
    yield Observation("unit.key", key)
    yield Observation("unit.operator", operator)
    yield Observation("unit.operator_how", how)
    yield Observation("unit.failure", stops.how_it_ended(state))


def _about_memory(memory: Memory, look: Look) -> Iterator[Observation]:
    yield Observation("excuse.kind", look.excuse[0])
    yield Observation("excuse", look.excuse[1])
    for name in _MEMORY:
        value = getattr(memory, name)
        unit = "s" if name.endswith(("_s", "_at")) else ""
        yield Observation(name, [list(pair) for pair in value] if isinstance(value, tuple) else value, unit)


_MEMORY = tuple(Memory.__dataclass_fields__)


def _recall(before: Observed | None) -> Memory | None:
    """The memory that the last look carried on, None when there was none."""
    if before is None or before.value("boot_id") is None:
        return None
    values = {name: before.value(name) for name in _MEMORY}
    counters = values["counters"]
    values["counters"] = tuple((str(name), float(value)) for name, value in counters) if counters is not None else None
    return Memory(**values)


def _about_gpu(
    host: Host, target: Target, before: Observed | None, watched: serving.Process | None, memory: Memory
) -> Iterator[Observation]:
    """How busy the GPU is: asked only when a still thread might be waiting for it, once for each time it stands still.

    A GPU that is not NVIDIA's cannot be asked: then its use stays unknown.
    """
    nvidia = memory.still_s > 0 and target.settings.gpu is not False and serving.nvidia_loaded(host)
    other = memory.still_s > 0 and (target.settings.gpu or (target.settings.gpu is None and host.files.exists(AMD_GPU)))
    yield Observation("gpu.asked", bool(nvidia or other))
    if not nvidia:
        return
    asked_at = before.value("gpu.asked_at") if before is not None else None
    age_s = memory.at_s - asked_at if asked_at is not None else GPU_AGAIN_S
    if before is not None and 0 <= age_s < GPU_AGAIN_S:  # asked during this stillness: it is not carried past one
        busy = before.value("gpu.busy_percent")
    else:
        asked_at, busy = memory.at_s, serving.gpu_busy_percent(host, watched)
    yield Observation("gpu.asked_at", asked_at, "s")
    yield Observation("gpu.busy_percent", busy, "%")


def judge(now: Observed, before: Observed | None, params: NoParameters) -> Judgement:
    """The verdict's status; loading for longer than allowed is a fault."""
    verdict = now.verdict or Verdict.UNKNOWN
    loading_s, allowed_s = float(now.value("loading_s") or 0.0), float(now.value("load_timeout_s") or 0.0)
    if verdict is Verdict.LOADING and loading_s > allowed_s:
        return Judgement(Status.CRITICAL, f"loading for {loading_s:.0f} s, more than the {allowed_s:.0f} s it may take")
    return Judgement(verdict.status, now.reason)


CHECK = Check(
    id="engine.progress",
    scope="engine",
    every_s=EVERY_S,
    timeout_s=TIMEOUT_S,
    observe=observe,
    judge=judge,
    on_suspicion_s=EVERY_S,
    needs_before=True,
    apart_s=EVERY_S,
)
