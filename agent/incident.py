"""The life of an incident, as a pure state machine: findings in, changed incidents and transitions out.

    pending → open → acting → verifying → resolved
                 ↘ escalated ↗

A finding opens an incident only once its rule's `Confirm` holds and every check that could explain it was asked
again. While a run is in flight on a subject, nothing about that subject opens or resolves: it is looked at again
when the run ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from agent.model import Finding, Incident, Moment, Outcome, Phase, Run, Status, Transition, Urgency
from agent.plugin import Confirm

Key = tuple[str, str]
NewId = Callable[[], str]

LOST_S = 15.0
"""How long to wait before asking again for a run that the runner never heard of."""

_RANK = {Urgency.INFO: 0, Urgency.WARNING: 1, Urgency.CRITICAL: 2}


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What an advance needs to know beside the findings.

    confirm: how much evidence each finding needs. held: subjects with a run in flight. explained: keys whose
    explaining checks have answered since the suspicion. curable: keys that an allowed run may cure. paused: keys
    that no run may cure because a person has paused Holdfast or a planned change is open. prefix: the start of
    every dedup key ("holdfast/1a2b3c4d"). unseen: keys whose checks cannot tell now or not yet, so that a finding
    which is not there is not over. unwatched: subjects that are no longer configured.
    """

    confirm: Mapping[str, Confirm]
    held: frozenset[str]
    explained: frozenset[Key]
    curable: frozenset[Key]
    paused: frozenset[Key]
    prefix: str
    new_id: NewId
    unseen: frozenset[Key] = frozenset()
    unwatched: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Advance:
    """What changed. awaiting: confirmed suspicions whose explaining checks must answer before they open."""

    incidents: tuple[Incident, ...]
    transitions: tuple[Transition, ...]
    awaiting: tuple[Finding, ...]


def advance(
    incidents: Mapping[Key, Incident], findings: Iterable[Finding], now: Moment, world: Circumstances
) -> Advance:
    """Move every incident one step. `incidents` holds the latest incident of each key, resolved ones included."""
    changed: list[Incident] = []
    told: list[Transition] = []
    awaiting: list[Finding] = []
    present: set[Key] = set()
    for finding in findings:
        present.add(finding.key)
        known = incidents.get(finding.key)
        if known is not None and known.phase is Phase.RESOLVED and not finding.over:
            known = None
        if finding.over:
            after, kind = _over(known, finding, now, world)
        else:
            after, kind = _present(known or _new(finding, now, world), finding, now, world)
        if kind == "awaiting":
            awaiting.append(finding)
        elif kind:
            told.append(_transition(after, now, kind, finding.summary, world))
        changed.append(after)
    for key, known in incidents.items():
        if key not in present and known.phase is not Phase.RESOLVED and known.subject not in world.held:
            after, ended = _absent(known, now, world)
            changed.append(after)
            if ended:
                told.append(_transition(known, now, "resolved", _ending(known, world), world))
    return Advance(tuple(changed), tuple(told), tuple(awaiting))


def _over(known: Incident | None, finding: Finding, now: Moment, world: Circumstances) -> tuple[Incident, str]:
    """An event that is over already is told once and resolved in the same breath."""
    if known is not None and known.signature == finding.signature:
        return known, ""
    return _resolved(_seen(_new(finding, now, world), finding, now, world), now), "over"


def _present(known: Incident, finding: Finding, now: Moment, world: Circumstances) -> tuple[Incident, str]:
    """The incident after one more look at its finding, and what is told of it."""
    after = _seen(known, finding, now, world)
    if after.phase is Phase.PENDING:
        if finding.subject in world.held or not _confirmed(after, now, world):
            return after, ""
        if finding.key not in world.explained:
            return after, "awaiting"
        return after.changed(phase=Phase.OPEN, opened_at=now, changed_at=now), "opened"
    louder = _RANK[after.urgency] > _RANK[known.urgency]
    return after, "raised" if louder else ""


def _absent(known: Incident, now: Moment, world: Circumstances) -> tuple[Incident, bool]:
    """The incident after a look that did not find it, and whether that ends one that was told."""
    gone = known if known.gone_since else known.changed(gone_since=now)
    if known.phase is Phase.PENDING:
        return _resolved(gone, now), False
    if (known.finding, known.subject) in world.unseen:
        return known.changed(gone_since=None), False
    if now.since(gone.gone_since or now) >= _clear_s(known, world):
        return _resolved(gone, now), True
    return gone, False


