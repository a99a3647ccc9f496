"""Configure and compile as the build user behind walls, and put what came out where root alone can write.

The build runs in a transient unit of its own with a limit on memory and the last place in every queue, so that the
engine serves on. It says how far it is, its log is kept, and the first error in it is the reason of a failure. What it
made is packed by the build user and unpacked by root into a folder that nobody else can enter until it has been looked
at: only plain files, owned by root, and links among them.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping
from typing import Any

from agent.actions._building import BuildParameters
from agent.host import Host, build_options, build_result, build_unit, builds
from agent.host.build_result import Spent
from agent.host.build_unit import Limits, Watch
from agent.host.builds import Past
from agent.host.recipe import BUILD_USER, Recipe, of, unfit
from agent.model import Json, Risk
from agent.plugin import (
    Action,
    Command,
    Condition,
    Noop,
    Plan,
    PlanStep,
    Progress,
    Read,
    Refuse,
    RemoveFile,
    Target,
    Wait,
    WriteFile,
)

START_S = 60.0
"""How long systemd may take to start the unit, behind its walls, on a busy host."""
STOP_S = 60.0
REMOVE_S = 300.0
PACK_S = 600.0
FOLDER_S = 30.0
PACKED = "release.tar"
GRACE_S = 60.0
"""How much longer than the unit's own limit is waited for it."""
GONE = (0, 5)
"""systemctl's status for a unit that is not loaded (any more): as good as stopped."""


class _Build:
    """One build as it is planned: the names and limits that all its steps share, and what it took so far."""

    def __init__(self, host: Host, recipe: Recipe, commit: str) -> None:
        self.recipe, self.commit = recipe, commit
        self.name = builds.release_name(host, recipe, commit)
        self.staging = builds.staging(recipe, self.name)
        self.log = builds.next_log(host, recipe, self.name)
        self.granted: Limits = build_unit.limits(host, recipe)
        self.past = builds.history(host, recipe)
        last = builds.last(host, recipe)
        self.configuring = self._watch(
            "configuring", last.configure_s if last else None, last.compile_s if last else 0.0
        )
        self.compiling = self._watch("compiling", last.compile_s if last else None, 0.0)
        self.size = 0

    def _watch(self, words: str, expected_s: float | None, after_s: float) -> Watch:
        place = builds.work(self.recipe)
        return Watch(builds.unit(self.recipe), self.log, place, words, self.granted, expected_s, after_s)

    def spent(self, host: Host) -> Spent:
        """What it took, once it is over."""
        return Spent(self.configuring.took_s, self.compiling.took_s, build_result.work_bytes(host, self.recipe))

    def provenance(self, host: Host) -> str:
        """The release's provenance, once it is unpacked."""
        spent = self.spent(host)
        found = build_result.provenance(host, self.recipe, self.commit, self.name, self.granted, spent)
        self.size = int(found["bytes"])
        return build_result.provenance_text(found)

    def history(self, host: Host) -> str:
        """What is known of builds, with this one."""
        spent = self.spent(host)
        latest = Past(
            at=host.clock.now().wall,
            release=self.name,
            commit=self.commit,
            cuda=self.recipe.cuda,
            jobs=self.granted.jobs,
            configure_s=spent.configure_s,
            compile_s=spent.compile_s,
            work_bytes=spent.work_bytes,
            release_bytes=self.size,
        )
        return builds.history_text(self.past, latest)


def plan(host: Host, target: Target, params: Any) -> Plan:
    """Log, configure, compile, pack, unpack, look, describe."""
    recipe = of(target.settings)
    if recipe is None:
        return Plan((Refuse(unfit(target.settings), "no-recipe"),))
    build = _Build(host, recipe, builds.wanted(recipe, params.commit))
    steps = (
        *_logging(host, build),
        *_stopped(builds.unit(recipe)),
        *_part(build, build_options.configure(host, recipe, build.commit), build.configuring),
        *_part(build, build_options.compile_and_link(recipe, build.granted.jobs), build.compiling),
        *_taken_over(build),
        Read("what was built", lambda _: _summary(build), sums_up=True),
    )
    return Plan(steps, {"staging": build.staging, "unit": builds.unit(recipe), "log": build.log})


