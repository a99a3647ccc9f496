"""Carries out one run whose attempt is already in the ledger: steps, proof, undo, outcome.

A step's plan is complete, and what its undo needs is on disk, before its first change. When something fails, the steps
that began are undone in reverse, each from fresh facts. The outcome is written to the transcript, then to the ledger.
"""

from __future__ import annotations

import hashlib
import json
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pydantic import ValidationError

from agent import facts, frame, ledger, plugin, template
from agent.config import Config
from agent.errors import ConfigurationError, HoldfastError, HostError, Mistake
from agent.host import Host, stops, systemd
from agent.ledger import Kind
from agent.model import CheckResult, Json, Outcome, Status
from agent.plugin import Action, Noop, Plan, Progress, Target
from agent.runbook import Runbook, Step, Verify
from agent.steps import Performer, RebootAwaited, StepRefused, StopAsked, before_json, by_hand
from agent.transcript import Transcript

VERIFY_EVERY_S = 1.0
"""The pause between two looks while verifying; each look may take as long as its check."""


@dataclass(frozen=True, slots=True)
class Work:
    """One run: what, on what, with which inputs, and how it can be stopped.

    rehearsal: only what disturbs nobody is done, and then undone.
    """

    host: Host
    config: Config
    runbook: Runbook
    subject: str
    inputs: Mapping[str, Json]
    run: str
    transcript: Transcript
    stopping: Callable[[], bool] = lambda: False
    rehearsal: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    """How a run ended. `code` says why in one word, `not_before` (Unix seconds) when a refusal may be tried again.

    took_s: how long the steps of a rehearsal took, without clearing up.
    """

    outcome: Outcome
    summary: str
    signature: str = ""
    code: str = ""
    not_before: float | None = None
    took_s: float | None = None


@dataclass(frozen=True, slots=True)
class Parked:
    """A run that waits for a reboot: its outcome is found after the next boot."""

    summary: str


@dataclass(frozen=True, slots=True)
class Begun:
    """A step that began: its action may have to be undone with what it noted before."""

    index: int
    step: Step
    parameters: Mapping[str, Json]
    before: Mapping[str, Json] | None


@dataclass
class Standing:
    """What this run has done so far."""

    begun: list[Begun] = field(default_factory=list)
    changed: bool = False
    done: int = 0


# --- plans ---------------------------------------------------------------------------------------------------


def planned(work: Work, step: Step, known: Mapping[str, Json]) -> tuple[Action, Target, Plan]:
    """The action, its target with typed parameters, and its plan from fresh facts.

    Raises ConfigurationError when a value is undefined or of the wrong type, and what the action's plan raises.
    """
    action = plugin.actions()[step.use]
    place = f"step {step.name!r}"
    values = template.resolve(dict(step.parameters), known, work.runbook.file, place)
    target = _target(work, action, values, place)
    return action, target, action.plan(work.host, target, target.params)


def _target(work: Work, action: Action, values: Mapping[str, Json], place: str) -> Target:
    try:
        params = action.params.model_validate(values)
    except ValidationError as error:
        raise ConfigurationError(
            [Mistake(work.runbook.file, f"{place}.{'.'.join(map(str, e['loc']))}", e["msg"]) for e in error.errors()]
        ) from error
    target = facts.target(work.config, work.subject, params)
    named = getattr(params, "engine", None)
    if named is not None and (target.settings is None or target.settings.name != named):
        wrong = f"names the engine {named!r}, but the run holds {work.subject}"
        raise ConfigurationError([Mistake(work.runbook.file, place, wrong)])
    return target


def rehearsed(work: Work, *, contents: bool = False) -> list[dict[str, Json]]:
    """Every step with its real values, as lines for hands; nothing is done. Raises what `planned` raises.

    contents: with what the files get that it writes, for a page on paper.
    """
    known = facts.seen_by_templates(work.host, work.config, work.subject, work.inputs)
    shown: list[dict[str, Json]] = []
    for step in work.runbook.steps:
        _, target, plan = planned(work, step, known)
        shown.append(
            {
                "name": step.name,
                "use": step.use,
                "parameters": target.params.model_dump(mode="json"),
                "lines": list(by_hand(plan, contents=contents)),
            }
        )
    return shown


