"""Finishes or undoes runs that were cut off: by a reboot, a power cut, a kill.

Judge first: when the proof is already there, the run succeeded. Otherwise a run that had done all its steps, or stood
in one that spans a reboot, resumes at its proof (without one, all its steps are the success); any other is undone from
fresh facts and then proven, because the right end of a cut-off restart is an engine that runs. A rehearsal is cleared
up and judged as nothing. Exactly one outcome is recorded. Everything needed is in the attempt's record and the
transcript, so that a changed runbook cannot change the end of a run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from agent import claim, execution, ledger, plugin, rehearse, transcript
from agent.config import Config
from agent.decide import Limits
from agent.errors import FileTrouble, HoldfastError
from agent.execution import Begun, Result, Work
from agent.host import Host
from agent.model import Consent, Json, Outcome, Risk
from agent.protocol import Event
from agent.runbook import Runbook, Step, Verify
from agent.steps import StopAsked
from agent.transcript import Transcript

log = logging.getLogger(__name__)

Tell = Callable[[Event], None]


def silent(event: Event) -> None:
    """Tell nobody."""


def attempt_record(runbook: Runbook, subject: str, inputs: Mapping[str, Json]) -> dict[str, Json]:
    """What an attempt's record must say so that the run can be recovered without its runbook."""
    verify = runbook.verify
    return {
        "runbook": runbook.id,
        "hash": runbook.hash,
        "subject": subject,
        "risk": runbook.risk.value,
        "inputs": dict(inputs),
        "steps": execution.needed(runbook),
        "total": len(runbook.steps),
        "replaces": _replacing_step(runbook),
        "verify": None if verify is None else [verify.check, verify.within_s, list(verify.also)],
    }


def _replacing_step(runbook: Runbook) -> int | None:
    """The index of the step that gives the engine another program, None when there is none."""
    known = plugin.actions()
    for index, step in enumerate(runbook.steps):
        if step.use in known and known[step.use].replaces_program:
            return index
    return None


def recover(host: Host, config: Config, *, stopping: Callable[[], bool] = lambda: False) -> list[str]:
    """Finish every run that has no outcome and no living process; the ids of those that were finished.

    A run that still lives is left alone. It looks again until nothing is left: what is cut off while it proves another
    run would otherwise wait, because systemd does not start a unit that is running. Raises StoreError, and StopAsked
    when asked to stop: what is not finished then is finished next time.
    """
    finished: list[str] = []
    while True:
        before = len(finished)
        left = ledger.open_attempts(ledger.read(host).records, host.clock.now())
        for attempt in sorted(left, key=lambda each: each.rehearsal):  # what was meant seriously comes first
            take = claim.clear_up if attempt.rehearsal else claim.take
            held = take(host, attempt.subject, attempt.run)
            if isinstance(held, str):
                continue
            with held:
                if finish_cut_off(host, config, attempt.run, stopping=stopping):
                    finished.append(attempt.run)
        if len(finished) == before:
            return finished


def recover_held(host: Host, config: Config, subject: str, *, stopping: Callable[[], bool]) -> None:
    """Finish what was cut off on a subject that the caller holds, before anything new is decided about it."""
    for attempt in ledger.open_attempts(ledger.read(host).records, host.clock.now()):
        if attempt.subject == subject:
            finish_cut_off(host, config, attempt.run, stopping=stopping)


def finish_cut_off(
    host: Host, config: Config, run: str, *, stopping: Callable[[], bool] = lambda: False, tell: Tell = silent
) -> bool:
    """Give one cut-off run its outcome. The caller holds its subject. False when it has one, or waits for a reboot."""
    records = ledger.read(host).records
    data = ledger.attempt_data(records, run)
    waits = any(each.run == run for each in ledger.parked(records, host.clock.now()))
    if data is None or waits or ledger.outcome_of(records, run) is not None:
        return False
    try:
        found = transcript.events(host, run)
    except FileTrouble:
        found = ()
    last = transcript.ended(found)
    if last is not None:
        proven = last.data.get("outcome") == Outcome.SUCCEEDED.value and data.get("verify") is not None
        execution.record(host, run, last.data, proven=proven)
        return True
    work = _work(host, config, run, data, stopping, tell)
    result = _finish(work, data, found)
    log.warning("run %s on %s was cut off; now %s: %s", run, work.subject, result.outcome, result.summary)
    return True


