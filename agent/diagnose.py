"""From the latest results to named causes: runs every rule, then folds what another cause explains. Pure."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace

from agent.model import Finding, Moment, Results, Status
from agent.plugin import Rule

log = logging.getLogger(__name__)


def diagnose(rules: Mapping[str, Rule], results: Results, now: Moment) -> tuple[Finding, ...]:
    """Every cause that holds now, most urgent first. A rule that crashes yields `rule-failed`, not silence."""
    findings: list[Finding] = []
    for rule in rules.values():
        try:
            findings.extend(rule.diagnose(results, now))
        except Exception as error:  # noqa: BLE001 - one broken rule must not blind the others
            log.error("rule %s crashed: %s", rule.id, type(error).__name__)
            summary = f"the rule {rule.id} crashed with {type(error).__name__}: this cause cannot be recognised"
            findings.append(Finding("rule-failed", "host", Status.WARNING, summary, signature=rule.id))
    return tuple(sorted(fold(findings), key=lambda finding: (finding.quiet, -_rank(finding.status), finding.key)))


def fold(findings: list[Finding]) -> list[Finding]:
    """Fold a finding into another only if *all* its results are explained by it.

    Folding merges text, never urgency: the one that stays keeps its own status.
    """
    folded_into: dict[int, int] = {}
    for index, finding in enumerate(findings):
        for other_index, other in enumerate(findings):
            if index == other_index or not finding.results or folded_into.get(other_index) == index:
                continue
            if set(finding.results) <= set(other.explains):
                folded_into[index] = other_index
                break
    texts: dict[int, list[str]] = {}
    for index in folded_into:
        root, seen = index, {index}
        while root in folded_into and folded_into[root] not in seen:
            root = folded_into[root]
            seen.add(root)
        texts.setdefault(root, []).append(f"{findings[index].id}: {findings[index].summary}")
    return [
        replace(finding, folded=tuple(texts.get(index, ())))
        for index, finding in enumerate(findings)
        if index not in folded_into
    ]


def _rank(status: Status) -> int:
    return {Status.CRITICAL: 3, Status.WARNING: 2, Status.UNKNOWN: 1, Status.OK: 0}[status]
