"""What the runner does for a request that may be served: run, plan, follow, approve, pause, resume, stop, recover.

The gate before this (`agent.runner`) knows who asks. Here `decide` is law: its facts come from root-owned
configuration, from systemd and the journal, and from the ledger, read while the subject is held, so that two requests
cannot both spend the last of a budget.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

# Imported here although only used later: a package upgrade in the middle of a run must not break it.
import requests  # noqa: F401, TID251

import agent.host.deadline  # noqa: F401
from agent import (
    access,
    claim,
    config,
    execution,
    facts,
    ledger,
    plugin,
    recovery,
    rehearsals,
    rehearse,
    runbook,
    transcript,
)
from agent.access import Role
from agent.config import Config
from agent.decide import Caller, decide
from agent.errors import ConfigurationError, HoldfastError, StoreError, UsageError
from agent.execution import Work
from agent.host import Host, changes, journal
from agent.ledger import Kind
from agent.model import Autonomy, Consent, Decision, Json, Outcome
from agent.protocol import Event, Request
from agent.runbook import Runbook, Runbooks
from agent.runbook_schema import RESERVED_INPUTS
from agent.transcript import Transcript

log = logging.getLogger(__name__)

LONGEST_PAUSE_S = 30 * 86400.0
"""A pause is for a while; whoever wants less for longer sets autonomy to observe."""
_ULID_DIGITS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


@dataclass(frozen=True, slots=True)
class Asked:
    """One request with everything needed to answer it. `tell` sends an event; whether it arrives does not matter."""

    host: Host
    request: Request
    role: Role
    uid: int
    tell: Callable[[Event], None]
    stopping: Callable[[], bool]
    config: Config
    runbooks: Runbooks

    def answer(self, event: str, **data: Json) -> None:
        """Answer with one event that belongs to no transcript."""
        self.tell(
            Event.model_validate(
                {"id": self.request.id, "seq": 0, "at": self.host.clock.now().wall, "event": event, "data": data}
            )
        )

    def refuse(self, decision: Decision) -> None:
        """Say no, and put it on record."""
        refuse(self.host, self.request.id, self.uid, self.tell, decision)


def refuse(host: Host, request_id: str, uid: int, tell: Callable[[Event], None], decision: Decision) -> None:
    """Answer with a refusal and put it in the ledger (a flood becomes one record with a count)."""
    data: dict[str, Json] = {
        "code": decision.code,
        "reason": decision.reason,
        "not_before": decision.not_before,
        "needs_approval": decision.needs_approval,
    }
    tell(Event(id=request_id, seq=0, at=host.clock.now().wall, event="refused", data=data))
    if ledger.refused(host, uid, decision.code, decision.reason, request_id):
        log.warning("refused uid %d: %s: %s", uid, decision.code, decision.reason)


def _unusable(error: ConfigurationError) -> str:
    """Why no run starts, in one line that a page can carry."""
    first, others = error.mistakes[0], len(error.mistakes) - 1
    more = f" and {others} more mistake{'s' if others > 1 else ''}" if others else ""
    return f"the configuration is wrong, so no run starts (holdfast check --config): {first}{more}"


def preload() -> None:
    """Load every plug-in and every data file now, so that a package upgrade during a run cannot break it."""
    plugin.actions()
    plugin.checks()
    plugin.rules()
    for engine in plugin.engines().values():
        if engine.signatures:
            journal.load_signatures(engine.signatures)


def serve(
    host: Host,
    request: Request,
    role: Role,
    uid: int,
    tell: Callable[[Event], None],
    stopping: Callable[[], bool],
) -> None:
    """Answer one permitted request. Raises HoldfastError for what the runner itself cannot do."""
    ledger.prepare(host)
    if request.do == "follow":
        _follow(host, request, uid, tell)
        return
    preload()
    if request.do in ("run", "rehearse", "plan", "approve", "recover"):
        owner = access.own_uid()
        try:
            settings = config.load(host.files, owner=owner)
            books = runbook.load(host.files, owner=owner)
        except ConfigurationError as error:
            refuse(host, request.id, uid, tell, Decision(False, _unusable(error), "configuration"))
            return
    else:
        settings, books = Config(), Runbooks()
    asked = Asked(host, request, role, uid, tell, stopping, settings, books)
    try:
        _VERBS[request.do](asked)
    except StoreError as error:
        asked.refuse(Decision(False, error.message, error.code))
    except UsageError as error:
        asked.refuse(Decision(False, error.message, error.code))


# --- run -----------------------------------------------------------------------------------------------------


def _run(asked: Asked) -> None:
    host, request = asked.host, asked.request
    if _repeated(asked):
        return
    book, subject, inputs = _named(asked)
    run = request.id
    while True:
        following = _one_run(asked, book, subject, inputs, run)
        successor = asked.runbooks.get(following) if following else None
        if successor is None or asked.stopping():
            return
        # The next runbook is a run of its own, with its own budget, and its id follows from this one's.
        run, book, inputs = _next_id(run, successor.id), successor, successor.resolved_inputs({})
        if ledger.attempt_data(ledger.read(host).records, run) is not None:
            return


def _repeated(asked: Asked) -> bool:
    """Answer a repeated id with what became of it; a run that was cut off gets its outcome first."""
    host, run = asked.host, asked.request.id
    attempt = ledger.attempt_data(ledger.read(host).records, run)
    if attempt is None:
        return False
    take = claim.clear_up if attempt.get("rehearsal") else claim.take
    held = take(host, str(attempt["subject"]), run)
    if not isinstance(held, str):
        with held:
            recovery.finish_cut_off(host, asked.config, run, stopping=asked.stopping)
    for event in transcript.tail(host, run, lambda: claim.alive(host, run)):
        asked.tell(event)
    return True


def _named(asked: Asked) -> tuple[Runbook, str, dict[str, Json]]:
    """The runbook, the subject and the typed inputs. Raises UsageError."""
    request = asked.request
    book = asked.runbooks.get(request.runbook or "")
    if book is None:
        known = ", ".join(asked.runbooks.by_id)
        raise UsageError(f"unknown runbook {request.runbook!r} (known: {known})", code="unknown-runbook")
    if request.subject is None or not facts.has_subject(asked.config, book, request.subject):
        raise UsageError(f"{book.id} has nothing to act on at {request.subject!r}", code="unknown-subject")
    given = {key: value for key, value in request.args.items() if key not in RESERVED_INPUTS}
    try:
        return book, request.subject, book.resolved_inputs(given)
    except ConfigurationError as error:
        raise UsageError(error.message, code="wrong-inputs") from error


def _one_run(asked: Asked, book: Runbook, subject: str, inputs: Mapping[str, Json], run: str) -> str:
    """Decide, count the attempt, act, prove, record; the id of the runbook that comes next, "" for none."""
    host = asked.host
    work = Work(host, asked.config, book, subject, inputs, run, Transcript(host, run, asked.tell), asked.stopping)
    if claim.rehearsals(host):  # none is ended for a run that would be refused anyway
        decision = _decided(asked, book, subject, approved=_approval(asked, work) is not None)
        if not decision.allow:
            asked.refuse(decision)
            return ""
    held = claim.take(host, subject, run)
    if isinstance(held, str):
        asked.refuse(_decided(asked, book, subject, in_flight=held))
        return ""
    with held:
        for ended in held.ended:
            ledger.append(
                host, Kind.STOP, ended, {"uid": asked.uid, "run": run, "because": f"{book.id} needs its place"}
            )
        recovery.recover_held(host, asked.config, subject, stopping=asked.stopping)
        if _broken(asked):
            return ""
        approval = _approval(asked, work)
        decision = _decided(asked, book, subject, approved=approval is not None)
        if not decision.allow:
            asked.refuse(decision)
            return ""
        attempt = recovery.attempt_record(book, subject, inputs)
        attempt |= {"uid": asked.uid, "because": asked.request.because, "force": asked.request.force}
        if approval is not None:
            attempt["approval"] = approval.id
        ledger.append(host, Kind.ATTEMPT, run, attempt)
        log.info("run %s: %s on %s, asked by uid %d", run, book.id, subject, asked.uid)
        work.transcript.write("accepted", **attempt)
        result = execution.execute(work)
        if isinstance(result, execution.Parked):
            log.info("run %s waits for a reboot: %s", run, result.summary)
            return ""
        log.info("run %s: %s: %s", run, result.outcome, result.summary)
    return book.on_failure if result.outcome in (Outcome.FAILED, Outcome.UNDONE) else ""


def _broken(asked: Asked) -> bool:
    """Refuse where the ledger's chain is broken: then nobody knows what was spent."""
    problems = ledger.read(asked.host).problems
    if problems:
        asked.refuse(Decision(False, f"the ledger's chain is broken: {problems[0]}", "ledger-broken"))
    return bool(problems)


