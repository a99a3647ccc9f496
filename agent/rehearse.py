"""Carries out a rehearsal whose record is in the ledger: every step that disturbs nobody, then all of it is undone.

Nothing that serves is touched, so nothing is proven afterwards and no budget is spent. Its end is always the same: as
if it had never been. Only what it took, and whether every step went well, is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from agent import execution, facts
from agent.errors import HoldfastError
from agent.execution import Begun, Result, Standing, Work
from agent.model import Json, Outcome
from agent.runbook import Runbook
from agent.steps import RebootAwaited, StepRefused, StopAsked


def rehearsal_record(runbook: Runbook, subject: str, inputs: dict[str, Json]) -> dict[str, Json]:
    """What a rehearsal's record must say so that it can be cleared up without its runbook."""
    done = [step.name for step in runbook.steps if step.rehearsed]
    return {
        "runbook": runbook.id,
        "hash": runbook.hash,
        "subject": subject,
        "risk": "none",
        "inputs": inputs,
        "steps": len(done),
        "total": len(runbook.steps),
        "verify": None,
        "rehearsal": True,
    }


def rehearse(work: Work) -> Result:
    """Do the steps that are rehearsed and undo them. Never raises for what the machine does.

    The outcome is on record after it. A refused or failed rehearsal says what is missing for the day it is needed.
    """
    standing = Standing()
    began = work.host.clock.now()
    try:
        known = facts.seen_by_templates(work.host, work.config, work.subject, work.inputs)
        for index, step in enumerate(work.runbook.steps):
            if step.rehearsed:
                execution.carry_out(work, standing, index, step, known)
        result = Result(Outcome.SUCCEEDED, _words(work.runbook))
    except RebootAwaited as error:
        result = Result(Outcome.FAILED, f"cannot be rehearsed: {error.message}", code=error.code)
    except StepRefused as error:
        result = Result(Outcome.REFUSED, error.message, code=error.code)
    except StopAsked as error:
        result = Result(Outcome.STOPPED, error.message, code=error.code)
    except HoldfastError as error:
        result = Result(Outcome.FAILED, error.message, code=error.code)
    except Exception as error:  # noqa: BLE001 - a bug in an action must still be undone and recorded
        result = Result(Outcome.FAILED, f"crashed: {execution.crash_words(error)}", code="crashed")
    result = replace(result, took_s=round(work.host.clock.now().since(began), 1))
    return execution.finish(work, cleared(work, result, standing.begun))


def cleared(work: Work, result: Result, begun: Sequence[Begun]) -> Result:
    """Undo everything, to its end. What went well but cannot be cleared up has failed: it would fill the disk."""
    after = execution.undone(execution.unstoppable(work), replace(result, outcome=Outcome.STOPPED), begun)
    if after.summary == result.summary:
        return result
    outcome = Outcome.FAILED if result.outcome is Outcome.SUCCEEDED else result.outcome
    return replace(result, outcome=outcome, summary=after.summary, code=result.code or "not-cleared-up")


def _words(runbook: Runbook) -> str:
    left_out = [step.name for step in runbook.steps if not step.rehearsed]
    done = len(runbook.steps) - len(left_out)
    return f"{done} of {len(runbook.steps)} steps work" + (f"; left out: {', '.join(left_out)}" if left_out else "")
