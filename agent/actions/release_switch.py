"""Make another release the one that the engine's unit runs: in one step, and with the way back made first.

With install = "link" the link is replaced by a rename; with "copy" the file is, and the old one is kept as a release of
its own. The engine that runs goes on with what it has until it is restarted. Whether it generates is looked at before,
because a release that served and generated is one to come back to.

Undo puts the old release back and makes sure that the engine runs it, wherever the run was cut. Only a way back to a
proven release from one that did not generate is gone to its end instead. A link that somebody else has moved meanwhile
stays.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydantic import Field

from agent.actions import _restarting as restarting
from agent.actions import release_keep
from agent.actions._building import BuildParameters
from agent.actions._proving import Users, generates
from agent.errors import HostError
from agent.host import Host, builds, ownership, recipe, releases, systemd
from agent.host.recipe import Recipe
from agent.host.releases import Switch
from agent.model import Json, Risk
from agent.plugin import (
    Action,
    Command,
    Condition,
    EngineParameters,
    Noop,
    Plan,
    PlanStep,
    Read,
    Refuse,
    Target,
    Wait,
    WriteFile,
)

LAST_PROVEN = "last-proven"
QUICK_S = 30.0
"""Linking and renaming take no time."""
COPY_S = 300.0
"""Copying one server, up to 2 GB, to a slow disk."""
LOOKS = 4
PAUSE_S = 1.0
"""An engine whose slots are all taken is looked at so often, to see whether its users get tokens."""


class ReleaseSwitchParameters(BuildParameters):
    """To which release."""

    release: str = Field(default="", pattern=r"^([A-Za-z0-9][A-Za-z0-9.+_-]{0,127})?$")
    """A release by its folder's name, or last-proven; empty: the one that the last build made."""


def plan(host: Host, target: Target, params: Any) -> Plan:
    """Keep what serves, note it, and put the other one in its place."""
    known, unit = recipe.of(target.settings), target.unit
    if known is None or unit is None:
        reason = recipe.unfit(target.settings) or f"{params.engine} has no unit here"
        return Plan((Refuse(reason, "no-rebuild"),))
    wrong = releases.not_ours_alone(host, known)
    if wrong:
        return Plan((Refuse(f"root does not write there: {wrong}", "unsafe-place"),))
    if known.install == "link" and not releases.pointed_at(host, known.current) and host.files.exists(known.current):
        return Plan((Refuse(f"{known.current} is not a link, so it cannot be switched", "no-link"),))
    serving = releases.serving(host, known)
    new = _wanted(host, known, serving, params)
    if isinstance(new, Refuse):
        return Plan((new,))
    if new == serving:
        return Plan((Noop(f"{posixpath.basename(new)} is in its place already"),))
    keeping: list[PlanStep] = []
    old = serving
    if known.install == "copy" and not serving and host.files.exists(known.binary):
        old, keeping = _kept(host, known)
    before = {**restarting.noted_before(host, systemd.unit_state(host, unit)), "old": old, "new": new}
    there = Condition(
        f"{posixpath.basename(new)} is there",
        lambda host: host.files.exists(releases.server_of(new)),
        ("test", "-x", releases.server_of(new)),
    )
    seen = _Seen()
    back = params.release == LAST_PROVEN
    steps: list[PlanStep] = [
        Wait(there, 0.0, why=f"{new} is not there", code="no-release"),
        *keeping,
        Read("whether the release that serves generates", lambda host: seen.look(host, target, known, old)),
        Command(("install", "--directory", "--mode=0750", *_readers(host), "--", releases.STATE), QUICK_S),
        WriteFile(
            releases.state_file(known.engine),
            lambda host: _noted(host, known, Switch(old, new, host.clock.now().wall, seen.generates, back)),
            0o640,
        ),
        *_way_back(known, old),
        *_put(known, new),
        Noop(f"{posixpath.basename(new)} in place of {posixpath.basename(old) or 'nothing'}"),
    ]
    return Plan(tuple(steps), before)