def began(incident: Incident, run_id: str, runbook: str, now: Moment, new_id: NewId) -> tuple[Incident, Transition]:
    """A run is about to be asked for: recorded before the runner hears of it."""
    after = incident.changed(
        phase=Phase.ACTING,
        runs=(*incident.runs, run_id),
        changed_at=now,
        decision="",
        left="",
        command="",
        not_before=None,
    )
    return after, Transition(new_id(), incident.id, now.wall, "acting", f"running {runbook}")


def goes_on(
    incident: Incident, words: str, left: str, now: Moment, new_id: NewId
) -> tuple[Incident, Transition | None]:
    """Its run takes long: told once for each run, with what it is at and how long that takes."""
    if incident.left:
        return incident, None
    after = incident.changed(left=f"the run in progress, {left}, then its proof")
    return after, Transition(new_id(), incident.id, now.wall, "progress", f"{words}, {left}")


def ended(incident: Incident, run: Run, now: Moment, new_id: NewId) -> tuple[Incident, Transition | None]:
    """The run of this incident has ended. Success waits for fresh results; anything else is told loudly.

    A refusal for the same reason as last time is not told again. A run that a person stopped, or whose engine she took
    out of service, is not told: she knows, and a fault that stays is told when it is overdue.
    """
    line = f"{run.runbook}: {run.outcome}" + (f", {run.summary}" if run.summary else "")
    if run.outcome is Outcome.SUCCEEDED:
        after = incident.changed(
            phase=Phase.VERIFYING, tried=(*incident.tried, line), left="", changed_at=now, gone_since=None
        )
        return after, Transition(new_id(), incident.id, now.wall, "verified", run.summary or "tokens are proven")
    refused, stopped = run.outcome is Outcome.REFUSED, run.outcome is Outcome.STOPPED
    after = incident.changed(
        phase=Phase.OPEN,
        urgency=incident.urgency if stopped else incident.ceiling,
        tried=(*incident.tried, line) if not refused or line not in incident.tried else incident.tried,
        signature=run.signature or incident.signature,
        left="",
        changed_at=now,
    )
    if stopped or (refused and line in incident.tried):
        return after, None
    return after, Transition(new_id(), incident.id, now.wall, "raised", line)


def lost(incident: Incident, now: Moment) -> Incident:
    """The runner could not be asked, or never heard of this incident's run: decide again a little later."""
    return incident.changed(
        phase=Phase.OPEN,
        runs=incident.runs[:-1],
        left="",
        changed_at=now,
        decision="the runner cannot be reached",
        not_before=now.wall + LOST_S,
    )


def escalated(
    incident: Incident, why: str, left: str, command: str, now: Moment, new_id: NewId
) -> tuple[Incident, Transition]:
    """Nothing more will be tried: a person is needed. Told under its own key, once."""
    after = incident.changed(
        phase=Phase.ESCALATED, urgency=incident.ceiling, decision=why, left=left, command=command, changed_at=now
    )
    return after, Transition(new_id(), incident.id, now.wall, "escalated", why)


def waiting(
    incident: Incident, why: str, command: str, approval: bool, now: Moment, new_id: NewId
) -> tuple[Incident, Transition | None]:
    """No run now, for this reason. Needing an approval is told; a mere wait is only recorded.

    How long is not kept: the decision is made again at every step, so that a pause that ends early ends at once.
    """
    if incident.decision == why:
        return incident, None
    after = incident.changed(decision=why, command=command, not_before=None, changed_at=now)
    if not approval:
        return after, None
    after = after.changed(urgency=incident.ceiling)
    return after, Transition(new_id(), incident.id, now.wall, "needs-approval", why)


def must_wait(incident: Incident, now: Moment) -> bool:
    """Whether the runner has asked for a wait that is not over.

    Measured from the last change with the boot clock, so that a wall clock that is set cannot stretch it. After a
    reboot everything is decided afresh: the runner is the law, and asking it too early costs nothing.
    """
    if incident.not_before is None or now.boot_id != incident.changed_at.boot_id:
        return False
    return now.since(incident.changed_at) < incident.not_before - incident.changed_at.wall


def acknowledged(incident: Incident, who: str, now: Moment, new_id: NewId) -> tuple[Incident, Transition]:
    """A person has seen it."""
    after = incident.changed(acknowledged_by=who, changed_at=now)
    return after, Transition(new_id(), incident.id, now.wall, "acknowledged", f"acknowledged by {who}")