def undo(host: Host, target: Target, params: Any, before: Mapping[str, Json]) -> Plan:
    """Stop the build, and remove what it made; its log stays."""
    unit, staging = str(before["unit"]), str(before["staging"])
    return Plan(
        (
            *_stopped(unit),
            Command(("rm", "--recursive", "--force", "--one-file-system", "--", staging), REMOVE_S),
            Noop(f"the build was stopped and what it made removed; its log is {before['log']}"),
        )
    )


def _stopped(unit: str) -> tuple[PlanStep, ...]:
    """No build of this engine runs, and systemd has forgotten the last one."""
    return (
        Command(("systemctl", "stop", unit), STOP_S, accept=GONE),
        Command(("systemctl", "reset-failed", unit), START_S, accept=(0, 1)),
    )


def _logging(host: Host, build: _Build) -> Iterator[PlanStep]:
    """An empty log for the daemon's group to read; the oldest logs go."""
    place = builds.records(build.recipe)
    yield Command(("install", "--directory", "--group=holdfast", "--mode=0750", place), FOLDER_S)
    for name in builds.logs(host, build.recipe)[: -(builds.LOGS_KEPT - 1)]:
        yield RemoveFile(f"{place}/{name}")
    yield WriteFile(build.log, "", 0o640)


def _part(build: _Build, command: tuple[str, ...], watch: Watch) -> tuple[PlanStep, ...]:
    """One part of the build, from its start to its end."""
    unit, recipe = builds.unit(build.recipe), build.recipe
    words = f"{watch.words} {build.name}"
    ended = Condition(
        f"{watch.words} has ended", watch.ended, ("systemctl", "show", "--property=SubState,Result", unit)
    )
    return (
        Command(build_unit.start(recipe, build.log, build.granted, command), START_S, words=words),
        Wait(
            ended,
            recipe.timeout_s + GRACE_S,
            why=f"{words} did not end in time ([engine.rebuild] timeout_s)",
            code="build-timeout",
            progress=lambda host: _progress(host, words, watch),
        ),
        Command(("systemctl", "stop", unit), STOP_S, accept=GONE),
    )


def _progress(host: Host, words: str, watch: Watch) -> Progress:
    percent, left_s = watch.how_far(host)
    return Progress(words, percent, left_s)


def _taken_over(build: _Build) -> tuple[PlanStep, ...]:
    """What was built, in root's hands: packed by the build user, unpacked where nobody else can look yet."""
    staging, work = build.staging, builds.work(build.recipe)
    looked_at = Condition(
        "what was built is plain files and links among them",
        lambda host: bool(build_result.contents(host, staging).files),
        ("find", staging, "-ls"),
    )
    unpack = ("tar", "--extract", f"--file={work}/{PACKED}", "--no-same-owner", "--no-same-permissions")
    return (
        _as_builder(work, "rm", "--force", "--", PACKED),
        _as_builder(work, "tar", "--create", f"--file={PACKED}", "--directory=build", "bin"),
        Command(("rm", "--recursive", "--force", "--one-file-system", "--", staging), REMOVE_S),
        Command(("install", "--directory", "--mode=0755", posixpath.dirname(staging)), FOLDER_S),
        Command(("install", "--directory", "--mode=0700", staging), FOLDER_S),
        Command(unpack, PACK_S, cwd=staging, interruptible=True),
        Wait(looked_at, 0.0, why="the build made no file"),
        WriteFile(f"{staging}/{builds.PROVENANCE}", build.provenance),
        WriteFile(f"{builds.records(build.recipe)}/history.json", build.history, 0o640),
        Command(("chmod", "--recursive", "u=rwX,go=rX", "--", staging), FOLDER_S),
        _as_builder(work, "rm", "--force", "--", PACKED),
    )


def _as_builder(work: str, *argv: str) -> Command:
    """What is done in the work folder is done by its owner."""
    return Command(argv, PACK_S, user=BUILD_USER, cwd=work, interruptible=True)


def _summary(build: _Build) -> str:
    took = build.configuring.took_s + build.compiling.took_s
    return f"{build.name} in {took:.0f} s with {build.granted.jobs} compilers at once; log: {build.log}"


ACTION = Action(id="build.compile", params=BuildParameters, risk=Risk.NONE, plan=plan, undo=undo, unfit=unfit)
