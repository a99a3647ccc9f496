"""The loop: latest results in; diagnosed, advanced, decided, stored, and effects out.

One thread owns this object and the store. It reads no clock and touches no machine: messages carry what happened,
`now` is an argument, and what must be done is returned as effects for the daemon to carry out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from agent import incident as machine
from agent import plugin
from agent.config import Config
from agent.diagnose import diagnose
from agent.frame import unknown
from agent.messages import (
    SELF_CHECKS,
    Acknowledged,
    Advice,
    Advise,
    CheckNow,
    ConfigurationChanged,
    Effect,
    Enqueue,
    Message,
    ResultArrived,
    RunGoesOn,
    RunReported,
    SelfReported,
    StartRun,
)
from agent.model import (
    CheckResult,
    Finding,
    Incident,
    Moment,
    Outcome,
    Phase,
    Results,
    Status,
    Transition,
    Verdict,
)
from agent.plugin import EVENT, Confirm
from agent.protocol import Request
from agent.store import Store
from agent.views import texts

log = logging.getLogger(__name__)

EXPLAIN_S = 2.0
"""How long the checks that could explain a cause are awaited before it opens; then they count as UNKNOWN."""
SAVE_S = 10.0
"""Results that say nothing new are written this often: what a crash loses is memory that checks can do without."""
ON_DEMAND_S = 60.0
"""The answer of a check that is only asked on demand says nothing about now after this long."""
SETTLE_S = 10.0
"""How long fresh results about a subject are awaited when a run on it has ended, or when the daemon begins."""


FOR_A_PERSON = frozenset({"manual", "budget", "same-failure-twice", "incurable", "host-once-a-day", "unknown-subject"})
"""Decision codes after which nothing more is tried."""
HANDS_OFF = frozenset({"paused", "change-open"})
"""Decision codes under which a fault is told quietly: a person is at work."""
CALLS = frozenset({"escalated", "needs-approval"})
CALLED_FOR = frozenset({"opened", "raised"})
"""What opens or gets worse and calls for a person in one step rings once: as the call."""
LONG_S = 60.0
"""A step that takes longer than this in all is told of once, so that nobody wonders whether anything happens."""
REFUSED_AGAIN_S = 60.0
"""How long to wait before asking again after the runner refused without saying when."""


@dataclass
class _Suspicion:
    """A confirmed suspicion whose explaining checks have been asked again."""

    asked_at: Moment
    waits_for: frozenset[tuple[str, str]]


@dataclass
class _Settling:
    """A run on this subject, or our absence, has ended: nothing is concluded before its checks have answered afresh."""

    since: Moment
    waits_for: frozenset[tuple[str, str]]


class Reconciler:
    """Owns the latest results, the incidents and the store, and moves them one step for each message."""

    def __init__(
        self,
        config: Config,
        store: Store,
        *,
        advise: Advise,
        enqueue: Enqueue,
        prefix: str,
        new_id: Callable[[], str],
        disturbed: Callable[[Moment], frozenset[str]] = lambda _: frozenset(),
    ) -> None:
        self.config = config
        self.store = store
        self.results: dict[tuple[str, str], CheckResult] = dict(store.load_results())
        self._watched: set[tuple[str, str]] = set()
        self._forget_unwatched()
        self.incidents: dict[machine.Key, Incident] = {}
        for each in store.load_incidents(open_only=False, limit=200):
            self.incidents[(each.finding, each.subject)] = each
        self._advise = advise
        self._enqueue = enqueue
        self._prefix = prefix
        self._new_id = new_id
        self._find_disturbed = disturbed
        self._disturbed: frozenset[str] = frozenset()
        self._suspicions: dict[machine.Key, _Suspicion] = {}
        self._settling: dict[str, _Settling] = {}
        self._asked: set[str] = set()
        self._stored: dict[str, Incident] = {}
        self._unsaved: dict[tuple[str, str], CheckResult] = {}
        self._saved_at: Moment | None = None
        self._begun = False

    def handle(self, message: Message, now: Moment) -> list[Effect]:
        """Take in what happened, then move every incident one step. Returns what must be done."""
        incidents: list[Incident] = []
        told: list[tuple[Incident, Transition]] = []
        effects: list[Effect] = []
        if not self._begun:
            self._begin(now)
        if isinstance(message, ResultArrived):
            self._arrived(message.result)
        elif isinstance(message, SelfReported):
            self._self_reported(message, now)
        elif isinstance(message, Acknowledged):
            self._apply(incidents, told, *self._acknowledge(message, now))
        elif isinstance(message, RunGoesOn):
            self._apply(incidents, told, *self._run_goes_on(message, now))
        elif isinstance(message, RunReported):
            effects += self._run_reported(message, now, incidents, told)
        elif isinstance(message, ConfigurationChanged):
            self._reconfigure(message.config)
        effects += self._step(now, incidents, told)
        self._commit(incidents, told)
        return effects

    def save(self, now: Moment) -> None:
        """Write the results that have not been written yet."""
        self.store.save_results(list(self._unsaved.values()))
        self._unsaved.clear()
        self._saved_at = now

    def recommit(self, now: Moment) -> None:
        """Write every open incident again and tell it again: the memory was started anew under us.

        What waited in its outbox is lost with it; a page that is told twice has the same key.
        """
        self._stored.clear()
        self.store.commit([each for each in self.incidents.values() if each.opened_at is not None])
        words = "told again: Holdfast's memory had to be started anew"
        again = [
            (each, Transition(self._new_id(), each.id, now.wall, "updated", words)) for each in self.open_incidents()
        ]
        self._commit([], again)

    def open_incidents(self) -> list[Incident]:
        """Every incident that has been told and is not over."""
        return [each for each in self.incidents.values() if each.phase not in (Phase.PENDING, Phase.RESOLVED)]

    # what happened

    def _begin(self, now: Moment) -> None:
        """What was seen before this start is memory, not evidence: nothing rests on it before a fresh look."""
        self._begun = True
        for subject in {about for _, about in self.results}:
            self._settle(subject, now)

    def _arrived(self, result: CheckResult) -> None:
        if (result.check, result.subject) not in self._watched and result.check not in SELF_CHECKS:
            return  # it was still being looked at when the configuration dropped it
        known = self.results.get((result.check, result.subject))
        self.results[(result.check, result.subject)] = result
        self._unsaved[(result.check, result.subject)] = result
        changed = known is None or known.status is not result.status or known.verdict is not result.verdict
        if changed:
            log.info("%s %s: %s: %s", result.check, result.subject, result.verdict or result.status, result.summary)
        if changed or self._saved_at is None or result.at.since(self._saved_at) >= SAVE_S:
            self.save(result.at)

    def _self_reported(self, message: SelfReported, now: Moment) -> None:
        """What the daemon knows of itself enters as a result like any other."""
        self.results[(message.check, "host")] = CheckResult(
            message.check, "host", message.status, message.summary, (), now, 0.0
        )

    def _acknowledge(self, message: Acknowledged, now: Moment) -> tuple[Incident | None, Transition | None]:
        found = next((each for each in self.open_incidents() if each.id == message.incident), None)
        return (None, None) if found is None else machine.acknowledged(found, message.who, now, self._new_id)

    def _run_goes_on(self, message: RunGoesOn, now: Moment) -> tuple[Incident | None, Transition | None]:
        found = next((each for each in self.incidents.values() if message.id in each.runs[-1:]), None)
        if found is None or found.phase is not Phase.ACTING or message.elapsed_s + message.remaining_s < LONG_S:
            return None, None
        left = f"about {texts.about(message.remaining_s)}"
        return machine.goes_on(found, message.words, left, now, self._new_id)

    def _run_reported(
        self, message: RunReported, now: Moment, incidents: list[Incident], told: list[tuple[Incident, Transition]]
    ) -> list[Effect]:
        self._asked.discard(message.id)
        found = next((each for each in self.incidents.values() if message.id in each.runs[-1:]), None)
        if found is None or found.phase is not Phase.ACTING:
            return []
        if message.run is not None:
            self.store.save_run(message.run)
        if message.run is None:
            self._apply(incidents, told, machine.lost(found, now), None)
            return []
        if message.run.outcome is None:
            words, reboot = message.run.summary, "sudo systemctl reboot"
            self._apply(
                incidents, told, *machine.escalated(found, words, "reboot at a quiet hour", reboot, now, self._new_id)
            )
            return []
        after, transition = machine.ended(found, message.run, now, self._new_id)
        if message.run.outcome is Outcome.REFUSED:
            later = now.wall + REFUSED_AGAIN_S
            not_before = message.decision.not_before if message.decision else None
            after = after.changed(not_before=not_before or later, decision=message.run.summary)
        self._apply(incidents, told, after, transition)
        return self._settle(after.subject, now)

    def _settle(self, subject: str, now: Moment) -> list[Effect]:
        keys = frozenset((check.id, target.subject) for check, target in self._targets(subject))
        self._settling[subject] = _Settling(now, keys)
        return [CheckNow(check, about) for check, about in sorted(keys)]

    def _targets(self, subject: str) -> Iterable[tuple[plugin.Check, plugin.Target]]:
        return ((c, t) for c, t in self.config.targets() if t.subject == subject and t.every_s > 0)

    def _reconfigure(self, config: Config) -> None:
        self.config = config
        self._forget_unwatched()

    def _forget_unwatched(self) -> None:
        """Results of what is not configured (any more) say nothing, here and after the next start."""
        self._watched = {(check.id, target.subject) for check, target in self.config.targets()}
        for key in [key for key in self.results if key not in self._watched and key[0] not in SELF_CHECKS]:
            del self.results[key]
        self.store.keep_results(self._watched)

    # one step

    def _step(self, now: Moment, incidents: list[Incident], told: list[tuple[Incident, Transition]]) -> list[Effect]:
        effects = self._look_for_other_runs(now)
        self._forget_stale(now)
        self._settled(now)
        findings = diagnose(plugin.rules(), Results(self.results), now)
        present = {finding.key: finding for finding in findings}
        advice = {f.key: self._advise(f, now) for f in findings if not f.quiet and not f.over}
        step = machine.advance(self.incidents, findings, now, self._world(present, advice, now))
        changed = {each.id: each for each in step.incidents}
        for each in step.incidents:
            self._apply(incidents, told, each, None)
        told += [(changed[each.incident], each) for each in step.transitions]
        effects += self._ask_explainers(step.awaiting, now)
        for key in [key for key in self._suspicions if key not in present]:
            del self._suspicions[key]
        for key, finding in present.items():
            effects += self._act(self.incidents.get(key), finding, advice.get(key), now, incidents, told)
        effects += self._follow_up()
        for each in self.open_incidents():
            if machine.overdue(each, now, self.config.pager.page_after_s):
                why = f"no tokens proven within {self.config.pager.page_after_s:.0f} s"
                self._apply(incidents, told, *machine.raised(each, why, now, self._new_id))
        return effects

    def _forget_stale(self, now: Moment) -> None:
        old = [key for key, result in self.results.items() if now.since(result.at) > ON_DEMAND_S]
        regular = {(check.id, target.subject) for check, target in self.config.targets() if target.every_s > 0}
        for key in old:
            if key not in regular and key[0] not in SELF_CHECKS:
                del self.results[key]

    def _world(
        self, present: Mapping[machine.Key, Finding], advice: Mapping[machine.Key, Advice], now: Moment
    ) -> machine.Circumstances:
        confirm: dict[str, Confirm] = {rule.id: rule.confirm for rule in plugin.rules().values()}
        confirm["rule-failed"] = EVENT
        confirm["check-unknown"] = replace(confirm["check-unknown"], for_s=self.config.pager.unknown_after_s)
        return machine.Circumstances(
            confirm=confirm,
            held=self._held(),
            explained=frozenset(key for key in present if self._explained(present[key], now)),
            curable=frozenset(key for key, each in advice.items() if each.runbook and each.decision.allow),
            paused=frozenset(key for key, each in advice.items() if each.decision.code in HANDS_OFF),
            prefix=self._prefix,
            new_id=self._new_id,
            unseen=frozenset(key for key in self.incidents if key not in present and self._unseen(*key)),
            unwatched=frozenset(each.subject for each in self.incidents.values()) - set(self.config.subjects()),
        )

    def _unseen(self, finding: str, subject: str) -> bool:
        """Whether a check that this cause rests on cannot tell, or not yet: then its absence proves nothing.

        An engine that loads is neither well nor ill: it may come up, or die once more of the same cause.
        """
        rule = plugin.rules().get(finding)
        reads = rule.reads if rule is not None else ()
        abouts = (subject, "host") if subject.startswith("gpu:") else (subject,)  # a card is seen by checks of the host
        seen = [self.results.get((check, about)) for check in reads for about in abouts]
        return any(
            each is not None and (each.status is Status.UNKNOWN or each.verdict is Verdict.LOADING) for each in seen
        )

    def _look_for_other_runs(self, now: Moment) -> list[Effect]:
        """A run that somebody else began may be taking a subject down; once it is over, that is looked at again."""
        acting = {each.subject for each in self.incidents.values() if each.phase is Phase.ACTING}
        before, self._disturbed = self._disturbed, self._find_disturbed(now) - acting
        return [
            effect for subject in sorted(before - self._disturbed - acting) for effect in self._settle(subject, now)
        ]

    def _held(self) -> frozenset[str]:
        """Subjects with a run in flight, or whose checks have not all answered since one ended or since we began."""
        acting = {each.subject for each in self.incidents.values() if each.phase is Phase.ACTING}
        return frozenset(acting | self._disturbed | set(self._settling))

    def _settled(self, now: Moment) -> None:
        """Subjects whose checks have answered are free again. An answer that does not come is none: UNKNOWN."""
        for subject, settling in list(self._settling.items()):
            late = [key for key in settling.waits_for if not self._newer(key, settling.since)]
            if late and now.since(settling.since) < SETTLE_S:
                continue
            del self._settling[subject]
            for key in late:
                why = f"has not answered for {now.since(settling.since):.0f} s"
                self.results[key] = unknown(*key, why, settling.since, now)

    def _newer(self, key: tuple[str, str], than: Moment) -> bool:
        result = self.results.get(key)
        return result is not None and (result.at.boot_id != than.boot_id or result.at.boot_s > than.boot_s)

    def _explained(self, finding: Finding, now: Moment) -> bool:
        rule = plugin.rules().get(finding.id)
        if rule is None or not rule.explainers:
            return True
        suspicion = self._suspicions.get(finding.key)
        if suspicion is None:
            return False
        late = [key for key in suspicion.waits_for if not self._newer(key, suspicion.asked_at)]
        if late and now.since(suspicion.asked_at) < EXPLAIN_S:
            return False
        for check, subject in set(late) - set(finding.results):
            why = f"did not answer within {EXPLAIN_S:.0f} s"
            self.results[(check, subject)] = unknown(check, subject, why, suspicion.asked_at, now)
        return True

    def _ask_explainers(self, awaiting: Sequence[Finding], now: Moment) -> list[Effect]:
        effects: list[Effect] = []
        for finding in awaiting:
            if finding.key in self._suspicions:
                continue
            wanted = plugin.rules()[finding.id].explainers
            keys = frozenset(
                (check.id, target.subject)
                for check, target in self.config.targets()
                if check.id in wanted and target.subject in ("host", finding.subject)
            )
            self._suspicions[finding.key] = _Suspicion(now, keys)
            effects += [CheckNow(check, subject) for check, subject in sorted(keys)]
        return effects

    def _act(
        self,
        incident: Incident | None,
        finding: Finding,
        advice: Advice | None,
        now: Moment,
        incidents: list[Incident],
        told: list[tuple[Incident, Transition]],
    ) -> list[Effect]:
        """Decide about one open incident: run, wait, ask, or hand over to a person."""
        if incident is None or advice is None or incident.phase is not Phase.OPEN or finding.subject in self._held():
            return []
        if machine.must_wait(incident, now):
            return []
        decision = advice.decision
        if decision.code in FOR_A_PERSON or (advice.runbook is None and decision.code not in HANDS_OFF):
            self._apply(
                incidents,
                told,
                *machine.escalated(incident, decision.reason, advice.left, advice.command, now, self._new_id),
            )
            return []
        if not decision.allow or advice.runbook is None:
            asks = decision.code == "needs-approval"
            command = f"sudo holdfast incident approve {incident.id}" if asks else advice.command
            after, transition = machine.waiting(incident, decision.reason, command, asks, now, self._new_id)
            self._apply(incidents, told, after if after != incident else None, transition)
            return []
        run_id = self._new_id()
        request = Request(
            do="run",
            id=run_id,
            runbook=advice.runbook,
            subject=incident.subject,
            args={"incident": incident.id},  # an approval is bound to it
            because=f"{finding.id}: {finding.summary}"[:500],
        )
        self._apply(incidents, told, *machine.began(incident, run_id, advice.runbook, now, self._new_id))
        self._asked.add(run_id)
        return [StartRun(request)]

    def _follow_up(self) -> list[Effect]:
        """Runs that an earlier life of the daemon asked for: ask again under the same id, which runs nothing twice."""
        effects: list[Effect] = []
        for each in self.incidents.values():
            if each.phase is Phase.ACTING and each.runs and each.runs[-1] not in self._asked:
                self._asked.add(each.runs[-1])
                effects.append(StartRun(Request(do="follow", id=each.runs[-1])))
        return effects

    def _apply(
        self,
        incidents: list[Incident],
        told: list[tuple[Incident, Transition]],
        incident: Incident | None,
        transition: Transition | None,
    ) -> None:
        if incident is None:
            return
        self.incidents[(incident.finding, incident.subject)] = incident
        incidents.append(incident)
        if transition is not None:
            told.append((incident, transition))

    def _commit(self, incidents: list[Incident], told: list[tuple[Incident, Transition]]) -> None:
        """Store every change of what has been told, and the alerts that follow from it, in one transaction."""
        latest = {each.id: each for each in incidents if each.opened_at is not None}
        for incident, transition in told:
            latest.setdefault(incident.id, incident)
            log.info("%s %s: %s: %s", incident.finding, incident.subject, transition.kind, transition.text)
        material = [each for each in latest.values() if _material(each) != self._stored.get(each.id)]
        if not material and not told:
            return
        # Told as it stands after the whole step: a page says what was decided, not only that something opened.
        final = {each.id: each for each in incidents}
        calls = {transition.incident for _, transition in told if transition.kind in CALLS}
        alerts = [
            alert
            for incident, transition in told
            if not (transition.kind in CALLED_FOR and transition.incident in calls)
            for alert in self._enqueue(final.get(incident.id, incident), transition)
        ]
        self.store.commit(material, [transition for _, transition in told], alerts)
        self._stored.update({each.id: _material(each) for each in material})


def _material(incident: Incident) -> Incident:
    """The incident without what changes at every look, to store it only when something happened."""
    return incident.changed(seen=0, last_seen_at=None, evidence="")
