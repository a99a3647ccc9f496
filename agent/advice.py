"""What could be done about a finding, and may it be done now: the daemon's advice, from what it may read.

The runner decides again, as law. What is asked here is asked of the same pure function with the same facts, so that
the daemon does not ask for what would be refused, and pages say why.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from agent import facts, ledger, plugin, transcript
from agent.config import Config
from agent.decide import Caller, DecisionFacts, UnitFacts, decide
from agent.errors import FileTrouble
from agent.host import Host, changes
from agent.messages import Advice
from agent.model import CheckResult, Decision, Finding, Moment, Outcome, Risk
from agent.runbook import Runbook, Runbooks

BUSY_STATES = ("activating", "deactivating", "reloading")
JUST_OVER_S = 2.0
"""A look that was taken during a run may arrive this long after it."""
SILENT_S = 900.0
"""A step that may cost the service says something at least this often: loading a model is its longest wait."""


def _unready(host: Host, use: str) -> str:
    """Why this action can do nothing at all on this host, "" when it can."""
    action = plugin.actions().get(use)
    return action.unready(host) if action is not None and action.unready is not None else ""


class Adviser:
    """Answers for every finding. It reads the ledger again only when the file has changed.

    results: the reconciler's latest results. unreadable: why the ledger cannot be read, "" while it can.
    """

    def __init__(
        self,
        host: Host,
        config: Config,
        runbooks: Runbooks,
        results: Callable[[], Mapping[tuple[str, str], CheckResult]],
    ) -> None:
        self.config = config
        self.runbooks = runbooks
        self.unreadable = ""
        self._host = host
        self._results = results
        self._records: tuple[ledger.Record, ...] = ()
        self._seen: tuple[int, int, float] | None = None

    def records(self) -> tuple[ledger.Record, ...]:
        """The ledger's records; what cannot be read is empty, and `unreadable` says why."""
        try:
            stat = self._host.files.stat(ledger.FILE)
            seen = (stat.inode, stat.size, stat.mtime)
            if seen != self._seen:
                self._records = ledger.read(self._host).records
                self._seen = seen
        except FileTrouble as error:
            self.unreadable = "" if error.kind == "missing" else error.message
            return ()
        self.unreadable = ""
        return self._records

    def disturbed(self, now: Moment) -> frozenset[str]:
        """Engines that a run, whoever began it, is just taking down and up again, or was a moment ago.

        What is seen of them meanwhile says nothing of them. A run that only builds or looks beside an engine does not
        count: that is watched as ever.
        """
        found: set[str] = set()
        for attempt in ledger.attempts(self.records()):
            if not attempt.subject.startswith("engine:"):
                continue
            if attempt.ended_at is not None:
                over_s = now.since(attempt.ended_at) if attempt.ended_at.boot_id == now.boot_id else JUST_OVER_S
                if attempt.outcome is not Outcome.REFUSED and over_s < JUST_OVER_S:
                    found.add(attempt.subject)
            elif self._takes_down(attempt.run, now):
                found.add(attempt.subject)
        return frozenset(found)

    def _takes_down(self, run: str, now: Moment) -> bool:
        """Whether a run without an outcome stands in a step that may cost the service, or undoes one."""
        try:
            events = transcript.events(self._host, run)
        except FileTrouble:
            return False
        if not events or now.wall - events[-1].at > SILENT_S:
            return False  # it was cut off, and nobody has finished it: that must not blind anybody
        risky = undoing = False
        for event in events:
            if event.event == "step_started":
                action = plugin.actions().get(str(event.data.get("use")))
                risky, undoing = action is not None and action.risk is not Risk.NONE, False
            elif event.event == "step_ended":
                risky, undoing = False, event.data.get("ok") is not True
        return risky or undoing

    def __call__(self, finding: Finding, now: Moment) -> Advice:
        """The runbook for this finding, and whether it may run now."""
        engine = facts.engine_of(self.config, finding.subject)
        runbook = self.runbooks.runbook_for(finding.id, engine.kind if engine else None)
        if runbook is None or any(_unready(self._host, step.use) for step in runbook.steps):
            return self._for_a_person(finding, curable=runbook is not None)
        unfit = facts.unfit(self.config, runbook, finding.subject)
        if unfit:
            return self._for_a_person(finding, why=unfit)
        decision = self._decide(runbook, finding, now)
        if decision.code == "change-open" and not self._is_expected(finding):
            decision = replace(decision, code="manual")
        return Advice(
            runbook.id, decision, left=self._left(decision), command=self._command(runbook, finding, decision)
        )

    def _for_a_person(self, finding: Finding, *, curable: bool = False, why: str = "") -> Advice:
        """What no runbook cures, at least on this host; what a planned change goes through is left to whoever is at it.

        curable: there is a runbook, and this host has not what it needs; why: what that is.
        """
        change = changes.in_words(self._host) if self._is_expected(finding) else ""
        if change:
            open_change = f"a planned change is open: {change}"
            decision = Decision(False, open_change, "change-open")
            return Advice(None, decision, left=open_change, command="holdfast change status")
        if not why:
            why = "a person must act" if curable or self._is_manual(finding) else "no runbook can cure this"
        return Advice(None, Decision(False, why, "manual"), left=why, command=f"holdfast explain {finding.id}")

    def _is_expected(self, finding: Finding) -> bool:
        """Whether a planned change goes through this, so that nobody need be called while one is open."""
        rule = plugin.rules().get(finding.id)
        return rule is not None and rule.expected_in_change and not finding.never_planned

    def _is_manual(self, finding: Finding) -> bool:
        rule = plugin.rules().get(finding.id)
        return rule is None or rule.manual

    def _decide(self, runbook: Runbook, finding: Finding, now: Moment) -> Decision:
        records = self.records()
        paused = ledger.paused(records, now)
        engine = facts.engine_of(self.config, finding.subject)
        known = facts.has_subject(self.config, runbook, finding.subject) and (engine is None or engine.unit is not None)
        gathered = DecisionFacts(
            autonomy=self.config.autonomy_for(runbook.id),
            caller=Caller.DAEMON,
            known=known,
            attempts=ledger.attempts(records),
            paused_until=paused.until if paused else None,
            change=changes.in_words(self._host),
            approved=any(
                each.subject == finding.subject and each.runbook_hash == runbook.hash
                for each in ledger.approvals(records, now)
            ),
            unit=self._unit(finding.subject, runbook),
            incurable=finding.summary if finding.incurable and not runbook.replaces_program else "",
        )
        return decide(runbook, finding.subject, gathered, now)

    def _unit(self, subject: str, runbook: Runbook) -> UnitFacts | None:
        seen = self._results().get(("engine.unit", subject))
        if seen is None:
            return None
        state = str(seen.value("unit.active") or "")
        busy = state if state in BUSY_STATES or seen.value("unit.pending") else ""
        return UnitFacts(
            name=str(seen.value("unit.name") or subject),
            operator_stopped=bool(seen.value("unit.operator")),
            unknown="" if seen.value("unit.operator", False) is not None else "nobody can tell whose hand stopped it",
            busy="" if runbook.replaces_program else busy,
        )

    def _left(self, decision: Decision) -> str:
        return "it will be tried" if decision.allow else decision.reason

    def _command(self, runbook: Runbook, finding: Finding, decision: Decision) -> str:
        if decision.code == "unknown-subject":
            return f"holdfast explain {finding.id}"
        force = " --force" if decision.code in ("budget", "cooldown", "same-failure-twice", "incurable") else ""
        return f"sudo holdfast run {runbook.id} --subject {finding.subject}{force}"