def _decided(asked: Asked, book: Runbook, subject: str, *, approved: bool = False, in_flight: str = "") -> Decision:
    caller = Caller.OPERATOR if asked.role is Role.OPERATOR else Caller.DAEMON
    asking = facts.Asking(caller, asked.request.force, approved, in_flight)
    gathered = facts.gather(asked.host, asked.config, book, subject, ledger.read(asked.host).records, asking)
    return decide(book, subject, gathered, asked.host.clock.now())


def _approval(asked: Asked, work: Work) -> ledger.Approval | None:
    """The approval that fits this runbook, subject and plan exactly; only looked for where one is needed."""
    acts = asked.config.autonomy_for(work.runbook.id) is Autonomy.ACT and work.runbook.consent is not Consent.APPROVAL
    if asked.role is Role.OPERATOR or acts:
        return None
    now = asked.host.clock.now()
    incident = asked.request.args.get("incident")
    fitting = [
        each
        for each in ledger.approvals(ledger.read(asked.host).records, now)
        if (each.runbook_hash, each.subject, each.incident) == (work.runbook.hash, work.subject, incident)
    ]
    if not fitting:
        return None
    plan = execution.plan_hash(work.runbook, work.subject, execution.rehearsed(work))
    return next((each for each in fitting if each.plan_hash == plan), None)


