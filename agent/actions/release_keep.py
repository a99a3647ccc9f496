"""Settle a switch that was proven: note the release, give up the way back, prune, remove the build's work.

Never pruned: a release that any engine serves from or is to fall back to, that a process runs, or that is none of ours.
ccache stays, so that the next build is faster.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from agent.actions.build_export import emptied
from agent.errors import HostError
from agent.host import Host, recipe, releases
from agent.host.recipe import Recipe
from agent.model import Risk
from agent.plugin import (
    Action,
    Command,
    Condition,
    EngineParameters,
    Noop,
    Plan,
    PlanStep,
    Refuse,
    RemoveFile,
    Target,
    Wait,
    WriteFile,
)

QUICK_S = 30.0
REMOVE_S = 300.0
"""Removing a build tree of some gigabytes on a slow disk."""


def plan(host: Host, target: Target, params: Any) -> Plan:
    """Note first, because that matters; what takes room goes afterwards."""
    known, unit = recipe.of(target.settings), target.unit
    if known is None or unit is None:
        reason = recipe.unfit(target.settings) or f"{params.engine} has no unit here"
        return Plan((Refuse(reason, "no-rebuild"),))
    steps: list[PlanStep] = [
        WriteFile(releases.state_file(known.engine), lambda host: settled(host, known, unit), 0o640),
        RemoveFile(releases.way_back(known)),
        *_pruned(host, known),
        *emptied(known),
        Noop("noted as proven"),
    ]
    return Plan(tuple(steps))


def settled(host: Host, known: Recipe, unit: str) -> str:
    """The state with what serves now noted as proven. Raises HostError when the unit does not run it."""
    serving = releases.serving(host, known)
    if not serving or not releases.runs_from(host, known, unit, serving):
        raise HostError(f"{unit} does not run what is in {releases.place(known)}, so nothing is proven")
    state = releases.read(host, known.engine)
    state = replace(state, server=known.server).noted(serving, releases.proof(host, known))
    switch = state.switch
    if switch is not None and switch.new == serving:
        state = replace(state, switch=replace(switch, settled=True))
    there = {path: proof for path, proof in state.proven.items() if host.files.exists(releases.server_of(path))}
    return releases.text(replace(state, proven=there))


def prunable(host: Host, known: Recipe) -> tuple[str, ...]:
    """The releases that are too many, oldest first. Raises FileTrouble and CommandFailed."""
    there = releases.releases(host, known)
    safe = _safe(host, known)
    newest_first = sorted(there, key=lambda each: (each.path in safe, each.at), reverse=True)
    gone = [each for each in newest_first[known.keep :] if each.path not in safe]
    return tuple(each.path for each in reversed(gone))


def _safe(host: Host, known: Recipe) -> frozenset[str]:
    serving = releases.serving(host, known)
    fallback = releases.last_proven(host, releases.read(host, known.engine), serving)
    return releases.in_use(host) | {each for each in (serving, fallback) if each}


def _pruned(host: Host, known: Recipe) -> Iterator[PlanStep]:
    """Each renamed first, so that half a release is never taken for one; and what earlier cuts left."""
    for path in prunable(host, known):
        gone = f"{known.releases}/.{posixpath.basename(path)}.gone"
        stays = _stays(known, path)
        yield Wait(stays, 0.0, on_timeout=Command(("mv", "--no-target-directory", "--", path, gone), QUICK_S))
        yield _removed(gone)
    names = host.files.listdir(known.releases) if host.files.exists(known.releases) else []
    for name in names:
        if name.startswith(".") and name.endswith(".gone"):
            yield _removed(f"{known.releases}/{name}")


def _stays(known: Recipe, path: str) -> Condition:
    return Condition(f"{posixpath.basename(path)} has come into use", lambda host: path in _safe(host, known))


def _removed(folder: str) -> Command:
    return Command(("rm", "--recursive", "--force", "--one-file-system", "--", folder), REMOVE_S)


ACTION = Action(id="release.keep", params=EngineParameters, risk=Risk.NONE, plan=plan, unfit=recipe.unfit)
