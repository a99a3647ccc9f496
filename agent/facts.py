"""Gathers what `decide` needs to know, from configuration, ledger, systemd and the journal.

The daemon gathers the same facts for its advice; the runner's count.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from agent import ledger, plugin
from agent.config import Config
from agent.decide import Caller, DecisionFacts, UnitFacts
from agent.errors import HostError
from agent.host import Host, changes, driver, journal, stops, systemd
from agent.ledger import Record
from agent.model import Json
from agent.plugin import EngineSettings, NoParameters, Target
from agent.runbook import Runbook


@dataclass(frozen=True, slots=True)
class Asking:
    """Who asks for a run, and what is known of the request itself; see `DecisionFacts`."""

    caller: Caller
    force: bool = False
    approved: bool = False
    in_flight: str = ""


def engine_of(config: Config, subject: str) -> EngineSettings | None:
    """The settings of the engine that this subject names, None for the host or an unknown engine."""
    return config.engine(subject.removeprefix("engine:")) if subject.startswith("engine:") else None


def has_subject(config: Config, runbook: Runbook, subject: str) -> bool:
    """Whether this runbook has something to act on at this subject."""
    engine = engine_of(config, subject)
    if engine is None:
        return subject == "host" and not runbook.needs_engine
    return not runbook.engines or engine.kind in runbook.engines


def unfit(config: Config, runbook: Runbook, subject: str) -> str:
    """Why this runbook can do nothing for an engine that is configured like this one, "" when it can."""
    engine = engine_of(config, subject)
    actions = (plugin.actions().get(step.use) for step in runbook.steps)
    reasons = (each.unfit(engine) for each in actions if each is not None and each.unfit is not None)
    return "" if engine is None else next(filter(None, reasons), "")


def gather(
    host: Host,
    config: Config,
    runbook: Runbook,
    subject: str,
    records: Sequence[Record],
    asking: Asking,
) -> DecisionFacts:
    """Everything that bears on running this runbook on this subject now.

    Reads systemd and the journal, and never raises for what they do: what cannot be told is a fact of its own.
    """
    engine = engine_of(config, subject)
    pause = ledger.paused(records, host.clock.now())
    unit = _unit(host, engine.unit) if engine is not None and engine.unit is not None else None
    gathered = DecisionFacts(
        autonomy=config.autonomy_for(runbook.id),
        caller=asking.caller,
        known=has_subject(config, runbook, subject),
        force=asking.force,
        approved=asking.approved,
        attempts=ledger.attempts(records),
        paused_until=None if pause is None else pause.until,
        change=changes.in_words(host),
        in_flight=asking.in_flight,
        unit=None if unit is None else unit[0],
        incurable="" if engine is None or unit is None or unit[1] is None else _incurable(host, engine, unit[1]),
    )
    if not runbook.replaces_program:
        return gathered
    waits = None if gathered.unit is None else replace(gathered.unit, busy="")
    return replace(gathered, unit=waits, incurable="")


def _unit(host: Host, name: str) -> tuple[UnitFacts, systemd.UnitState | None]:
    try:
        state = systemd.unit_state(host, name)
    except HostError as error:
        return UnitFacts(name, unknown=f"systemd does not say how it is: {error.message}"), None
    stopped, how = stops.operators_hand(host, state, "" if state.invocation_id else _last_invocation(host, name))
    facts = UnitFacts(
        name,
        masked=stopped is True and how.startswith("masked"),
        disabled=stopped is True and how.startswith("disabled"),
        operator_stopped=stopped is True and not how.startswith(("masked", "disabled")),
        unknown=how if stopped is None else "",
        busy=busy(state),
    )
    return facts, state


def _last_invocation(host: Host, unit: str) -> str:
    """The unit's last start in this boot, from the journal; "" when there was none or it cannot be read.

    systemd forgets it, as all else, of a unit that is neither enabled nor failed as soon as it has ended.
    """
    boot = host.clock.now().boot_id.replace("-", "")
    words = ("_PID=1", f"UNIT={unit}", f"MESSAGE_ID={journal.STARTED}", f"_BOOT_ID={boot}")
    argv = ("journalctl", "--quiet", "--no-pager", "--output=json", "--output-fields=INVOCATION_ID", "--lines=1")
    try:
        said = json.loads(host.run((*argv, *words), timeout_s=10.0).stdout)
    except (HostError, ValueError):
        return ""
    return str(said.get("INVOCATION_ID", "")) if isinstance(said, dict) else ""


def busy(state: systemd.UnitState) -> str:
    """Why systemd must not be disturbed about this unit now, "" when it may."""
    if state.job:
        return "a job is queued for it"
    if state.sub_state.startswith("auto-restart"):
        return "systemd is about to restart it"
    return f"it is {state.active_state}" if state.active_state in ("activating", "deactivating", "reloading") else ""


def _incurable(host: Host, engine: EngineSettings, state: systemd.UnitState) -> str:
    """The failure that a restart cannot cure and that ended the last process, "" for none."""
    if state.active_state not in ("inactive", "failed"):
        return ""
    for match in log_matches(host, engine, state):
        if not match.curable:
            return f"{match.meaning.rstrip('.')} ({match.text})"
    return ""


def log_matches(host: Host, engine: EngineSettings, state: systemd.UnitState) -> list[journal.LogMatch]:
    """The known failures in the log of the unit's last process, oldest first; none when it cannot be read."""
    signatures = plugin.engines()[engine.kind].signatures
    invocation = state.invocation_id or _last_invocation(host, state.unit)
    if not signatures or not invocation:
        return []
    try:
        known = journal.load_signatures(signatures)
        return list(journal.matches(host, state.unit, known, invocation_id=invocation, since_wall=None))
    except HostError:
        return []


