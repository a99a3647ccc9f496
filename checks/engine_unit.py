"""How the systemd unit of an engine is: running, stopped by whose hand, crashed how often, and why.

A crash that systemd has already repaired is still seen: by the restart counter and by the invocation. An exit with
status 0 that no stop job asked for is a death too. The reason comes from the unit's own journal, as one of the known
signatures of its engine; nothing else of the journal is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from agent.errors import HostError
from agent.host import Host, journal, stops, systemd
from agent.model import Judgement, Observation, Observed, Status, Verdict
from agent.plugin import Check, NoParameters, Target

REMEMBERED_S = 6 * 3600.0
"""For how long a crash counts."""
MANY = 3
"""From so many crashes within that time on the unit is not all right, although it runs."""
KEPT = 50
LOOK_BACK_S = 30.0
"""The journal's clock and ours differ by the delay of writing; a line may precede the crash by this much."""
FIRST_LOOK_S = 900.0


@dataclass(frozen=True, slots=True)
class Crashes:
    """What is known of a unit's crashes: Unix seconds of each, newest last.

    counted: the invocation whose end is already counted.
    """

    invocation: str = ""
    restarts: int = 0
    counted: str = ""
    times: tuple[float, ...] = ()


def count(past: Crashes | None, state: systemd.UnitState, *, dead: bool, replaced_by_hand: bool, at: float) -> Crashes:
    """The crashes after one more look.

    dead: it does not run, and no operator keeps it so. replaced_by_hand: an operator (or a run of ours) ended the
    previous invocation. at: Unix seconds.
    """
    invocation = state.invocation_id
    known = past or Crashes(invocation, state.n_restarts)
    times = [time for time in known.times if 0 <= at - time <= REMEMBERED_S]
    counted = known.counted
    # systemd starts counting afresh with every start that is not its own.
    new = state.n_restarts - known.restarts if state.n_restarts >= known.restarts else state.n_restarts
    if new:
        # Those restarts began with the end of the invocation seen last, which may have been counted while it was down.
        uncounted = new - (1 if counted and counted == known.invocation else 0)
        times += [at] * max(0, uncounted)
        counted = known.invocation
    elif invocation and known.invocation and invocation != known.invocation:
        if known.invocation != counted and not replaced_by_hand:
            times.append(at)
        counted = known.invocation
    if dead and (invocation or known.invocation) != counted:
        times.append(at)
        counted = invocation or known.invocation
    return Crashes(invocation or known.invocation, state.n_restarts, counted, tuple(times[-KEPT:]))


def observe(host: Host, target: Target, before: Observed | None) -> Iterable[Observation]:
    """Ask systemd, and the journal only when something ended."""
    if target.unit is None:
        return
    now = host.clock.now()
    state = systemd.unit_state(host, target.unit)
    if before is not None and before.value("unit.name", target.unit) != target.unit:
        before = None  # another unit since the configuration changed: its past is not this one's
    past = _recall(before)
    pending = state.job or state.active_state in ("activating", "reloading")
    down = state.active_state in ("inactive", "failed") and not state.job
    operator, how = _operator(host, state, before, past.invocation if past else "")
    replaced = past is not None and state.invocation_id not in ("", past.invocation)
    by_hand = replaced and past is not None and stops.end_was_asked_for(host, state.unit, past.invocation)
    crashes = count(past, state, dead=down and operator is False and not how, replaced_by_hand=by_hand, at=now.wall)
    yield Observation("unit.name", target.unit)
    yield Observation("unit.active", state.active_state)
    yield Observation("unit.sub", state.sub_state)
    yield Observation("unit.result", state.result)
    yield Observation("unit.file_state", state.unit_file_state)
    yield Observation("unit.pending", pending)
    yield Observation("unit.auto_restart", state.sub_state.startswith("auto-restart"))
    yield Observation("unit.restart", state.restart)
    yield Observation("unit.main_pid", state.main_pid)
    yield Observation("unit.control_group", state.control_group)
    yield Observation("unit.invocation", crashes.invocation)
    yield Observation("unit.n_restarts", crashes.restarts)
    yield Observation("unit.key", _key(state))
    yield Observation("unit.operator", operator)
    yield Observation("unit.operator_how", how)
    yield Observation("crash.counted", crashes.counted)
    yield Observation("crash.times", list(crashes.times))
    yield Observation("crash.count", len(crashes.times))
    yield Observation("crash.last_at", crashes.times[-1] if crashes.times else None)
    yield Observation("crash.repaired", bool(crashes.times) and state.active_state == "active")
    died = past is None or len(crashes.times) > len(past.times) or crashes.times[-1:] != past.times[-1:]
    if crashes.times and (died or _may_say_more(before, crashes.times[-1], now.wall)):
        since = (before.at.wall if before is not None else now.wall - FIRST_LOOK_S) - LOOK_BACK_S
        yield from _why(host, target, state, since)
    elif crashes.times and before is not None:
        yield from (each for each in before.observations if each.name in _WHY)


