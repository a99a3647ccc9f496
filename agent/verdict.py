"""Decides, once and purely, how an inference engine is, from what a check read of it.

`decide` is given the observations of one engine check and answers with a verdict and one sentence of why. Nothing
is remembered here: what needs memory (for how long a thread stood still) was carried on by the check itself.

Busy is told from wedged in three steps. *Progress* first: a counter that moved settles it. Then *stillness*: an
inference thread that did not run at all between two looks, at least 5 s apart, while a question or a request waits
for it, cannot be working. It is never keyed on the thread's state letter, and an idle engine is still by nature, so
stillness without something unanswered says nothing. Moving without progress (spinning) needs a long time.

Observations read here, by name; a check emits those it knows:

    answer.state            an `EngineState`: what the engine says of itself
    answer.detail           a few words about it
    answer.unanswered       questions that got no answer in time ("/slots")
    pending                 requests in work or waiting, None when unknown
    moved                   whether a progress counter changed since the last look; None when it cannot be told
    known                   whether its address is right: it has answered there, or its command line names the port
    suspected               whether something waits: an unanswered question, or pending with flat counters
    still_s                 for how long, without excuse, the inference thread has not run while suspected
    stalled_s               for how long there was no progress while suspected; of the excuses only "cpu" lets it grow
    refused_s, failing_s    for how long its port has been closed, or every answer an error
    served                  whether this process has answered before
    longest_step_s          the longest time between two progresses that this engine has shown, seconds
    excuse, excuse.kind     why this proves nothing: "frozen", "core", "late", "memory", "io", "cpu"; "" for none
    gpu.asked, gpu.busy_percent   whether the GPU matters and was asked; its use, None when it was silent
    process.alive           whether the unit has a serving process; None when that cannot be known (a remote engine)
    process.aborting        a debugger runs below the unit: `ggml_abort` waits for it
    unit.active, unit.pending   systemd's ActiveState; whether a start is under way (a job, auto-restart)
    unit.operator, unit.operator_how   whether an operator stopped, disabled or masked it, None when it cannot be told
    unit.failure            what ended the last process, in words
    loading_s               for how long it has been starting
    canary.tokens, canary.refused, canary.detail, canary.misses   the one-token request
    tokens_flow             tokens were seen to be generated for someone else
"""

from __future__ import annotations

from agent.model import EngineState, Observed, Verdict
from agent.plugin import EngineSettings

STILL_S = 4.5
"""Two looks at least five seconds apart, less the jitter of a scheduler's tick."""
STILL_GPU_UNSEEN_S = 120.0
"""The same when the GPU matters and its use is not known (NVML silent, or no NVIDIA GPU): a thread may sleep while the
GPU computes a whole batch for it."""
GPU_BUSY_PERCENT = 5.0
"""From here on the GPU is at work, for whomever: a sleeping thread may be waiting for it."""
STALLED_S = 240.0
"""Twice the 120 s that a healthy llama.cpp batch on a slow machine may take (docs: engine facts, section 0)."""
STALLED_STEPS = 4.0
"""How many times the longest step ever seen must pass without progress."""
CLOSED_S = 9.0
"""A process that has served and whose port is closed for this long will not open it again by itself."""
FAILING_S = 60.0
"""For how long every answer must be an error before a restart is worth it."""
CANARY_MISSES = 3
"""Canaries in a row that got no token although a slot was free."""


def decide(
    now: Observed,
    before: Observed | None,  # noqa: ARG001 - the frame hands it to all; what is needed of it was carried on in `now`
    settings: EngineSettings,
) -> tuple[Verdict, str]:
    """The engine's verdict and one sentence of why, from one check's observations.

    Never WEDGED on a single look, nor while counters move.
    """
    if now.value("unit.operator") and now.value("process.alive") is not True:
        return Verdict.STOPPED, str(now.value("unit.operator_how") or "stopped by an operator")
    if now.value("canary.tokens") is not None:
        return _from_canary(now)
    state = now.value("answer.state")
    if state is None:
        return _from_unit(now)
    if state == EngineState.REFUSED:
        return _refused(now)
    if state == EngineState.UNREADABLE:
        return _unreadable(now)
    if now.value("process.alive") is False:
        return _answered_by_another(now)
    return _answered(EngineState(state), now, settings)


