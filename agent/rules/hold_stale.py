"""A held package has had a pending security update for longer than agreed: a gentle reminder that holds are a loan.

Counted from when the update was first seen; `stale_after_days` of check driver.updates says how long is too long. It
is told once. What to do: at a quiet hour, move the driver or the kernel in a planned change
(`sudo holdfast change begin --to VERSION --reason …`, or `--kernel RELEASE`); nothing moves before that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from agent.model import CheckResult, Finding, Json, Moment, Observation, Results, Status
from agent.plugin import EVENT, Rule

_DAY_S = 86400.0


def diagnose(results: Results, now: Moment) -> Iterable[Finding]:
    """Those that have waited too long, the oldest first, the driver before the kernel."""
    for updates in results.of("driver.updates"):
        stale = _stale(updates, now)
        if not stale:
            continue
        first = stale[0]
        days = (now.wall - float(first["since"])) / _DAY_S
        more = f" and {len(stale) - 1} more packages" if len(stale) > 1 else ""
        yield Finding(
            id="hold-stale",
            subject=updates.subject,
            status=Status.WARNING,
            summary=(
                f"{first['name']}{more} held at {first['installed']}: a security update to {first['version']} has"
                f" waited for {days:.0f} days"
            ),
            evidence=(Observation("evidence", f"when it suits: {_way(stale)}"),),
            results=((updates.check, updates.subject),),
        )


def _stale(updates: CheckResult, now: Moment) -> Sequence[Mapping[str, Json]]:
    pending, after_days = updates.value("pending"), updates.value("stale_after_days")
    if not isinstance(pending, list) or after_days is None:
        return ()
    late = [each for each in pending if now.wall - float(each["since"]) >= float(after_days) * _DAY_S]
    return sorted(late, key=lambda each: (each["since"], not each["driver"], each["name"]))


def _way(stale: Sequence[Mapping[str, Json]]) -> str:
    """How to let it in: as a change of the driver where that is what waits, else of the kernel."""
    goal = "--to VERSION" if any(each["driver"] for each in stale) else "--kernel RELEASE"
    return f"sudo holdfast change begin {goal} --reason …"


RULE = Rule(
    id="hold-stale",
    title="A hold keeps a security update out",
    reads=("driver.updates",),
    confirm=EVENT,
    diagnose=diagnose,
    manual=True,
    expected_in_change=True,
)
