"""Following a run to its end: one line per step while it goes on, and an exit code by its outcome."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agent.cli._result import Live, Progress, Result, rfc3339
from agent.cli._sockets import events, new_id
from agent.errors import DaemonUnreachable, InternalError, Refused
from agent.model import Incident, Json, Outcome, Status
from agent.views import texts

if TYPE_CHECKING:
    from agent.cli._session import Session
    from agent.protocol import Event, Request

STATUSES = {
    Outcome.SUCCEEDED: Status.OK,
    Outcome.STOPPED: Status.WARNING,
    Outcome.FAILED: Status.CRITICAL,
    Outcome.UNDONE: Status.CRITICAL,
    Outcome.INTERRUPTED: Status.UNKNOWN,
    Outcome.REFUSED: Status.WARNING,
}
"""What the outcome of a run means for the exit code; a refusal before the first step is an error of its own."""
PLAIN_S = 300.0
"""Without a terminal, a long step is told at every tenth that is done, and at least this often."""
STARTED_WITHIN_S = 20.0
"""How long an approval waits for the daemon to start the run."""


@dataclass
class _Seen:
    """What was heard of a run so far."""

    runbook: str = ""
    subject: str = ""
    steps: list[dict[str, Json]] = field(default_factory=list)
    started_at: float | None = None
    meter: tuple[int, int, float] = (-1, -1, 0.0)
    """Where no terminal shows a bar: the step, its tenth of percent and the time (Unix seconds) last printed."""


def run(session: Session, request: Request, total: int = 0) -> Live:
    """Ask for a run and follow it. `total` is the number of its steps, 0 when not known."""
    seen = _Seen(request.runbook or "", request.subject or "")
    parked = ""
    try:
        for event in events(session, request):
            seen.started_at = seen.started_at if seen.started_at is not None else event.at
            if event.event == "ended":
                return _ended(request.id, event, seen)
            if event.event == "refused":
                raise refused(event, session.host.clock.now().wall)
            if event.event == "parked":
                parked = str(event.data.get("summary", ""))
            yield from _lines(request.id, event, seen, total)
    except KeyboardInterrupt:
        return _left(request.id, seen)
    if parked:
        return _parked(request.id, seen, parked)
    raise DaemonUnreachable(
        "the runner hung up before the run ended",
        hint=f"holdfast status; or follow it again: sudo holdfast run --follow {request.id}",
        where=request.id,
        code="runner-gone",
    )


def refused(event: Event, now: float) -> Refused:
    """The runner's no, with what to do about it."""
    data = event.data
    not_before = data.get("not_before")
    code, hint = str(data.get("code") or "refused"), ""
    if isinstance(not_before, (int, float)):
        hint = f"possible again in {texts.duration(not_before - now)} ({texts.clock(not_before, now)})"
    if code in ("incurable", "same-failure-twice", "budget", "host-once-a-day", "cooldown"):
        hint += ("; or " if hint else "") + "add --force if you know better"
    if code == "paused":
        hint = "sudo holdfast resume"
    if code == "change-open":
        hint = "holdfast change status"
    return Refused(str(data.get("reason") or "the runner refused"), not_before=not_before, hint=hint, code=code)


def _lines(run_id: str, event: Event, seen: _Seen, total: int) -> Iterator[Progress]:
    data = event.data
    index = data.get("step")
    place = f"{index + 1}{f'/{total}' if total else ''}" if isinstance(index, int) else "-"
    if event.event == "accepted":
        seen.runbook, seen.subject = str(data.get("runbook", seen.runbook)), str(data.get("subject", seen.subject))
        yield Progress(f"run      {run_id}: {seen.runbook} on {seen.subject}")
    elif event.event == "step_started":
        yield Progress(f"{place:<8} {data.get('name', '')} …", transient=True)
    elif event.event == "progress":
        yield _progress(place, event, seen)
    elif event.event == "step_ended":
        keep = ("step", "name", "use", "ok", "summary", "duration_s", "output")
        seen.steps.append({key: data.get(key) for key in keep})
        yield Progress(f"{place:<8} {step_line(data)}")
    elif event.event == "verifying":
        yield Progress(
            f"proof    {data.get('check', '')}, at most {texts.duration(float(data.get('within_s') or 0))} …",
            transient=True,
        )
    elif event.event == "verified":
        yield Progress(f"proof    {data.get('check', '')}: {data.get('summary', '')}")
    elif event.event == "undone":
        yield Progress(f"undo {place:<3} {data.get('name', '')}: {data.get('summary', '')}")