def plan_hash(runbook: Runbook, subject: str, shown: Sequence[Mapping[str, Json]]) -> str:
    """What an approval is bound to: the runbook, the subject and every line that would be carried out."""
    canonical = json.dumps([runbook.hash, subject, list(shown)], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


# --- a run ---------------------------------------------------------------------------------------------------


def execute(work: Work) -> Result | Parked:
    """Do all steps and prove the result. Never raises for what the machine does.

    The outcome is on record after it, unless only a reboot can finish the work.
    """
    standing = Standing()
    try:
        known = facts.seen_by_templates(work.host, work.config, work.subject, work.inputs)
        for index, step in enumerate(work.runbook.steps):
            carry_out(work, standing, index, step, known)
            standing.done = index + 1
        result = verified(work, work.runbook.verify)
    except RebootAwaited as error:
        return _parked(work, error.message)
    except StepRefused as error:
        wait = error.not_before_s
        not_before = None if wait is None else work.host.clock.now().wall + wait
        result = Result(Outcome.REFUSED, error.message, code=error.code, not_before=not_before)
        if standing.changed:
            result = replace(result, outcome=Outcome.FAILED)
    except StopAsked as error:
        result = Result(Outcome.STOPPED, error.message, code=error.code)
        if work.runbook.verify is None and standing.done >= needed(work.runbook):
            result = Result(Outcome.SUCCEEDED, f"{error.message}; all that must be done was done")
    except HoldfastError as error:
        result = _failed(work, error.message, error.code)
    except Exception as error:  # noqa: BLE001 - a bug in an action must still be undone and recorded
        result = _failed(work, f"{work.runbook.id} crashed: {crash_words(error)}", "crashed")
    if result.outcome not in (Outcome.SUCCEEDED, Outcome.REFUSED):
        result = undone(unstoppable(work), result, standing.begun)
    return finish(work, result)


def needed(runbook: Runbook) -> int:
    """How many steps must be done: up to the last that is not best effort. A stop or a cut after it undoes nothing."""
    return max((index + 1 for index, step in enumerate(runbook.steps) if not step.best_effort), default=0)


def _parked(work: Work, summary: str) -> Parked:
    """Let go until the next boot: on record first, because whoever reads only the transcript must not wait."""
    ledger.append(work.host, Kind.PARKED, work.run, {"subject": work.subject, "summary": summary[:500]})
    work.transcript.write("parked", summary=summary[:500], boot_id=work.host.clock.now().boot_id)
    return Parked(summary)


def unstoppable(work: Work) -> Work:
    """The same work, not to be stopped any more: an undo is carried to its end."""
    return replace(work, stopping=lambda: False)


def finish(work: Work, result: Result) -> Result:
    """Put the outcome on record, once: transcript first, then ledger. Recovery completes what is cut off in between."""
    data: dict[str, Json] = {
        "outcome": result.outcome.value,
        "summary": result.summary[:500],
        "signature": result.signature,
        "code": result.code,
        "not_before": result.not_before,
        "runbook": work.runbook.id,
        "subject": work.subject,
        "next": "",
    }
    if work.rehearsal:
        data |= {"rehearsal": True, "took_s": result.took_s}
    elif result.outcome in (Outcome.FAILED, Outcome.UNDONE):
        data["next"] = work.runbook.on_failure
    if result.outcome is Outcome.REFUSED:
        work.transcript.write("refused", code=result.code, reason=result.summary[:500], not_before=result.not_before)
    work.transcript.write("ended", **data)
    proven = result.outcome is Outcome.SUCCEEDED and work.runbook.verify is not None and not work.rehearsal
    record(work.host, work.run, data, proven=proven)
    return result


def record(host: Host, run: str, data: Mapping[str, Json], *, proven: bool) -> None:
    """The outcome in the ledger; proven health clears the signatures of earlier failures."""
    ledger.append(host, Kind.REHEARSED if data.get("rehearsal") else Kind.OUTCOME, run, data)
    if proven:
        ledger.append(host, Kind.RESET, run, {"subject": data.get("subject", "")})


def carry_out(work: Work, standing: Standing, index: int, step: Step, known: Mapping[str, Json]) -> None:
    """One step with a plan made from fresh facts, told in the transcript from its start to its end.

    Raises what the step raises, unless it is best effort.
    """
    started = work.host.clock.now()
    place: dict[str, Json] = {"step": index, "name": step.name, "use": step.use}
    work.transcript.write("step_started", **place, spans_reboot=step.spans_reboot)

    def ended(ok: bool, summary: str, output: str = "") -> None:
        spent = round(work.host.clock.now().since(started), 3)
        work.transcript.write("step_ended", **place, ok=ok, summary=summary[:500], duration_s=spent, output=output)

    try:
        action, target, plan = planned(work, step, known)
        before = before_json(plan.before)
        values = target.params.model_dump(mode="json")
        work.transcript.write("planned", **place, parameters=values, before=before, lines=list(by_hand(plan)))
        if action.undo is not None and before is not None:
            standing.begun.append(Begun(index, step, values, before))

        touched: list[int] = []

        def touch() -> None:
            standing.changed = True
            if not touched:
                touched.append(index)
                work.transcript.write("progress", step=index, text="changes begin", changes=True)

        done = _performer(work, touch, index).perform(plan, step.timeout_s)
    except RebootAwaited as error:
        ended(True, error.message)
        raise
    except HoldfastError as error:
        ended(False, error.message)
        if step.best_effort and not isinstance(error, (StepRefused, StopAsked)):
            return
        raise
    except Exception as error:
        ended(False, f"crashed: {crash_words(error)}")
        if step.best_effort:
            return
        raise
    ended(True, done.summary, done.output)


def _performer(work: Work, touch: Callable[[], None], index: int) -> Performer:
    started = work.host.clock.now()
    return Performer(
        work.host,
        stopping=work.stopping,
        progress=lambda seen: _say(work, index, work.host.clock.now().since(started), seen),
        touch=touch,
        group=ledger.group(work.host),
    )


def _say(work: Work, index: int, elapsed_s: float, seen: Progress) -> None:
    """How far a step is, as the transcript keeps it: percent done and seconds left are None where nobody can tell."""
    percent = None if seen.percent is None else round(min(100.0, max(0.0, seen.percent)), 1)
    remaining_s = None if seen.remaining_s is None else round(max(0.0, seen.remaining_s), 1)
    known: dict[str, Json] = {"percent": percent, "elapsed_s": round(elapsed_s, 1), "remaining_s": remaining_s}
    work.transcript.write("progress", step=index, text=seen.words[:200], **known)


# --- proof ---------------------------------------------------------------------------------------------------


def verified(work: Work, verify: Verify | None) -> Result:
    """Look until the check is OK, the unit fails, or the time is over. A runbook without a check is believed.

    Raises StopAsked.
    """
    if verify is None:
        return Result(Outcome.SUCCEEDED, "all steps done")
    work.transcript.write("verifying", check=verify.check, within_s=verify.within_s)
    started = work.host.clock.now()
    while True:
        result = look(work, verify)
        if result is None:
            return _failed(work, f"{verify.check} does not apply to {work.subject}", "unverifiable")
        missing = unproven(work, verify) if proves(result) else result.summary
        if not missing:
            work.transcript.write("verified", check=verify.check, summary=result.summary)
            return Result(Outcome.SUCCEEDED, result.summary)
        if work.stopping():
            raise StopAsked("asked to stop while verifying")
        if _down(work):
            return _failed(work, f"{work.subject} went down again: {result.summary}", "verify-failed")
        if work.host.clock.now().since(started) >= verify.within_s:
            return _failed(work, f"not proven within {verify.within_s:g} s: {missing}", "verify-timeout")
        work.host.clock.sleep(VERIFY_EVERY_S)


def look(work: Work, verify: Verify) -> CheckResult | None:
    """One fresh look with the verifying check; None where it does not apply."""
    check = plugin.checks()[verify.check]
    target = work.config.target(check, work.subject)
    return None if target is None else frame.run_check(work.host, check, target, None)


def unproven(work: Work, verify: Verify) -> str:
    """The first of the further checks that is not OK on a subject it applies to, in words; "" when all are."""
    for identifier in verify.also:
        check = plugin.checks()[identifier]
        for target in (target for each, target in work.config.targets() if each.id == identifier):
            seen = frame.run_check(work.host, check, target, None)
            if not proves(seen):
                return f"{identifier} of {target.subject}: {seen.summary}"
    return ""


def proves(result: CheckResult | None) -> bool:
    """Whether one look proves that the repair worked."""
    return result is not None and result.status is Status.OK


def _down(work: Work) -> bool:
    """Whether the engine's unit has failed, so that waiting longer proves nothing."""
    engine = facts.engine_of(work.config, work.subject)
    if engine is None or engine.unit is None:
        return False
    try:
        return facts.has_failed(systemd.unit_state(work.host, engine.unit))
    except HostError:
        return False


def _failed(work: Work, summary: str, code: str) -> Result:
    """A failure, with the signature by which it is known when it comes again; or the operator's hand that it was."""
    if _stopped_by_an_operator(work):
        return Result(Outcome.STOPPED, f"{summary}; an operator stopped it", code="operator-stopped")
    signature, words = facts.failure(work.host, facts.engine_of(work.config, work.subject))
    return Result(Outcome.FAILED, f"{summary}; {words}" if words else summary, signature or code, code)


def _stopped_by_an_operator(work: Work) -> bool:
    """Whether the unit is down because somebody else asked systemd to stop it: that is no failure of the engine."""
    engine = facts.engine_of(work.config, work.subject)
    if engine is None or engine.unit is None:
        return False
    try:
        _, how = stops.operators_hand(work.host, systemd.unit_state(work.host, engine.unit))
    except HostError:
        return False
    return how == stops.BY_AN_OPERATOR


def crash_words(error: Exception) -> str:
    """What a bug of ours was and where; not its message, which may quote what an engine said."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__} in {frames[-1].filename.rsplit('/', 2)[-1]}:{frames[-1].lineno}"


# --- undo ----------------------------------------------------------------------------------------------------


def stand(work: Work, begun: Sequence[Begun]) -> bool:
    """Whether everything is true now that these steps were for, as far as their actions can tell."""
    for each, action, before in _with_actions(begun):
        if action.stands is None:
            continue
        try:
            target = _begun_on(work, action, each)
            if not action.stands(work.host, target, target.params, before):
                return False
        except HoldfastError:
            return False
    return True


def settle(work: Work, begun: Sequence[Begun]) -> None:
    """Do what is left of a run that was cut off and has succeeded. What cannot be done is told, and is no failure."""
    for each, action, before in _with_actions(begun):
        if action.settle is None:
            continue
        try:
            target = _begun_on(work, action, each)
            plan = action.settle(work.host, target, target.params, before)
            said = _performer(work, lambda: None, each.index).perform(plan).summary
        except HoldfastError as error:
            said = f"not all of it could be done: {error.message}"
        work.transcript.write("progress", step=each.index, text=f"what was left to do: {said}"[:200])


def _with_actions(begun: Sequence[Begun]) -> Iterator[tuple[Begun, Action, Mapping[str, Json]]]:
    """The steps that noted what was before them, with their actions; one of another version is left out."""
    for each in begun:
        action = plugin.actions().get(each.step.use)
        if action is not None and each.before is not None:
            yield each, action, each.before


def _begun_on(work: Work, action: Action, begun: Begun) -> Target:
    return _target(work, action, begun.parameters, f"step {begun.step.name!r}")


def undone(work: Work, result: Result, begun: Sequence[Begun]) -> Result:
    """Undo the steps that began, last first, each planned from fresh facts. Never raises for what the machine does.

    A run whose undo changed something and came to its end is `undone`; where nothing had to be undone it stays what it
    was; where undo itself failed the summary says so, and where an operator's hand forbade it the run is `stopped`. A
    cut-off run of which no step had changed anything gets the code `untouched`. Raises StopAsked, unless the work is
    unstoppable.
    """
    changed: list[str] = []
    troubles: list[str] = []
    touched = False
    operators = ""

    def touch() -> None:
        changed.append("")

    for each, action, before in reversed(list(_with_actions(begun))):
        if action.undo is None:
            continue
        place: dict[str, Json] = {"step": each.index, "name": each.step.name, "use": each.step.use}
        try:
            target = _begun_on(work, action, each)
            plan = action.undo(work.host, target, target.params, before)
            touched = touched or not any(isinstance(step, Noop) and step.untouched for step in plan.steps)
            done = _performer(work, touch, each.index).perform(plan)
        except StopAsked:
            raise
        except HoldfastError as error:
            operators = error.code if error.code.startswith("operator-") else operators
            troubles.append(f"undo of {each.step.name!r}: {error.message}")
            work.transcript.write("undone", **place, ok=False, summary=error.message[:500])
        except Exception as error:  # noqa: BLE001 - the other steps are undone all the same
            troubles.append(f"undo of {each.step.name!r} crashed: {crash_words(error)}")
            work.transcript.write("undone", **place, ok=False, summary=troubles[-1])
        else:
            work.transcript.write("undone", **place, ok=True, summary=done.summary)
    if troubles:
        result = replace(result, summary="; ".join((result.summary, *troubles)))
        return replace(result, outcome=Outcome.STOPPED, code=operators, signature="") if operators else result
    if changed and result.outcome in (Outcome.FAILED, Outcome.INTERRUPTED):
        return replace(result, outcome=Outcome.UNDONE)
    return replace(result, code="untouched") if result.outcome is Outcome.INTERRUPTED and not touched else result