def _may_say_more(before: Observed | None, died_at: float, now: float) -> bool:
    """Whether the journal may name a reason by now that it did not at the first look: lines come a moment later."""
    return before is not None and before.value("failure.cause") is None and 0 <= now - died_at < LOOK_BACK_S


_WHY = (
    "unit.failure", "failure.cause", "failure.text", "failure.meaning", "failure.curable", "failure.cure", "failure.at"
)  # fmt: skip


def _recall(before: Observed | None) -> Crashes | None:
    if before is None or before.value("crash.times") is None:
        return None
    return Crashes(
        str(before.value("unit.invocation") or ""),
        int(before.value("unit.n_restarts") or 0),
        str(before.value("crash.counted") or ""),
        tuple(float(time) for time in before.value("crash.times")),
    )


def _key(state: systemd.UnitState) -> str:
    """While this does not change, neither does the answer to who stopped it."""
    return f"{state.invocation_id} {state.active_state} {state.unit_file_state} {state.load_state} {state.job}"


def _operator(
    host: Host, state: systemd.UnitState, before: Observed | None, invocation: str
) -> tuple[bool | None, str]:
    if before is not None and before.value("unit.key") == _key(state) and before.value("unit.operator") is not None:
        return before.value("unit.operator"), str(before.value("unit.operator_how") or "")
    return stops.operators_hand(host, state, invocation)


def _why(host: Host, target: Target, state: systemd.UnitState, since: float) -> Iterator[Observation]:
    """How the last run ended, and which known signature its journal shows."""
    running = state.active_state == "active"
    ended = "" if running else stops.how_it_ended(state)
    yield Observation("unit.failure", ended or stops.last_exit(host, state.unit, since))
    signatures = journal.load_signatures(target.engine.signatures) if target.engine and target.engine.signatures else ()
    try:
        found = journal.matches(host, state.unit, signatures, invocation_id=None, since_wall=since)
    except HostError:
        return
    if not found:
        return
    # Several lines of one death match: what a restart cannot cure is the reason, else what was said last.
    match = next((each for each in reversed(found) if not each.curable), found[-1])
    yield Observation("failure.cause", match.cause)
    yield Observation("failure.text", match.text)
    yield Observation("failure.meaning", match.meaning)
    yield Observation("failure.curable", match.curable)
    yield Observation("failure.cure", match.cure)
    yield Observation("failure.at", match.at)


def judge(now: Observed, before: Observed | None, params: NoParameters) -> Judgement:
    """Down is CRITICAL unless an operator's hand keeps it so; many crashes are a WARNING although it runs."""
    verdict = now.verdict or Verdict.UNKNOWN
    crashes = int(now.value("crash.count") or 0)
    why, unit = _words(now), now.value("unit.name")
    if verdict is Verdict.DEAD:
        return Judgement(verdict.status, f"{unit} failed: {why or now.reason}")
    if not crashes or verdict is Verdict.STOPPED:
        return Judgement(verdict.status, f"{unit}: {now.reason}")
    times = f"crashed {crashes} time{'s' if crashes > 1 else ''} in 6 h" + (f", last: {why}" if why else "")
    status = Status.WARNING if crashes >= MANY and verdict.status is Status.OK else verdict.status
    return Judgement(status, f"{unit} is {now.value('unit.active')}; {times}")


def _words(now: Observed) -> str:
    """Say "exit 127 (CUDA error: no kernel image is available for execution on the device)"."""
    ended, text = str(now.value("unit.failure") or ""), str(now.value("failure.text") or "")
    if not text:
        return ended
    return f"{ended.split(' (', maxsplit=1)[0]} ({text})" if ended else text


CHECK = Check(
    id="engine.unit",
    scope="engine",
    every_s=20.0,
    timeout_s=15.0,
    observe=observe,
    judge=judge,
    applies=lambda target: target.unit is not None,
    on_suspicion_s=5.0,
)
"""Asking systemd is most of what watching costs, and a process that ends makes this due at once anyway."""