def _progress(place: str, event: Event, seen: _Seen) -> Progress:
    """How far a step is: a bar on a terminal, and elsewhere a line now and then."""
    data = event.data
    words = str(data.get("text", ""))
    percent, spent, left = (_number(data.get(name)) for name in ("percent", "elapsed_s", "remaining_s"))
    if percent is None and left is None:
        return Progress(f"{place:<8} {words} …", transient=True)
    line = f"{words} …" if percent is None else f"{percent:.0f} % {words}"
    line += f", {texts.duration(spent)}" if spent is not None else ""
    line += f", about {texts.about(left)} left" if left is not None else ""
    tenth = -1 if percent is None else int(percent // 10)
    step, last, at = seen.meter
    plain = ""
    if (data.get("step"), tenth) != (step, last) or event.at - at >= PLAIN_S:
        seen.meter, plain = (int(data.get("step", -1)), tenth, event.at), f"{place:<8} {line}"
    shown = line if percent is None else f"{texts.bar(percent)} {line}"
    return Progress(f"{place:<8} {shown}", transient=True, plain=plain)


def _number(value: Json) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None


def step_line(data: dict[str, Json]) -> str:
    """One ended step as a line."""
    mark = "OK" if data.get("ok") else "FAILED"
    spent = data.get("duration_s")
    took = f", {float(spent):.1f} s" if isinstance(spent, (int, float)) else ""
    return f"{data.get('name', '')}: {mark}, {data.get('summary') or 'done'}{took}"


def _ended(run_id: str, event: Event, seen: _Seen) -> Result:
    data = event.data
    try:
        outcome = Outcome(str(data.get("outcome")))
    except ValueError:
        raise InternalError(f"the runner ended with an unknown outcome {data.get('outcome')!r}") from None
    summary = str(data.get("summary", ""))
    lines = [f"{_end_word(data, outcome)}: {summary}"]
    if outcome not in (Outcome.SUCCEEDED, Outcome.REFUSED):
        lines.append(f"next     holdfast audit show {run_id}")
    if data.get("next"):
        lines.append(f"next     sudo holdfast run {data['next']} --subject {seen.subject}")
    result = {
        "id": run_id,
        "runbook": str(data.get("runbook") or seen.runbook),
        "subject": str(data.get("subject") or seen.subject),
        "outcome": outcome.value,
        "summary": summary,
        "signature": data.get("signature") or None,
        "started_at": rfc3339(seen.started_at),
        "ended_at": rfc3339(event.at),
        "steps": seen.steps,
    }
    if data.get("rehearsal"):
        result |= {"rehearsal": True, "took_s": data.get("took_s")}
    return Result("run", result, lambda _width: "\n".join(lines), exit_code=STATUSES[outcome].exit_code)


def _end_word(data: dict[str, Json], outcome: Outcome) -> str:
    """How it ended, in capitals; of a rehearsal that nothing was changed, and how long it would take."""
    if not data.get("rehearsal"):
        return outcome.value.upper()
    took = _number(data.get("took_s"))
    spent = f" in {texts.duration(took)}" if took is not None else ""
    return f"REHEARSED{spent}" if outcome is Outcome.SUCCEEDED else f"REHEARSAL {outcome.value.upper()}"


def _left(run_id: str, seen: _Seen) -> Result:
    text = (
        f"\nThe run goes on without you: {run_id}\n"
        f"follow   sudo holdfast run --follow {run_id}\n"
        f"stop     sudo holdfast stop {run_id}"
    )
    data = {"id": run_id, "runbook": seen.runbook, "subject": seen.subject, "outcome": None, "steps": seen.steps}
    return Result("run", data, lambda _width: text, exit_code=Status.UNKNOWN.exit_code)


def _parked(run_id: str, seen: _Seen, why: str) -> Result:
    text = (
        f"WAITS: {why}\n"
        "next     at a quiet hour: sudo systemctl reboot\n"
        f"then     it is proven by itself; follow it: sudo holdfast run --follow {run_id}"
    )
    data = {
        "id": run_id,
        "runbook": seen.runbook,
        "subject": seen.subject,
        "outcome": None,
        "summary": why,
        "steps": seen.steps,
    }
    return Result("run", data, lambda _width: text, exit_code=Status.WARNING.exit_code)


def plan(session: Session, request: Request) -> dict[str, Json]:
    """The runner's plan for a request: its hash and its steps. Raises Refused."""
    for event in events(session, request):
        if event.event == "refused":
            raise refused(event, session.host.clock.now().wall)
        if event.event == "planned":
            return dict(event.data)
    raise DaemonUnreachable("the runner hung up without a plan", code="runner-gone")


def approve(session: Session, incident: Incident, runbook: str, because: str) -> Live:
    """Approve the plan for an incident as it is now, then follow the run that the daemon starts."""
    from agent import ledger
    from agent.protocol import Request

    ask = Request(do="plan", id=new_id(), runbook=runbook, subject=incident.subject)
    planned = plan(session, ask)
    yield from (Progress(line) for line in plan_lines(planned))
    arguments = {"incident": incident.id, "plan": planned.get("plan")}
    request = Request(
        do="approve", id=new_id(), runbook=runbook, subject=incident.subject, args=arguments, because=because[:500]
    )
    for event in events(session, request):
        if event.event == "refused":
            raise refused(event, session.host.clock.now().wall)
    yield Progress(f"approved {runbook} on {incident.subject}, for {texts.duration(ledger.APPROVAL_S)}")
    host, waited = session.host, 0.0
    while waited < STARTED_WITHIN_S:
        yield Progress("waiting for the daemon to start it …", transient=True)
        for record in ledger.read(host).records[-50:]:
            if record.kind is ledger.Kind.ATTEMPT and record.data.get("approval") == request.id:
                return (yield from run(session, Request(do="follow", id=record.run)))
        host.clock.sleep(0.5)
        waited += 0.5
    command = f"sudo holdfast run {runbook} --subject {incident.subject}"
    text = f"approved; the daemon has not started it yet\nnext     {command}"
    data = {"incident": incident.id, "runbook": runbook, "approval": request.id, "run": None}
    return Result("approved", data, lambda _width: text, exit_code=Status.UNKNOWN.exit_code)


def plan_lines(planned: dict[str, Json]) -> list[str]:
    """A plan as lines: each step's name, and below it what would be typed."""
    lines: list[str] = []
    steps = planned.get("steps")
    for number, step in enumerate(steps if isinstance(steps, list) else [], start=1):
        lines.append(f"# {number}. {step.get('name', '')} ({step.get('use', '')})")
        lines += [str(each) for each in step.get("lines", ())]
    return lines