def stall_limit_s(longest_step_s: float) -> float:
    """For how long an engine may move without progress, given the longest step it has shown; seconds."""
    return max(STALLED_S, STALLED_STEPS * longest_step_s)


def _unreadable(now: Observed) -> tuple[Verdict, str]:
    """It could not be asked, which is more likely our trouble than its own: only its unit can say that it is dead."""
    if now.value("process.alive") is False and now.value("unit.active") != "active":
        return _from_unit(now)
    return Verdict.UNKNOWN, str(now.value("answer.detail") or "its answer cannot be read")


def _answered(state: EngineState, now: Observed, settings: EngineSettings) -> tuple[Verdict, str]:
    """Something listens: what it said, or that it said nothing."""
    if state is EngineState.LOADING:
        return Verdict.LOADING, f"loading its model for {_seconds(now, 'loading_s')}"
    if state is EngineState.SLEEPING:
        return Verdict.SLEEPING, "asleep: it unloads its model when idle and loads it with the next request"
    if state is EngineState.FAILING:
        return _failing(now)
    if now.value("suspected") or now.value("answer.unanswered") or state is EngineState.SILENT:
        return _suspected(now, settings)
    return _working(now)


def _working(now: Observed) -> tuple[Verdict, str]:
    pending = now.value("pending")
    detail = str(now.value("answer.detail") or "")
    if pending:
        return Verdict.BUSY, f"working on {pending} request{'s' if pending != 1 else ''}"
    return Verdict.READY, detail or "answers, nothing waits"


def _suspected(now: Observed, settings: EngineSettings) -> tuple[Verdict, str]:
    """Something waits for the engine and no counter moved: excused, wedged or just slow."""
    waits = _what_waits(now)
    if now.value("answer.state") == EngineState.SILENT and not now.value("known"):
        return Verdict.UNKNOWN, f"{waits}, and never has since it is watched: is its url right?"
    excuse, kind = str(now.value("excuse") or ""), now.value("excuse.kind")
    if excuse and kind != "cpu":
        verdict = Verdict.UNKNOWN if kind in ("frozen", "core") else Verdict.BUSY
        return verdict, f"{waits}, but this proves nothing: {excuse}"
    still_s = float(now.value("still_s") or 0.0)
    # A starved thread may well look still. It is slow then, and the long limit below allows for slow.
    if not excuse and now.value("process.alive") and still_s >= _still_needed_s(now):
        aborting = ", held by a debugger after an abort" if now.value("process.aborting") else ""
        return (
            Verdict.WEDGED,
            f"{waits}, and its inference thread has not run for {still_s:.0f} s (stillness){aborting}",
        )
    stalled_s = float(now.value("stalled_s") or 0.0)
    limit_s = stall_limit_s(float(now.value("longest_step_s") or 0.0))
    if stalled_s >= limit_s:
        how = "its thread runs (spinning)" if now.value("process.alive") else "no progress seen from outside"
        return Verdict.WEDGED, f"{waits} for {stalled_s:.0f} s, more than {limit_s:.0f} s; {how}"
    if excuse:
        return Verdict.BUSY, f"{waits} for {stalled_s:.0f} of {limit_s:.0f} s; {excuse}"
    if still_s > 0:
        return Verdict.BUSY, f"{waits}; its inference thread has been still for {still_s:.0f} s: too early to judge"
    where = "" if settings.unit else "; it has no unit here, so only time can tell"
    return Verdict.BUSY, f"{waits} for {stalled_s:.0f} of {limit_s:.0f} s{where}"


def _still_needed_s(now: Observed) -> float:
    """For how long the thread must have been still, seconds; infinite while the GPU is at work."""
    if not now.value("gpu.asked"):
        return STILL_S
    busy = now.value("gpu.busy_percent")
    if busy is None:
        return STILL_GPU_UNSEEN_S
    return float("inf") if float(busy) >= GPU_BUSY_PERCENT else STILL_S


def _what_waits(now: Observed) -> str:
    unanswered = now.value("answer.unanswered") or ()
    if unanswered:
        return f"does not answer {', '.join(unanswered)}"
    pending = now.value("pending") or 0
    return f"{pending} request{'s' if pending != 1 else ''} without progress"