def undo(host: Host, target: Target, params: Any, before: Mapping[str, Json]) -> Plan:
    """The old release in its place, and the engine running it."""
    known = recipe.of(target.settings)
    if known is None or target.unit is None:
        return restarting.refuse(f"{params.engine} is not rebuilt here any more, so its release stays", "no-rebuild")
    old, new = str(before["old"]), str(before["new"])
    serving = releases.serving(host, known)
    if serving not in (old, new):
        what = posixpath.basename(serving) or "something else"
        reason = f"somebody has put {what} in its place meanwhile, so it stays as it is"
        return restarting.refuse(reason, "operator-switched")
    goal = new if not old or _goes_on(host, known, old, new) else old
    steps: list[PlanStep] = []
    if serving != goal:
        steps += _back(host, known, goal) if goal == old else _put(known, goal)
    refusal, renewing = _engine(host, target, known, goal, before)
    steps += renewing
    if goal == old:
        steps.append(WriteFile(releases.state_file(known.engine), lambda host: _undone(host, known, new), 0o640))
    if refusal is not None:
        return Plan((*steps, refusal))
    if not renewing and serving == goal:
        return Plan((*steps, Noop(f"{posixpath.basename(goal)} is in its place, and the engine runs it")))
    return Plan((*steps, Noop(f"{posixpath.basename(goal)} is in its place again, and the engine was started from it")))


def stands(host: Host, target: Target, params: Any, before: Mapping[str, Json]) -> bool:
    """Whether the new release is in its place and the engine runs it. Raises HostError."""
    known = recipe.of(target.settings)
    if known is None or target.unit is None:
        return False
    new = str(before["new"])
    return releases.serving(host, known) == new and releases.runs_from(host, known, target.unit, new)


def _readers(host: Host) -> tuple[str, ...]:
    """The daemon's group, where there is one."""
    return (f"--group={ownership.DAEMON_GROUP}",) if ownership.has_daemon_group(host.files) else ()


def settle(host: Host, target: Target, params: Any, before: Mapping[str, Json]) -> Plan:
    """What release.keep does."""
    return release_keep.plan(host, target, EngineParameters(engine=params.engine))


class _Seen:
    """Whether the engine was seen to generate, from the release that is about to be replaced."""

    def __init__(self) -> None:
        self.generates = False

    def look(self, host: Host, target: Target, known: Recipe, old: str) -> Json:
        """Ask for one token, or see that its users get theirs."""
        users = Users()
        try:
            if not old or target.unit is None or not releases.runs_from(host, known, target.unit, old):
                return False
        except HostError:
            return False
        for _ in range(LOOKS):
            self.generates = generates(host, target, users)
            if self.generates or users.last is None:
                break
            host.clock.sleep(PAUSE_S)
        return self.generates


def _wanted(host: Host, known: Recipe, serving: str, params: Any) -> str | Refuse:
    """The folder of the release that is to serve, there already or to be there by then."""
    if params.release == LAST_PROVEN:
        found = releases.last_proven(host, releases.read(host, known.engine), serving)
        words = "no earlier release has been proven with the driver that is loaded, so there is nothing to go back to"
        return found or Refuse(words, "nothing-proven")
    if params.release:
        return f"{known.releases}/{params.release}"
    return builds.release(known, builds.release_name(host, known, builds.wanted(known, params.commit)))


def _kept(host: Host, known: Recipe) -> tuple[str, list[PlanStep]]:
    """The file that the unit runs, kept as a release: its folder and the steps."""
    digest = releases.sha256(host, known.binary)
    folder = f"{known.releases}/kept-{digest[:12]}"
    fresh = f"{known.releases}/.kept-{digest[:12]}.new"
    content = releases.kept_provenance(digest, host.clock.now().wall)
    return folder, [
        Command(("rm", "--recursive", "--force", "--", fresh), QUICK_S),
        Command(("install", "--directory", "--mode=0755", "--", f"{fresh}/bin"), QUICK_S),
        Command(
            ("cp", "--reflink=auto", "--preserve=mode,timestamps", "--", known.binary, releases.server_of(fresh)),
            COPY_S,
            words=f"keeping {known.binary} as a release",
        ),
        WriteFile(f"{fresh}/{builds.PROVENANCE}", content),
        Command(("sync", "--file-system", fresh), COPY_S),
        Command(("mv", "--no-target-directory", "--", fresh, folder), QUICK_S),
    ]


