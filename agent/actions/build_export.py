"""Take exactly the tree of one commit out of the repository, as the build user, into an empty folder.

No checkout and no clone, so that no hook runs, no submodule is fetched and the work tree of the source, dirty or not,
does not count. Everything an earlier build has left is removed first, but for the compiler cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agent.actions._building import BuildParameters
from agent.host import Host, builds, llama_source
from agent.host.recipe import BUILD_USER, Recipe, of, unfit
from agent.model import Json, Risk
from agent.plugin import Action, Command, Noop, Plan, PlanStep, Read, Refuse, RemoveFile, Target, WriteFile

EXPORT_S = 600.0
"""A tree of 200 MB takes a second; on a disk that is cold and busy much longer."""
REMOVE_S = 300.0
FOLDER_S = 30.0
PACKED = "source.tar"


def plan(host: Host, target: Target, params: Any) -> Plan:
    """Empty the work folder, note what is being built, and unpack the commit's tree."""
    recipe = of(target.settings)
    if recipe is None:
        return Plan((Refuse(unfit(target.settings), "no-recipe"),))
    commit = builds.wanted(recipe, params.commit)
    name = builds.free_name(host, recipe, builds.base_name(host, recipe, commit))
    work = builds.work(recipe)
    steps: tuple[PlanStep, ...] = (
        *emptied(recipe),
        WriteFile(builds.begun(recipe), f"{commit} {name}\n"),
        _as_builder(work, "mkdir", "--parents", "src", "home", "tmp", "ccache"),
        Command(
            llama_source.git(host, recipe, "archive", "--format=tar", f"--output={work}/{PACKED}", commit),
            EXPORT_S,
            user=BUILD_USER,
            words=f"taking {commit[:12]} out of {recipe.source}",
            interruptible=True,
        ),
        _as_builder(work, "tar", "--extract", f"--file={PACKED}", "--directory=src"),
        _as_builder(work, "rm", "--force", "--", PACKED),
        Read("what was exported", lambda _: f"{commit[:12]} from {recipe.source}", sums_up=True),
    )
    return Plan(steps, {"release": name})


def undo(host: Host, target: Target, params: Any, before: Mapping[str, Json]) -> Plan:
    """Remove what was exported and whatever was made of it."""
    recipe = of(target.settings)
    if recipe is None:
        return Plan((Noop(unfit(target.settings)),))
    return Plan((*emptied(recipe), Noop("the work folder was emptied")))


def emptied(recipe: Recipe) -> tuple[PlanStep, ...]:
    """The work folder is the build user's, and nothing is left in it of a build but the compiler cache."""
    owned = (f"--owner={BUILD_USER}", f"--group={BUILD_USER}", "--mode=0700")
    names = ("src", "build", "home", "tmp", PACKED, "release.tar")
    work = builds.work(recipe)
    return (
        Command(("install", "--directory", "--mode=0755", builds.folder(recipe)), FOLDER_S),
        Command(("install", "--directory", *owned, work), FOLDER_S),
        RemoveFile(builds.begun(recipe)),
        Command(("rm", "--recursive", "--force", "--one-file-system", "--", *names), REMOVE_S, cwd=work),
    )


def _as_builder(work: str, *argv: str) -> Command:
    """What is done in the work folder is done by its owner."""
    return Command(argv, EXPORT_S, user=BUILD_USER, cwd=work, interruptible=True)


ACTION = Action(id="build.export", params=BuildParameters, risk=Risk.NONE, plan=plan, undo=undo, unfit=unfit)
