"""A check has not been able to tell for a quarter of an hour: told once, quietly, because blindness is a fault too.

What to do: read why it cannot tell; often a permission, a missing program or a service that does not answer.
"""

from __future__ import annotations

from collections.abc import Iterable

from agent.model import Finding, Moment, Observation, Results, Status
from agent.plugin import Confirm, Rule


def diagnose(results: Results, now: Moment) -> Iterable[Finding]:
    """Every subject with checks that are UNKNOWN now."""
    blind: dict[str, list[str]] = {}
    why: dict[str, str] = {}
    for (check, subject), result in results.items():
        if result.status is Status.UNKNOWN:
            blind.setdefault(subject, []).append(check)
            why.setdefault(subject, result.summary)
    for subject, checks in blind.items():
        yield Finding(
            id="check-unknown",
            subject=subject,
            status=Status.UNKNOWN,
            summary=f"cannot tell how {subject} is: {', '.join(sorted(checks))}",
            evidence=(Observation("evidence", why[subject]),),
            results=tuple((check, subject) for check in checks),
            quiet=True,
        )


RULE = Rule(
    id="check-unknown",
    title="A check cannot tell",
    reads=(),
    confirm=Confirm(for_s=900.0),  # `unknown_after_s` in the configuration takes its place
    diagnose=diagnose,
    manual=True,
)
