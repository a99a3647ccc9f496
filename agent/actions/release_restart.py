"""Restart the engine so that its unit runs the release that is in its place now.

As engine.restart, but a unit that systemd keeps starting in vain is no reason to wait: it serves nobody, so it is
stopped and started. An operator who has stopped, disabled or masked it wins. What runs afterwards is looked at: a unit
that runs something else has not been switched.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agent.actions import _restarting as restarting
from agent.actions import engine_restart
from agent.host import Host, recipe, releases, systemd
from agent.model import Json, Risk
from agent.plugin import Action, Condition, EngineParameters, Noop, Plan, Refuse, Target, Wait

FRESH_S = 3600.0
"""A switch older than this is not of the same run as the restart."""
SEEN_S = 10.0
"""How long a wrapper may take until it runs the server."""


def plan(host: Host, target: Target, params: Any) -> Plan:
    """Stop whatever the unit does, for good, and start it; or why that must not be done now."""
    known, unit = recipe.of(target.settings), target.unit
    if known is None or unit is None:
        reason = recipe.unfit(target.settings) or f"{params.engine} has no unit here"
        return Plan((Refuse(reason, "no-rebuild"),))
    state = systemd.unit_state(host, unit)
    refusal = restarting.out_of_service(host, state)
    if refusal is not None:
        return Plan((refusal,))
    switch = releases.read(host, known.engine).switch
    open_switch = switch is not None and not switch.settled and host.clock.now().wall - switch.at < FRESH_S
    before = {**restarting.noted_before(host, state), "switched": open_switch}
    runs = Condition(
        f"{unit} runs the release in {releases.place(known)}",
        lambda host: releases.runs_from(host, known, unit, releases.serving(host, known)),
        ("systemctl", "status", "--no-pager", unit),
    )
    why = f"{unit} does not run what {releases.place(known)} is: it was not switched"
    steps = restarting.renew(host, target, state, before)
    return Plan((*steps, Wait(runs, SEEN_S, why=why, code="not-switched")), before)


def undo(host: Host, target: Target, params: Any, before: Mapping[str, Json]) -> Plan:
    """Nothing where the switch is undone next, which starts the engine; else what a cut-off restart needs."""
    if before.get("switched"):
        return Plan((Noop("it is started from the release that is put in its place"),))
    return engine_restart.undo(host, target, params, before)


ACTION = Action(
    id="release.restart",
    params=EngineParameters,
    risk=Risk.SERVICE,
    plan=plan,
    undo=undo,
    unfit=recipe.unfit,
)
