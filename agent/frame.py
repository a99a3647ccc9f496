"""Runs one check: observe, verdict, judge. Owns timing, memory, errors and enabling; a check owns none of it.

A crash inside a check is an UNKNOWN result that carries the error: never OK, never a dead daemon. The frame
remembers what a check observed last time and hands it back as `before`.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterable

from agent import plugin, verdict
from agent.errors import HoldfastError
from agent.host import Host
from agent.model import CheckResult, Moment, Observation, Observed, Status, Verdict
from agent.plugin import Check, Target

log = logging.getLogger(__name__)

Observe = Callable[[Host, Check, Target, Observed | None], Iterable[Observation]]
"""How observations are made: here, or by the root inspector for checks marked `as_root`."""


def observe_here(host: Host, check: Check, target: Target, before: Observed | None) -> Iterable[Observation]:
    """Observe in this process."""
    return check.observe(host, target, before)


def run_check(
    host: Host, check: Check, target: Target, before: Observed | None, *, observe: Observe = observe_here
) -> CheckResult:
    """One check's answer about one target, never an exception.

    before: what this check observed last time about this subject; without one, a check that needs it is
        observed twice, `check.apart_s` seconds apart.
    """
    started = host.clock.now()
    try:
        if check.needs_before and before is None:
            before = _observed(host, check, target, None, observe)
            host.clock.sleep(check.apart_s)
        now = _observed(host, check, target, before, observe)
        judgement = check.judge(now, before, target.params)
    except HoldfastError as error:
        return unknown(check.id, target.subject, f"cannot tell: {error.message}", started, host.clock.now())
    except Exception as error:  # noqa: BLE001 - whatever a check does wrong, the daemon lives on
        log.error("check %s on %s crashed: %s", check.id, target.subject, _where(error))
        text = f"the check crashed: {type(error).__name__} in {_where(error)}"
        return unknown(check.id, target.subject, text, started, host.clock.now())
    return CheckResult(
        check=check.id,
        subject=target.subject,
        status=judgement.status,
        summary=judgement.summary,
        evidence=now.observations,
        at=now.at,
        duration_s=round(host.clock.now().since(started), 4),
        verdict=now.verdict,
    )


def unknown(check: str, subject: str, why: str, started: Moment, ended: Moment) -> CheckResult:
    """An UNKNOWN result, for a check that could not answer."""
    known = plugin.checks().get(check)
    about_engine = subject.startswith("engine:") and (known is None or known.gives_verdict)
    verdict_then = Verdict.UNKNOWN if about_engine else None
    return CheckResult(check, subject, Status.UNKNOWN, why, (), ended, round(ended.since(started), 4), verdict_then)


def before_of(result: CheckResult | None) -> Observed | None:
    """What the check observed when it gave this result, to be handed back to it."""
    if result is None or not result.evidence:
        return None
    return Observed(result.at, result.evidence, result.verdict)


def _observed(host: Host, check: Check, target: Target, before: Observed | None, observe: Observe) -> Observed:
    observations = tuple(observe(host, check, target, before))
    now = Observed(host.clock.now(), observations)
    if target.engine is None or not check.gives_verdict:
        return now
    decided, reason = verdict.decide(now, before, target.settings)
    return Observed(now.at, observations, decided, reason)


def _where(error: Exception) -> str:
    """File and line of a crash. Its message is left out: it may quote what an engine said."""
    frames = traceback.extract_tb(error.__traceback__)
    last = frames[-1] if frames else None
    return f"{last.filename.rsplit('/', 2)[-1]}:{last.lineno}" if last else "an unknown place"
