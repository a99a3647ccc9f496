"""Try a fresh build before anyone depends on it: version, devices, the unit's own arguments, a completion.

Everything runs as a user without rights, from the folder that is not a release yet, while the old server serves. The
version must be the wanted commit, a GPU must be seen where one is expected, every argument of the unit must be
understood, and a small model of random weights must generate tokens on a spare port of this host: on the GPU where
enough of its memory is free, else on the processor, which is then said.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from agent.actions import _trial as trial
from agent.actions._building import BuildParameters
from agent.errors import HostError
from agent.host import Host, binary_proof, builds, recipe, releases, unit_command
from agent.host.recipe import BUILD_USER, Recipe
from agent.model import Json, Risk
from agent.plugin import Action, Condition, Noop, Plan, Read, Refuse, Target, Wait


@dataclass
class _Proof:
    """One build while it is tried: each question keeps its answer in words for the summary."""

    known: Recipe
    unit: str
    commit: str
    server: str
    said: list[str] = field(default_factory=list)

    def version(self, host: Host) -> Json:
        """It is a build of the wanted commit."""
        found = binary_proof.version(host, self.server, BUILD_USER)
        if found.is_of(self.commit) is False:
            raise HostError(
                f"the new llama-server says that it is {found.commit}, not {self.commit[:12]}", code="wrong-commit"
            )
        told = "" if found.is_of(self.commit) else " (it does not say of which commit)"
        self.said.append(f"build {found.build}{told}")
        return {"semantic": found.semantic, "build": found.build, "commit": found.commit}

    def devices(self, host: Host) -> Json:
        """It sees a GPU."""
        found = binary_proof.devices(host, self.server, BUILD_USER)
        if found is None:
            self.said.append("it cannot list devices")
            return None
        if not found:
            raise HostError("the new llama-server sees no GPU: it would run on the processor", code="no-gpu")
        self.said.append(f"sees {binary_proof.shown(found)}")
        return [name for name, _ in found]

    def arguments(self, host: Host) -> Json:
        """It understands what the unit says."""
        command = unit_command.read(host, self.unit, self.known.server)
        if command is None:
            self.said.append(f"the arguments of {self.unit} are not known: a wrapper sets them")
            return None
        user = command.user if binary_proof.known_user(host, command.user) else BUILD_USER
        wrong, sure = binary_proof.misunderstood(host, self.server, command, user)
        if wrong and sure:
            raise HostError(f"the new llama-server would not start as {self.unit}: {wrong}", code="arguments-refused")
        count = len(command.arguments)
        self.said.append(f"cannot be asked about the unit's arguments: {wrong}" if wrong else f"{count} arguments fit")
        return {"arguments": count, "from": command.source, "as": user}


def plan(host: Host, target: Target, params: Any) -> Plan:
    """Ask the binary, then start it once beside the one that serves."""
    known, unit = recipe.of(target.settings), target.unit
    if known is None or unit is None or target.engine is None:
        reason = recipe.unfit(target.settings) or f"{params.engine} has no unit here"
        return Plan((Refuse(reason, "no-rebuild"),))
    commit = builds.wanted(known, params.commit)
    staging = builds.staging(known, builds.release_name(host, known, commit))
    server = releases.server_of(staging)
    proof = _Proof(known, unit, commit, server)
    tried = trial.prepared(host, target, known, server)
    built = Condition(f"{posixpath.basename(staging)} is there", lambda host: host.files.exists(server), ("ls", server))
    devices = (Read("the GPUs that it sees", proof.devices, (server, "--list-devices")),) if known.cuda else ()
    return Plan(
        (
            Wait(built, 0.0, why=f"there is no {server}", code="nothing-built"),
            Read("its version", proof.version, (server, "--version")),
            *devices,
            Read(f"whether it understands the arguments of {unit}", proof.arguments),
            *trial.steps(host, target, tried),
            Read("what was proven", lambda _: "; ".join((*proof.said, tried.words)), sums_up=True),
        ),
        {"unit": tried.unit},
    )


def undo(host: Host, target: Target, params: Any, before: Mapping[str, Json]) -> Plan:
    """The server that was tried is gone."""
    return Plan((*trial.ended(str(before["unit"])), Noop("the server that was tried does not run")))


ACTION = Action(
    id="build.prove",
    params=BuildParameters,
    risk=Risk.NONE,
    plan=plan,
    undo=undo,
    unfit=recipe.unfit,
)
