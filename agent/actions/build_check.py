"""Look whether the engine can be built now: source, tools, room, cards, and whether its unit would run the result.

Every reason against it is told at once. Nothing is changed. The commit counts, not what a tag says by now; the work
tree of the source does not matter, because only what is committed is built.
"""

from __future__ import annotations

from typing import Any

from agent.actions._building import BuildParameters
from agent.host import Host, build_needs, builds, llama_source
from agent.host.recipe import BUILD_USER, of, unfit
from agent.model import Risk
from agent.plugin import Action, Plan, Read, Refuse, Target


def plan(host: Host, target: Target, params: Any) -> Plan:
    """What was found, or one refusal with every reason."""
    recipe = of(target.settings)
    if recipe is None:
        return Plan((Refuse(unfit(target.settings), "no-recipe"),))
    commit = builds.wanted(recipe, params.commit)
    found = build_needs.survey(host, recipe, target.unit, commit)
    if found.problems:
        return Plan((Refuse("; ".join(found.problems), "build-impossible"),))
    name = builds.release_name(host, recipe, commit)
    past = builds.last(host, recipe)
    took = f"; last time it took {past.configure_s + past.compile_s:.0f} s" if past else ""
    notes = "".join(f"; {note}" for note in found.notes)
    asked = ("runuser", "-u", BUILD_USER, "--", *llama_source.git(host, recipe, "cat-file", "-t", commit))
    return Plan(
        (
            Read("the source", lambda _: found.source, asked),
            Read("the tools", lambda _: found.tools, ("cmake", "--version")),
            Read("the room", lambda _: found.room, ("df", "--human-readable")),
            Read("what will be built", lambda _: f"can build {name}{took}{notes}", sums_up=True),
        )
    )


ACTION = Action(id="build.check", params=BuildParameters, risk=Risk.NONE, plan=plan, unfit=unfit)