def _refused(now: Observed) -> tuple[Verdict, str]:
    """Nothing listens on the port."""
    alive = now.value("process.alive")
    if alive is False:
        return _from_unit(now)
    if alive is None:
        return _refused_unseen(now)
    if now.value("excuse.kind") in ("frozen", "core"):
        return Verdict.UNKNOWN, f"its port is closed: {now.value('excuse')}"
    if now.value("unit.active") == "deactivating":
        return Verdict.BUSY, "is being stopped, and finishes its requests"
    if now.value("served"):
        if float(now.value("refused_s") or 0.0) >= CLOSED_S:
            return Verdict.WEDGED, f"its process lives, but its port has been closed for {_seconds(now, 'refused_s')}"
        return Verdict.BUSY, "its process lives, but its port is closed: too early to judge"
    return Verdict.LOADING, f"started {_seconds(now, 'loading_s')} ago and does not listen yet"


def _refused_unseen(now: Observed) -> tuple[Verdict, str]:
    """Nothing listens, and its process cannot be seen: a remote engine, or one in a container below its unit."""
    active = now.value("unit.active")
    if active == "active" and not now.value("served"):
        return Verdict.LOADING, f"its unit is active, and nothing listens yet, for {_seconds(now, 'loading_s')}"
    if active == "active" and float(now.value("refused_s") or 0.0) < CLOSED_S:
        return Verdict.BUSY, "its unit is active, but its port is closed: too early to judge"
    if active in (None, "active"):
        return Verdict.DEAD, "nothing listens at its address"
    return _from_unit(now)


def _from_unit(now: Observed) -> tuple[Verdict, str]:
    """No process answers for it: what systemd says."""
    active = now.value("unit.active")
    if now.value("unit.pending") or active in ("activating", "reloading"):
        return Verdict.LOADING, "systemd is starting it"
    if active == "active":
        if now.value("process.alive") is False:
            return Verdict.DEAD, "its unit is active without a process that serves"
        return Verdict.READY, "its unit is active"
    if active == "deactivating":
        return Verdict.BUSY, "is being stopped"
    if active is None:
        return Verdict.UNKNOWN, "systemd does not say how its unit is"
    failure = str(now.value("unit.failure") or "")
    if active == "inactive" and now.value("unit.operator", True) is None:
        return Verdict.UNKNOWN, "not running, and the journal does not say who stopped it"
    return Verdict.DEAD, failure or "not running"


def _answered_by_another(now: Observed) -> tuple[Verdict, str]:
    if now.value("unit.pending"):
        return Verdict.LOADING, "systemd is starting it"
    return Verdict.UNKNOWN, "its unit has no process, yet something else answers at its address"


def _failing(now: Observed) -> tuple[Verdict, str]:
    detail = str(now.value("answer.detail") or "answers with errors")
    failing_s = float(now.value("failing_s") or 0.0)
    if failing_s >= FAILING_S:
        return Verdict.WEDGED, f"{detail}, for {failing_s:.0f} s"
    return Verdict.DEGRADED, detail


def _from_canary(now: Observed) -> tuple[Verdict, str]:
    """What a request for one token showed."""
    if int(now.value("canary.tokens") or 0) >= 1:
        return Verdict.READY, f"generated a token in {float(now.value('canary.duration_s') or 0.0):.2g} s"
    if now.value("tokens_flow"):
        return Verdict.BUSY, "no free slot for a token of ours, but tokens flow to its users"
    state = now.value("answer.state")
    if state == EngineState.LOADING:
        return Verdict.LOADING, "still loading its model"
    if state == EngineState.SLEEPING:
        return Verdict.SLEEPING, "asleep: no token is asked for, which would wake it"
    refused = str(now.value("canary.refused") or "")
    if refused:
        return Verdict.UNKNOWN, refused
    detail = str(now.value("canary.detail") or "no token came")
    misses = int(now.value("canary.misses") or 0)
    if misses >= CANARY_MISSES:
        return Verdict.WEDGED, f"{detail}, {misses} times in a row although a slot was free"
    return Verdict.UNKNOWN, detail


def _seconds(now: Observed, name: str) -> str:
    return f"{float(now.value(name) or 0.0):.0f} s"