def _way_back(known: Recipe, old: str) -> list[PlanStep]:
    """The old one beside its place under another name: going back is then a rename, which needs no room."""
    if not old:
        return []
    if known.install == "link":
        return [_link(old, releases.way_back(known))]
    return [Command(("ln", "--force", "--no-target-directory", "--", known.binary, releases.way_back(known)), QUICK_S)]


def _put(known: Recipe, release: str) -> list[PlanStep]:
    """This release in its place, in one step."""
    folder = posixpath.dirname(releases.place(known))
    if known.install == "link":
        made: list[PlanStep] = [_link(release, releases.way_forward(known))]
    else:
        server = releases.server_of(release)
        made = [
            Command(
                ("install", "--mode=0755", "--no-target-directory", "--", server, releases.way_forward(known)), COPY_S
            ),
            Command(("sync", "--", releases.way_forward(known)), COPY_S),
        ]
    return [*made, *_renamed(releases.way_forward(known), releases.place(known), folder)]


def _back(host: Host, known: Recipe, old: str) -> list[PlanStep]:
    """The old release in its place again: by a rename where the way back is still there."""
    if _way_back_leads_to(host, known, old):
        return _renamed(releases.way_back(known), releases.place(known), posixpath.dirname(releases.place(known)))
    return _put(known, old)


def _way_back_leads_to(host: Host, known: Recipe, old: str) -> bool:
    if known.install == "link":
        return releases.pointed_at(host, releases.way_back(known)) == old
    kept = releases.release(host, old)
    return (
        kept is not None
        and host.files.exists(releases.way_back(known))
        and (releases.sha256(host, releases.way_back(known)) == kept.sha256)
    )


def _renamed(from_: str, to: str, folder: str) -> list[PlanStep]:
    return [
        Command(("mv", "--force", "--no-target-directory", "--", from_, to), QUICK_S),
        Command(("sync", "--", folder), COPY_S),
    ]


def _link(target: str, link: str) -> Command:
    return Command(("ln", "--symbolic", "--force", "--no-target-directory", "--", target, link), QUICK_S)


def _goes_on(host: Host, known: Recipe, old: str, new: str) -> bool:
    """Whether this was a way back from a release that did not generate: then its end is the right end."""
    last = releases.read(host, known.engine).switch
    return last is not None and (last.old, last.new) == (old, new) and last.rollback and not last.generated


def _engine(
    host: Host, target: Target, known: Recipe, goal: str, before: Mapping[str, Json]
) -> tuple[Refuse | None, list[PlanStep]]:
    """What it takes so that the engine runs this release, and why that must not be done."""
    state = systemd.unit_state(host, str(before["unit"]))
    if state.active_state == "active" and releases.runs_from(host, known, state.unit, goal):
        return None, []
    refusal = restarting.out_of_service(host, state)
    if refusal is not None and not (before.get("disabled") and refusal.code == "operator-disabled"):
        return refusal, []
    fresh = {**restarting.noted_before(host, state), "disabled": before.get("disabled")}
    return None, restarting.renew(host, target, state, fresh)


def _noted(host: Host, known: Recipe, switch: Switch) -> str:
    """The state with this switch, and with a proof of the old release when it was seen to generate."""
    state = replace(releases.read(host, known.engine), server=known.server, switch=switch)
    if switch.generated:
        state = state.noted(switch.old, releases.proof(host, known))
    return releases.text(state)


def _undone(host: Host, known: Recipe, new: str) -> str:
    state = releases.read(host, known.engine)
    mine = state.switch is not None and state.switch.new == new
    return releases.text(replace(state, switch=None) if mine else state)


ACTION = Action(
    id="release.switch",
    params=ReleaseSwitchParameters,
    risk=Risk.SERVICE,
    plan=plan,
    undo=undo,
    unfit=recipe.unfit,
    replaces_program=True,
    stands=stands,
    settle=settle,
)
