"""Give a build that was proven its place among the releases: one rename, never over another release.

Undo removes the release again, unless something serves from it.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from typing import Any

from agent.actions._building import BuildParameters
from agent.host import Host, builds, recipe, releases
from agent.model import Json, Risk
from agent.plugin import Action, Command, Condition, Noop, Plan, Refuse, Target, Wait

QUICK_S = 30.0
SYNC_S = 300.0
"""A CUDA build has up to 2 GB to bring to a slow disk."""


def plan(host: Host, target: Target, params: Any) -> Plan:
    """On disk first, then in its place."""
    known = recipe.of(target.settings)
    if known is None:
        return Plan((Refuse(recipe.unfit(target.settings), "no-rebuild"),))
    wrong = releases.not_ours_alone(host, known)
    if wrong:
        return Plan((Refuse(f"root does not write there: {wrong}", "unsafe-place"),))
    name = builds.release_name(host, known, builds.wanted(known, params.commit))
    staging, place = builds.staging(known, name), builds.release(known, name)
    built = Condition(
        f"the build lies in {staging}",
        lambda host: releases.release(host, staging) is not None and host.files.exists(releases.server_of(staging)),
        ("ls", "-l", releases.server_of(staging)),
    )
    free = Condition(f"there is no {place} yet", lambda host: not host.files.exists(place))
    return Plan(
        (
            Wait(built, 0.0, why=f"{staging} holds no complete build", code="nothing-built"),
            Wait(free, 0.0, why=f"{place} is there already, and no release is replaced", code="release-exists"),
            Command(("sync", "--file-system", known.releases), SYNC_S),
            Command(("mv", "--no-clobber", "--no-target-directory", "--", staging, place), QUICK_S),
            Command(("sync", "--", known.releases), SYNC_S),
            Noop(f"{name} is a release"),
        ),
        {"release": place, "made": _made(host, staging)},
    )


def _made(host: Host, folder: str) -> Json:
    """Which build this is: another one may come to have the same name."""
    known = releases.release(host, folder)
    return None if known is None else [known.sha256, known.at]


def undo(host: Host, target: Target, params: Any, before: Mapping[str, Json]) -> Plan:
    """Not a release any more; where something serves from it, it stays."""
    known, place = recipe.of(target.settings), str(before["release"])
    name = posixpath.basename(place)
    if not host.files.exists(place) or _made(host, place) != before["made"]:
        return Plan((Noop(f"{name} was not installed", untouched=True),))
    if place in releases.in_use(host) or (known is not None and releases.serving(host, known) == place):
        return Plan((Noop(f"{name} is in use, so it stays"),))
    gone = f"{posixpath.dirname(place)}/.{name}.gone"
    return Plan(
        (
            Command(("rm", "--recursive", "--force", "--one-file-system", "--", gone), SYNC_S),
            Command(("mv", "--no-target-directory", "--", place, gone), QUICK_S),
            Command(("rm", "--recursive", "--force", "--one-file-system", "--", gone), SYNC_S),
            Noop(f"{name} is removed again"),
        )
    )


ACTION = Action(
    id="release.install",
    params=BuildParameters,
    risk=Risk.NONE,
    plan=plan,
    undo=undo,
    unfit=recipe.unfit,
)
