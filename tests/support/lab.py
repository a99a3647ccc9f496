"""Actions and a runbook for tests of the runner: they build something in a folder, and one of them puts it to use.

`lab.build` writes a product and waits; its undo removes it. `lab.prove` reads the product. `lab.switch` puts it to use,
which a rehearsal must never do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from agent import plugin
from agent.host import Host
from agent.model import Json, Risk
from agent.plugin import (
    Action,
    Condition,
    EngineSettings,
    Noop,
    NoParameters,
    Parameters,
    Plan,
    Read,
    Refuse,
    RemoveFile,
    Target,
    Wait,
    WriteFile,
)

PRODUCT = "/var/lib/lab/product"
IN_USE = "/var/lib/lab/in-use"
SLOW = "/var/lib/lab/slow"
"""While this file is there, building does not come to its end."""
SPOILT = "/var/lib/lab/spoilt"
"""While this file is there, the product is no good."""
STUCK = "/var/lib/lab/stuck"
"""While this file is there, nothing can be cleared up."""
BUILD_S = 600.0

BOOK = """
id: rebuild-lab
title: Build it again
explain: For tests.
engines: [llama.cpp]
limits: {cooldown: "30m", max_runs: 2, within: "24h"}
rehearsal: {every: "7d"}
steps:
  - {name: Build, use: lab.build, with: {engine: "{{ engine.name }}"}}
  - {name: Try it, use: lab.prove}
  - {name: Switch, use: lab.switch, rehearsed: false}
verify: {check: engine.generates, within: "5m"}
on_failure: escalate
"""


class BuildParameters(Parameters):
    """Which engine."""

    engine: str


def _build(host: Host, target: Target, params: Any) -> Plan:
    finished = Condition("the compiler has finished", lambda host: not host.files.exists(SLOW))
    steps = (WriteFile(PRODUCT, "built\n"), Wait(finished, BUILD_S, why="the compiler hangs", code="build-timeout"))
    return Plan(steps, {"product": PRODUCT})


def _unbuild(host: Host, target: Target, params: Any, before: Mapping[str, Json]) -> Plan:
    if host.files.exists(STUCK):
        return Plan((Refuse("the disk does not let go of it", "stuck"),))
    if not host.files.exists(PRODUCT):
        return Plan((Noop("nothing was built", untouched=True),))
    return Plan((RemoveFile(PRODUCT),))


def _prove(host: Host, target: Target, params: Any) -> Plan:
    good = Condition("the product works", lambda host: not host.files.exists(SPOILT))
    return Plan(
        (Read("the product", lambda host: "built, and works", sums_up=True), Wait(good, 0.0, why="it is no good"))
    )


def _switch(host: Host, target: Target, params: Any) -> Plan:
    return Plan((WriteFile(IN_USE, "the new one\n"),), {"was": ""})


def _switch_back(host: Host, target: Target, params: Any, before: Mapping[str, Json]) -> Plan:
    return Plan((RemoveFile(IN_USE),))


def _unfit(settings: EngineSettings) -> str:
    return "nothing is configured to build" if settings.name == "bare" else ""


ACTIONS = {
    each.id: each
    for each in (
        Action(
            id="lab.build", params=BuildParameters, risk=Risk.NONE, plan=_build, undo=_unbuild, unfit=_unfit
        ),
        Action(id="lab.prove", params=NoParameters, risk=Risk.NONE, plan=_prove),
        Action(
            id="lab.switch", params=NoParameters, risk=Risk.SERVICE, plan=_switch, undo=_switch_back,
            replaces_program=True,
        ),
    )
}  # fmt: skip


def refusing(reason: str) -> Action:
    """`lab.build` on a host that is not ready for it."""
    return replace(ACTIONS["lab.build"], plan=lambda host, target, params: Plan((Refuse(reason, "not-ready"),)))


def install(monkeypatch: Any, findings: tuple[str, ...] = ()) -> str:
    """Make the actions known, and give the runbook's text. findings: the causes it is for."""
    known = {**plugin.actions(), **ACTIONS}
    monkeypatch.setattr(plugin, "actions", lambda: known)
    return BOOK + (f"for: [{', '.join(findings)}]\n" if findings else "")
