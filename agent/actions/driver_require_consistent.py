"""Make sure that a restart can help: refuse while the driver's parts disagree or NVML is silent.

A running engine keeps its GPU through a driver upgrade; a restart would take it away and turn a latent fault into an
outage. A dead engine that needs the GPU cannot be helped by a restart either while module and libraries disagree.
The lock is not asked: a driver that is consistent but not the locked one serves, and never blocks a repair. A refusal
spends no budget.
"""

from __future__ import annotations

from typing import Any

from agent.host import Host, interlock
from agent.model import Risk
from agent.plugin import Action, EngineParameters, Noop, Plan, Read, Refuse, Target

AGAIN_S = 300.0
"""A driver is put right by a person or a reboot, so looking again is not urgent."""


def plan(host: Host, target: Target, params: Any) -> Plan:
    """A reasoned no-op, or a refusal, with what was compared."""
    found = interlock.look(host, target.settings.gpu if target.settings is not None else None)
    seen = Read(
        "what module, library and NVML say",
        lambda _: found.facts(),
        ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
    )
    if found.holds:
        return Plan((seen, Noop(found.reason)) if found.needed else (Noop(found.reason),))
    return Plan((seen, Refuse(f"a restart of {params.engine} cannot help: {found.reason}", found.code, AGAIN_S)))


ACTION = Action(
    id="driver.require_consistent",
    params=EngineParameters,
    risk=Risk.NONE,
    plan=plan,
)