def _work(
    host: Host, config: Config, run: str, data: Mapping[str, Json], stopping: Callable[[], bool], tell: Tell
) -> Work:
    verify = data.get("verify")
    runbook = Runbook(
        id=str(data["runbook"]),
        title="",
        explain="",
        findings=(),
        engines=(),
        limits=Limits(),
        steps=(),
        verify=None if verify is None else Verify(str(verify[0]), float(verify[1]), tuple(map(str, *verify[2:]))),
        on_failure="",
        inputs={},
        risk=Risk(data.get("risk", "service")),
        consent=Consent.OPERATOR,
        hash=str(data.get("hash", "")),
        file=f"run {run}",
    )
    inputs, rehearsal = data.get("inputs", {}), bool(data.get("rehearsal"))
    return Work(
        host, config, runbook, str(data["subject"]), inputs, run, Transcript(host, run, tell), stopping, rehearsal
    )


def _finish(work: Work, data: Mapping[str, Json], found: Sequence[Event]) -> Result:
    if work.rehearsal:
        work.transcript.write("progress", text="the rehearsal was cut off; it is cleared up")
        result = Result(Outcome.INTERRUPTED, f"cut off {_stand(found, 0)[0]}", code="cut-off")
        return execution.finish(work, rehearse.cleared(work, result, _begun(found)))
    work.transcript.write("progress", text="the run was cut off; recovery looks first whether it has succeeded")
    started, whole = _stand(found, int(data.get("steps", 0)))
    begun = _begun(found)
    verify, replaces = work.runbook.verify, data.get("replaces")
    result = Result(Outcome.INTERRUPTED, f"cut off {started}", code="cut-off")
    if replaces is not None and not any(each.index == replaces for each in begun):
        # Nothing that serves was touched, so that how well it serves says nothing of the run.
        return execution.finish(work, execution.undone(work, result, begun))
    stands = execution.stand(work, begun)
    if verify is not None and stands and (begun or whole or _spans_reboot(found)):
        seen = execution.look(work, verify)
        if seen is not None and execution.proves(seen) and not execution.unproven(work, verify):
            work.transcript.write("verified", check=verify.check, summary=seen.summary)
            execution.settle(work, begun)
            return execution.finish(work, Result(Outcome.SUCCEEDED, f"cut off, and proven afterwards: {seen.summary}"))
    if verify is None and whole and _worked(found, int(data.get("steps", 0)) - 1):
        return execution.finish(work, Result(Outcome.SUCCEEDED, "cut off after all its steps were done"))
    # A program that was put in its place, and runs, may only be loading yet: it is proven, and else given up.
    replaced = replaces is not None and stands
    resumes = (verify is not None and (replaced or (whole and stands))) or _spans_reboot(found)
    if not resumes:
        result = execution.undone(work, result, begun)
    over = result.outcome is Outcome.STOPPED or result.code == "untouched"
    if verify is not None and (begun or resumes) and not over:
        try:
            proof = execution.verified(work, verify)
        except StopAsked:
            raise
        except HoldfastError as error:
            proof = Result(Outcome.FAILED, error.message, code=error.code)
        summary = f"{result.summary}; then {proof.summary}"
        proven = proof.outcome is Outcome.SUCCEEDED
        if replaces is not None and resumes and not proven:
            return execution.finish(work, execution.undone(work, replace(proof, summary=summary), begun))
        # What serves well again after an undo is not what the run was for.
        kept = result if proven and not resumes and not execution.stand(work, begun) else proof
        result = replace(kept, summary=summary)
    if result.outcome is Outcome.SUCCEEDED:
        execution.settle(work, begun)
    return execution.finish(work, result)


def _stand(found: Sequence[Event], steps: int) -> tuple[str, bool]:
    """Where the run stood, in words, and whether every step was done that must be (`steps` of them)."""
    started = [event for event in found if event.event == "step_started"]
    if not started:
        return "before its first step", False
    ended = {event.data.get("step") for event in found if event.event == "step_ended"}
    last, whole = started[-1], steps - 1 in ended
    if last.data.get("step") not in ended:
        return f"in step {last.data.get('name')!r}", whole
    return ("while it was verified" if whole else f"after step {last.data.get('name')!r}"), whole


def _worked(found: Sequence[Event], step: int) -> bool:
    ended = [event for event in found if event.event == "step_ended" and event.data.get("step") == step]
    return bool(ended) and ended[-1].data.get("ok") is True


def _spans_reboot(found: Sequence[Event]) -> bool:
    return any(event.event == "step_started" and event.data.get("spans_reboot") for event in found)


def _begun(found: Sequence[Event]) -> list[Begun]:
    """The steps that may have changed something: their plan was complete, and their first change was announced."""
    changing = {event.data.get("step") for event in found if event.data.get("changes")}
    return [
        Begun(
            int(event.data["step"]),
            Step(str(event.data["name"]), str(event.data["use"]), {}),
            event.data["parameters"],
            event.data["before"],
        )
        for event in found
        if event.event == "planned" and event.data.get("before") is not None and event.data["step"] in changing
    ]
