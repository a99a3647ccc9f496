"""Running checks now, without the daemon, for the verbs that need a fresh answer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from agent.cli._result import Result, rfc3339
from agent.cli._session import current
from agent.model import CheckResult, Json, Observation, Observed, worst
from agent.views import texts

if TYPE_CHECKING:
    from agent.host import Host
    from agent.plugin import Check, Target

WORKERS = 8
"""Checks that run at the same time; most of their time is waiting."""


def run_now(targets: Sequence[tuple[Check, Target]]) -> tuple[CheckResult, ...]:
    """Run these checks, several at a time, in their order. Never raises for what a check does."""
    from concurrent.futures import ThreadPoolExecutor

    from agent import frame

    session = current()
    host, root = session.host, session.root

    def one(pair: tuple[Check, Target]) -> CheckResult:
        return frame.run_check(host, pair[0], pair[1], None, observe=frame.observe_here if root else _observe_as_user)

    with ThreadPoolExecutor(max_workers=WORKERS) as pool:
        return tuple(pool.map(one, targets))


def _observe_as_user(host: Host, check: Check, target: Target, before: Observed | None) -> Iterable[Observation]:
    """Observe without root: what needs root is UNKNOWN, with the command that would tell."""
    from agent.errors import PermissionRefused

    if check.as_root:
        raise PermissionRefused(f"only root can observe this: sudo holdfast check {check.id}")
    return check.observe(host, target, before)


def answer(results: Sequence[CheckResult], *, kind: str = "check") -> Result:
    """The results as a Nagios line for one, as a table for several; the exit code is that of the worst."""
    status = worst(result.status for result in results)
    return Result(
        kind,
        {"status": status.value, "results": [as_json(result) for result in results]},
        lambda width: nagios(results[0]) if len(results) == 1 else _table(results, width),
        exit_code=status.exit_code,
    )


def nagios(result: CheckResult) -> str:
    """One line as Nagios plug-ins print it: name, status, summary, and performance data after the bar."""
    place = "" if result.subject == "host" else f" {result.subject}"
    summary = result.summary.replace("|", "/").replace("\n", " ")
    return f"{result.check}{place} {result.status} - {summary} | duration={result.duration_s:g}s"


def as_json(result: CheckResult) -> Json:
    """One result as JSON values."""
    return {
        "check": result.check,
        "subject": result.subject,
        "status": result.status.value,
        "verdict": result.verdict.value if result.verdict else None,
        "summary": result.summary,
        "at": rfc3339(result.at.wall),
        "duration_s": result.duration_s,
        "evidence": [
            {"name": each.name, "value": each.value, "unit": each.unit, "labels": dict(each.labels)}
            for each in result.evidence
        ],
    }


def _table(results: Sequence[CheckResult], width: int) -> str:
    rows = [(r.status.value, r.check, r.subject, r.summary) for r in results]
    return "\n".join(texts.table(("STATUS", "CHECK", "SUBJECT", "WHAT"), rows, width))