def overdue(incident: Incident, now: Moment, page_after_s: float) -> bool:
    """Whether a fault told quietly in the hope of a cure has waited too long for proven tokens."""
    return (
        incident.phase in (Phase.OPEN, Phase.ACTING)
        and not incident.paused
        and _RANK[incident.urgency] < _RANK[incident.ceiling]
        and incident.opened_at is not None
        and now.since(incident.opened_at) >= page_after_s
    )


def raised(incident: Incident, why: str, now: Moment, new_id: NewId) -> tuple[Incident, Transition]:
    """As loud as it gets, from now on."""
    after = incident.changed(urgency=incident.ceiling, changed_at=now)
    return after, Transition(new_id(), incident.id, now.wall, "raised", why)


def _new(finding: Finding, now: Moment, world: Circumstances) -> Incident:
    return Incident(
        id=world.new_id(),
        key=f"{world.prefix}/{finding.id}/{finding.subject}",
        finding=finding.id,
        subject=finding.subject,
        phase=Phase.PENDING,
        urgency=Urgency.INFO,
        summary=finding.summary,
        evidence="",
        since=finding.since if finding.since is not None else now.wall,
        opened_at=None,
        changed_at=now,
        seen=0,
        signature=finding.signature,
    )


def _seen(incident: Incident, finding: Finding, now: Moment, world: Circumstances) -> Incident:
    """The incident with what the finding says now; a paused one is told quietly until the pause is over."""
    apart_s = world.confirm[finding.id].apart_s
    counts = incident.last_seen_at is None or now.since(incident.last_seen_at) >= apart_s
    ceiling = _ceiling(finding)
    paused = finding.key in world.paused
    urgency = Urgency.INFO if paused else _starting_urgency(ceiling, curable=finding.key in world.curable)
    # What is seen while a run goes on, or before everything has answered after it, is no news.
    held = incident.phase in (Phase.ACTING, Phase.VERIFYING) or finding.subject in world.held
    settled = held or incident.acknowledged_by
    if incident.phase is not Phase.PENDING and (settled or _RANK[incident.urgency] > _RANK[urgency]):
        urgency = incident.urgency
    came_back = incident.phase is Phase.VERIFYING and finding.subject not in world.held
    return incident.changed(
        phase=Phase.OPEN if came_back else incident.phase,
        seen=incident.seen + 1 if counts else incident.seen,
        last_seen_at=now if counts else incident.last_seen_at,
        gone_since=None,
        urgency=urgency,
        ceiling=ceiling,
        paused=paused,
        summary=finding.summary,
        evidence=_one_line(finding),
        signature=finding.signature or incident.signature,
        folded=finding.folded,
    )


def _ceiling(finding: Finding) -> Urgency:
    if finding.quiet:
        return Urgency.INFO
    return Urgency.CRITICAL if finding.status is Status.CRITICAL else Urgency.WARNING


def _starting_urgency(ceiling: Urgency, *, curable: bool) -> Urgency:
    """A fault that an allowed run may cure starts as a warning."""
    return Urgency.WARNING if curable and ceiling is Urgency.CRITICAL else ceiling


def _confirmed(incident: Incident, now: Moment, world: Circumstances) -> bool:
    confirm = world.confirm[incident.finding]
    return incident.seen >= confirm.samples and now.since(incident.changed_at) >= confirm.for_s


def _clear_s(incident: Incident, world: Circumstances) -> float:
    confirm = world.confirm.get(incident.finding)
    return confirm.clear_s if confirm else 0.0


def _resolved(incident: Incident, now: Moment) -> Incident:
    return incident.changed(phase=Phase.RESOLVED, changed_at=now)


def _ending(incident: Incident, world: Circumstances) -> str:
    if incident.subject in world.unwatched:
        return "it is not watched any more"
    return incident.tried[-1] if incident.tried else "it is over"


def _one_line(finding: Finding) -> str:
    stated = [str(seen.value) for seen in finding.evidence if seen.name == "evidence"]
    return stated[0] if stated else "; ".join(f"{seen.name} {seen.value}{seen.unit}" for seen in finding.evidence)


def _transition(incident: Incident, now: Moment, kind: str, text: str, world: Circumstances) -> Transition:
    return Transition(world.new_id(), incident.id, now.wall, kind, text)