def _next_id(run: str, successor: str) -> str:
    """The id of a follow-up run: the same time, and randomness that follows from its parent, so it can be repeated."""
    number = int.from_bytes(hashlib.sha256(f"{run}/{successor}".encode()).digest()[:10], "big")
    return run[:10] + "".join(_ULID_DIGITS[number >> shift & 31] for shift in range(75, -1, -5))


# --- the other verbs -----------------------------------------------------------------------------------------


def _plan(asked: Asked) -> None:
    """What would be done, with real values; and whether it would be allowed. Nothing is recorded."""
    book, subject, inputs = _named(asked)
    work = Work(asked.host, asked.config, book, subject, inputs, asked.request.id, Transcript(asked.host, "-"))
    try:
        shown = execution.rehearsed(work)
    except HoldfastError as error:
        raise UsageError(f"the plan cannot be made: {error.message}", code="no-plan") from error
    decision = _decided(asked, book, subject)
    asked.answer(
        "planned",
        runbook=book.id,
        subject=subject,
        hash=book.hash,
        plan=execution.plan_hash(book, subject, shown),
        steps=shown,
        verify=None
        if book.verify is None
        else {"check": book.verify.check, "within_s": book.verify.within_s, "also": list(book.verify.also)},
        decision={
            "allow": decision.allow,
            "code": decision.code,
            "reason": decision.reason,
            "not_before": decision.not_before,
            "needs_approval": decision.needs_approval,
        },
    )


def _approve(asked: Asked) -> None:
    """A person permits one run: bound to the incident, the runbook and the plan as they are now."""
    book, subject, inputs = _named(asked)
    incident, plan = asked.request.args.get("incident"), asked.request.args.get("plan")
    if not (isinstance(incident, str) and 0 < len(incident) <= 64 and isinstance(plan, str)):
        raise UsageError("approve needs args.incident and args.plan", code="request-invalid")
    work = Work(asked.host, asked.config, book, subject, inputs, asked.request.id, Transcript(asked.host, "-"))
    if execution.plan_hash(book, subject, execution.rehearsed(work)) != plan:
        raise UsageError("the plan is not what you were shown: look at it again", code="plan-changed")
    data = {"incident": incident, "runbook": book.id, "subject": subject, "runbook_hash": book.hash, "plan": plan}
    ledger.append(asked.host, Kind.APPROVAL, asked.request.id, {**data, "uid": asked.uid})
    until = asked.host.clock.now().wall + ledger.APPROVAL_S
    asked.answer("approved", **data, until=until)