def failure(host: Host, engine: EngineSettings | None) -> tuple[str, str]:
    """How the engine's unit failed: a signature that stays the same when it fails the same way, and a line for people.

    ("", "") while it has not failed.
    """
    if engine is None or engine.unit is None:
        return "", ""
    try:
        state = systemd.unit_state(host, engine.unit)
    except HostError:
        return "", ""
    matches = log_matches(host, engine, state)
    found = next((match for match in matches if not match.curable), matches[0] if matches else None)
    if found is not None:
        return found.cause, f"{found.meaning.rstrip('.')}: {found.text}"
    if not has_failed(state):
        return "", ""
    return f"{state.result}-{state.exec_main_status}", f"{state.unit} ended: {state.result}, {state.exec_main_status}"


def has_failed(state: systemd.UnitState) -> bool:
    """Whether the unit is down and nothing is about to start it, or systemd is already trying again."""
    if state.sub_state.startswith("auto-restart"):
        return True
    return state.active_state in ("failed", "inactive") and not state.job


def seen_by_templates(host: Host, config: Config, subject: str, inputs: Mapping[str, Json]) -> dict[str, Json]:
    """What a runbook's templates may look into; what is not there is undefined."""
    engine = engine_of(config, subject)
    found: dict[str, Json] = {"inputs": dict(inputs), "host": _host(host)}
    if engine is not None:
        found["engine"] = engine.model_dump(mode="json")
    lock = driver.read_lock(host)
    if not lock.problem:
        found["lock"] = {"version": lock.version}
    return found


def _host(host: Host) -> dict[str, Json]:
    found: dict[str, Json] = {}
    for name, path in (("name", "/proc/sys/kernel/hostname"), ("kernel", "/proc/sys/kernel/osrelease")):
        try:
            found[name] = host.files.read_text(path).strip()
        except HostError:
            continue
    return found


def target(config: Config, subject: str, params: Any = None) -> Target:
    """The target of an action on this subject; on the host with those of every engine."""
    engine = engine_of(config, subject)
    kind = None if engine is None else plugin.engines()[engine.kind]
    known = params if params is not None else NoParameters()
    engines = tuple(target(config, f"engine:{each.name}") for each in config.engines) if subject == "host" else ()
    return Target(subject, known, 0.0, kind, engine, engines)
