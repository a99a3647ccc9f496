"""Where builds of llama.cpp lie, what a release is called, and what is remembered of earlier builds.

    /var/cache/holdfast-build/ENGINE/        root's; says which release is being built (RELEASE)
        work/                                holdfast-build's alone: src, build, home, tmp, ccache
    RELEASES/.NAME.new/                      root's: what was built, before anyone depends on it (staging)
    RELEASES/NAME/                           a release
    /var/lib/holdfast-runner/builds/ENGINE/  logs and the durations of earlier builds

The same paths each time, so that ccache finds again what it knows. Nothing here changes the machine.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

from agent.errors import FileTrouble, HostError
from agent.host import Host, llama_source, toolchain
from agent.host.recipe import Recipe

CACHE = "/var/cache/holdfast-build"
RECORDS = "/var/lib/holdfast-runner/builds"
PROVENANCE = "provenance.json"
"""In each release: what it was made of, by what, and how long that took."""
LOGS_KEPT = 10
HISTORY_KEPT = 10


@dataclass(frozen=True, slots=True)
class Past:
    """How an earlier build went. at: Unix seconds; the others seconds and bytes; cuda: a build for NVIDIA cards."""

    at: float
    release: str
    commit: str
    cuda: bool
    jobs: int
    configure_s: float
    compile_s: float
    work_bytes: int
    release_bytes: int


# --- paths ---------------------------------------------------------------------------------------------------


def unit(recipe: Recipe) -> str:
    """The transient unit that a build runs in."""
    return f"holdfast-build-{recipe.engine}.service"


def folder(recipe: Recipe) -> str:
    """Root's folder of this engine's builds."""
    return f"{CACHE}/{recipe.engine}"


def work(recipe: Recipe) -> str:
    """The folder that the build user owns: all that a build may write."""
    return f"{folder(recipe)}/work"


def source_tree(recipe: Recipe) -> str:
    """Where the tree of the commit is exported to."""
    return f"{work(recipe)}/src"


def build_tree(recipe: Recipe) -> str:
    """Where cmake builds; what it made lies in bin/ there."""
    return f"{work(recipe)}/build"


def begun(recipe: Recipe) -> str:
    """The file that says which commit is being built, and as which release: removed with the work."""
    return f"{folder(recipe)}/release"


def staging(recipe: Recipe, name: str) -> str:
    """Where a release lies until it is proven and gets its name."""
    return f"{recipe.releases}/.{name}.new"


def release(recipe: Recipe, name: str) -> str:
    """Where a release lies."""
    return f"{recipe.releases}/{name}"


def records(recipe: Recipe) -> str:
    """The folder of the logs and of what is known of earlier builds."""
    return f"{RECORDS}/{recipe.engine}"


# --- names ---------------------------------------------------------------------------------------------------


def wanted(recipe: Recipe, commit: str) -> str:
    """The commit to build: the one asked for, or the configured one."""
    return commit or recipe.commit


def base_name(host: Host, recipe: Recipe, commit: str) -> str:
    """What a build of this commit is called on this host: TAG-COMMIT12+cpu, or …+cuda12.8+sm89.

    What cannot be told is left out: a build that needs it is refused by build.check. Never raises for it.
    """
    tag = llama_source.tag(host, recipe, commit) or "untagged"
    name = f"{tag}-{commit[:12]}"
    if not recipe.cuda:
        return f"{name}+cpu"
    kit = toolchain.cuda(host, recipe)
    names = (each.partition("-")[0] for each in toolchain.architectures(host, recipe))
    return f"{name}+cuda{kit.version if kit else ''}+sm{'-'.join(names)}"


def release_name(host: Host, recipe: Recipe, commit: str) -> str:
    """The name of the release that is being built of this commit, or that the next build of it gets.

    A second build of the same gets `.2`. The name stays what it is from build.export until the work is removed (by
    release.keep, or by an undo), also when the release has been installed meanwhile. Raises FileTrouble.
    """
    base = base_name(host, recipe, commit)
    return _begun_as(host, recipe, commit, base) or free_name(host, recipe, base)


def free_name(host: Host, recipe: Recipe, base: str) -> str:
    """The first name of this kind that no release has. Raises FileTrouble."""
    taken = set(host.files.listdir(recipe.releases)) if host.files.exists(recipe.releases) else set()
    number = 2
    name = base
    while name in taken:
        name, number = f"{base}.{number}", number + 1
    return name


def _begun_as(host: Host, recipe: Recipe, commit: str, base: str) -> str:
    """The name that a build in flight, of this commit with these facts, was given; "" for none."""
    try:
        known, _, name = host.files.read_text(begun(recipe), 4096).strip().partition(" ")
    except FileTrouble:
        return ""
    return name if known == commit and (name == base or name.startswith(f"{base}.")) and "/" not in name else ""


# --- what is remembered --------------------------------------------------------------------------------------


def history(host: Host, recipe: Recipe) -> tuple[Past, ...]:
    """Earlier builds on this host, the newest first; none when nothing readable is there."""
    try:
        found = json.loads(host.files.read_text(f"{records(recipe)}/history.json"))
        return tuple(Past(**{each.name: entry[each.name] for each in fields(Past)}) for entry in found)
    except (HostError, ValueError, TypeError, KeyError):
        return ()


def history_text(known: Sequence[Past], latest: Past) -> str:
    """What is kept once one more build has succeeded."""
    return json.dumps([asdict(each) for each in (latest, *known)][:HISTORY_KEPT], indent=1) + "\n"


def last(host: Host, recipe: Recipe) -> Past | None:
    """The newest earlier build of the same kind: with or without CUDA."""
    return next((each for each in history(host, recipe) if each.cuda == recipe.cuda), None)


def logs(host: Host, recipe: Recipe) -> tuple[str, ...]:
    """The names of the logs that are kept, the oldest first."""
    try:
        names = host.files.listdir(records(recipe))
    except FileTrouble:
        return ()
    return tuple(sorted(each for each in names if each.endswith(".log")))


def next_log(host: Host, recipe: Recipe, name: str) -> str:
    """The path of the next build's log: numbered, because a plan that is approved must not depend on the clock."""
    numbers = [int(each.partition("-")[0]) for each in logs(host, recipe) if each.partition("-")[0].isdecimal()]
    return f"{records(recipe)}/{max(numbers, default=0) + 1:06d}-{name}.log"