def _pause(asked: Asked) -> None:
    for_s = asked.request.args.get("for_s")
    if isinstance(for_s, bool) or not isinstance(for_s, (int, float)) or not 0 < for_s <= LONGEST_PAUSE_S:
        raise UsageError(f"pause needs args.for_s, up to {LONGEST_PAUSE_S:g} seconds", code="request-invalid")
    data = {"for_s": float(for_s), "uid": asked.uid, "reason": asked.request.because}
    ledger.append(asked.host, Kind.PAUSE, asked.request.id, data)
    asked.answer("paused", **data, until=asked.host.clock.now().wall + for_s)


def _resume(asked: Asked) -> None:
    ledger.append(asked.host, Kind.RESUME, asked.request.id, {"uid": asked.uid})
    asked.answer("resumed")


def _stop(asked: Asked) -> None:
    """Ask a run to stop, and follow it to its end."""
    if not claim.stop(asked.host, asked.request.id):
        raise UsageError(f"run {asked.request.id} is not in flight", code="unknown-run")
    ledger.append(asked.host, Kind.STOP, asked.request.id, {"uid": asked.uid, "because": asked.request.because})
    _follow(asked.host, asked.request, asked.uid, asked.tell)


def _follow(host: Host, request: Request, uid: int, tell: Callable[[Event], None]) -> None:
    if not transcript.exists(host, request.id):
        refuse(host, request.id, uid, tell, Decision(False, f"there is no run {request.id}", "unknown-run"))
        return
    for event in transcript.tail(host, request.id, lambda: claim.alive(host, request.id)):
        tell(event)


def _recover(asked: Asked) -> None:
    finished = recovery.recover(asked.host, asked.config, stopping=asked.stopping)
    summary = f"{len(finished)} cut-off runs finished" if finished else "nothing was cut off"
    asked.answer("ended", outcome=Outcome.SUCCEEDED.value, summary=summary, runs=list(finished))


def _rehearse(asked: Asked) -> None:
    """Do of a runbook what disturbs nobody, and clear up; on record as a rehearsal, so that no budget is spent."""
    host, run = asked.host, asked.request.id
    if _repeated(asked):
        return
    book, subject, inputs = _named(asked)
    held = claim.rehearse(host, subject, run)
    if isinstance(held, str):
        asked.refuse(Decision(False, f"run {held} is still in flight", "run-in-flight"))
        return
    with held:
        recovery.recover_held(host, asked.config, subject, stopping=asked.stopping)
        if _broken(asked):
            return
        decision = _rehearsable(asked, book, subject)
        if decision is not None:
            asked.refuse(decision)
            return
        record = {"uid": asked.uid, "because": asked.request.because}
        record |= rehearse.rehearsal_record(book, subject, inputs)
        ledger.append(host, Kind.REHEARSAL, run, record)
        log.info("rehearsal %s: %s on %s, asked by uid %d", run, book.id, subject, asked.uid)
        told = Transcript(host, run, asked.tell)
        told.write("accepted", **record)
        work = Work(host, asked.config, book, subject, inputs, run, told, asked.stopping, rehearsal=True)
        result = rehearse.rehearse(work)
        log.info("rehearsal %s: %s: %s", run, result.outcome, result.summary)


def _rehearsable(asked: Asked, book: Runbook, subject: str) -> Decision | None:
    """Why this is not rehearsed now, None when it may be. A run that goes on, or was cut off, comes first."""
    host, now = asked.host, asked.host.clock.now()
    records = ledger.read(host).records
    impossible = rehearsals.refusal(asked.config, book, subject)
    if impossible is not None:
        return impossible
    for other in ledger.open_attempts(records, now):
        return Decision(False, f"run {other.run} is still in flight, or was cut off", "run-in-flight")
    if asked.role is Role.OPERATOR:
        return None
    pause = ledger.paused(records, now)
    return rehearsals.too_soon(
        records, book, subject, now, paused=None if pause is None else pause.until, change=changes.in_words(host)
    )


_VERBS: Mapping[str, Callable[[Asked], None]] = {
    "run": _run,
    "plan": _plan,
    "rehearse": _rehearse,
    "approve": _approve,
    "pause": _pause,
    "resume": _resume,
    "stop": _stop,
    "recover": _recover,
}
