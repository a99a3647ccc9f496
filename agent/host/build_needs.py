"""Everything that must be true before a build is worth its minutes: asked on a Tuesday, and again before each one."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass

from agent.errors import CommandFailed, FileTrouble, HostError
from agent.host import (
    Host,
    Space,
    build_unit,
    builds,
    driver,
    llama_source,
    ownership,
    process,
    systemd,
    toolchain,
)
from agent.host.recipe import BUILD_USER, Recipe

WORK_MIB, CUDA_WORK_MIB, CARD_WORK_MIB = 1024, 2048, 1024
"""What source and objects take: 0.6 GiB on the CPU at b10018; CUDA's kernels come once for each kind of card."""
RELEASE_MIB, CARD_RELEASE_MIB = 128, 512
"""What a release takes: its libraries, of which that of the kernels grows with each kind of card."""
GROWTH = 1.25
"""How much more than last time a build may take."""
RESERVE_MIB = 256
"""What stays free on the disk."""
LINKS_FOLLOWED = 64
"""So many parts of a path are looked at, links included; the kernel gives up after 40 links."""


@dataclass(frozen=True, slots=True)
class Survey:
    """What was found. problems: why it cannot be built now; notes: what to know of it; the others in words."""

    problems: tuple[str, ...]
    notes: tuple[str, ...]
    source: str
    tools: str
    room: str


def survey(host: Host, recipe: Recipe, unit: str | None, commit: str) -> Survey:
    """Look at all of it, and never stop at the first thing that is wrong."""
    problems: list[str] = []
    notes: list[str] = []
    if not _user_exists(host):
        problems.append(f"there is no user {BUILD_USER}: reinstall the package, or run systemd-sysusers")
        source = tools = "not asked, for want of a user to ask as"
    else:
        source = _source(host, recipe, commit, problems, notes)
        tools = _tools(host, recipe, problems)
    problems += [
        f"{walls} is missing, and nothing new runs without its walls: reinstall the package"
        for walls in (build_unit.WALLS, build_unit.TRIAL_WALLS)
        if not host.files.exists(walls)
    ]
    room = _room(host, recipe, problems)
    problems += _places(host, recipe)
    problems += _unit(host, recipe, unit)
    return Survey(tuple(problems), tuple(notes), source, tools, room)


def _user_exists(host: Host) -> bool:
    try:
        return host.run(["id", "--user", BUILD_USER], timeout_s=5.0).rc == 0
    except CommandFailed:
        return False


# --- source and tools ----------------------------------------------------------------------------------------


def _source(host: Host, recipe: Recipe, commit: str, problems: list[str], notes: list[str]) -> str:
    problem = llama_source.problem(host, recipe, commit)
    if problem:
        problems.append(problem)
        return "the source cannot be used"
    moved = llama_source.moved_tag(host, recipe, commit)
    if moved == "nowhere":
        notes.append(f"tag {recipe.tag} is not in {recipe.source}: the commit counts")
    elif moved:
        notes.append(f"tag {recipe.tag} points at {moved[:12]} by now: the commit counts")
    found = llama_source.identity(host, recipe, commit)
    number = f", build {found.number}" if found.number else ""
    return f"{found.tag or 'untagged'} ({commit[:12]}{number}) is in {recipe.source}"


def _tools(host: Host, recipe: Recipe, problems: list[str]) -> str:
    compiler = toolchain.compiler(recipe)
    asked = {name: toolchain.tool(host, name) for name in ("git", "cmake", compiler, "tar")}
    missing = [name for name, found in asked.items() if found is None]
    generator = toolchain.generator(host)
    if not generator:
        missing.append("ninja or make")
    if missing:
        packages = "apt-get install git cmake g++ make tar"
        problems.append(f"missing, or not to be started by {BUILD_USER}: {', '.join(missing)} ({packages})")
    words = [found.version for found in asked.values() if found is not None] + ([generator] if generator else [])
    words += ["ccache"] if toolchain.tool(host, "ccache") else []
    if recipe.cuda:
        words.append(_cuda(host, recipe, problems))
    return ", ".join(words)


def _cuda(host: Host, recipe: Recipe, problems: list[str]) -> str:
    kit = toolchain.cuda(host, recipe)
    if kit is None:
        problems.append("there is no nvcc (on the path or in /usr/local/cuda): -DGGML_CUDA=ON needs a CUDA toolkit")
    wanted = toolchain.architectures(host, recipe)
    loaded = driver.loaded_version(host)
    if not wanted:
        how = "NVML shows no card" if loaded else "no NVIDIA driver is loaded"
        problems.append(f"which cards to build for is not known: {how}, and [engine.rebuild] architectures is empty")
    elif kit is not None:
        problems += filter(
            None, (toolchain.cuda_problem(host, recipe, kit), toolchain.toolkit_problem(kit, wanted, loaded))
        )
    cards = ", ".join(wanted) or "unknown cards"
    return f"CUDA {kit.version if kit else 'missing'} for {cards}, driver {loaded or 'not loaded'}"


# --- room ----------------------------------------------------------------------------------------------------


def _room(host: Host, recipe: Recipe, problems: list[str]) -> str:
    past = builds.last(host, recipe)
    kinds = max(1, len(toolchain.architectures(host, recipe))) if recipe.cuda else 0
    work_mib = _needed(past.work_bytes if past else 0, CUDA_WORK_MIB + kinds * CARD_WORK_MIB if kinds else WORK_MIB)
    # Packed and unpacked: the archive lies in the work, the release beside the others.
    release_mib = _needed(past.release_bytes if past else 0, RELEASE_MIB + kinds * CARD_RELEASE_MIB)
    words: list[str] = []
    needs = [(builds.CACHE, work_mib + release_mib), (recipe.releases, release_mib)]
    try:
        spaces = [(path, mib, _space(host, path)) for path, mib in needs]
        if len({(space.bytes_total, space.bytes_free) for _, _, space in spaces}) == 1:
            spaces = [(builds.CACHE, work_mib + 2 * release_mib, spaces[0][2])]
        for path, mib, space in spaces:
            free = space.bytes_free >> 20
            words.append(f"{free} MiB free for {path}")
            if space.read_only:
                problems.append(f"{path} is on a file system that is mounted read-only")
            elif free < mib + RESERVE_MIB:
                problems.append(f"{path} has {free} MiB free, a build needs about {mib + RESERVE_MIB}")
    except FileTrouble as trouble:
        problems.append(f"how much room there is cannot be told: {trouble.message}")
    try:
        granted = build_unit.limits(host, recipe)
    except HostError as error:
        problems.append(f"how much memory is free cannot be told: {error.message}")
        return ", ".join(words)
    if not granted.enough:
        least = build_unit.LEAST_MIB
        problems.append(f"{granted.memory_mib} MiB of memory are left for it, a compiler needs {least}")
    return ", ".join((*words, f"{granted.jobs} compilers in {granted.memory_mib} MiB of memory"))


def _needed(last_bytes: int, otherwise_mib: int) -> int:
    return int(last_bytes * GROWTH) >> 20 or otherwise_mib


def _space(host: Host, path: str) -> Space:
    """The room where the path is, or will be. Raises FileTrouble."""
    while path != "/" and not host.files.exists(path):
        path = posixpath.dirname(path)
    return host.files.space(path)


# --- places and unit -----------------------------------------------------------------------------------------


def _places(host: Host, recipe: Recipe) -> Iterator[str]:
    """Why root must not write where the releases go, or cannot do it in one step."""
    target = recipe.current if recipe.install == "link" else recipe.binary
    try:
        for folder in dict.fromkeys((recipe.releases, posixpath.dirname(target))):
            place = folder
            while place != "/" and not host.files.exists(place):
                place = posixpath.dirname(place)
            wrong = ownership.mistake(host.files, host.files.realpath(place), 0)
            if wrong is not None:
                yield f"{wrong.file}: {wrong.wrong} ({wrong.allowed})"
        if host.files.exists(target):
            is_link = host.files.stat(target).is_link
            if recipe.install == "link" and not is_link:
                yield f"{target} is no link: move what is there below {recipe.releases}, and link to it once"
            if recipe.install == "copy" and is_link:
                yield f'{target} is a link: say install = "link", or make it a file'
    except FileTrouble as trouble:
        yield f"where the releases go cannot be looked at: {trouble.message}"


def _unit(host: Host, recipe: Recipe, unit: str | None) -> Iterator[str]:
    if unit is None:
        yield f"{recipe.engine} has no unit here, so nobody would start what is built"
        return
    try:
        building = systemd.unit_state(host, builds.unit(recipe))
        if building.main_pid or building.active_state in ("activating", "deactivating"):
            yield f"{building.unit} is at work already"
        state = systemd.unit_state(host, unit)
        if state.load_state == "not-found":
            yield f"systemd knows no {unit}"
            return
        program = systemd.program(host, unit)
        if not _is_ours(host, recipe, program, state):
            yield f"{unit} runs {program or 'nothing'}, not {recipe.server}: what is built would not be used"
    except HostError as error:
        yield f"what {unit} runs cannot be told: {error.message}"


def _is_ours(host: Host, recipe: Recipe, program: str, state: systemd.UnitState) -> bool:
    """Whether the unit runs the file that a rebuild replaces: by its own words, or by what really runs (a wrapper).

    A unit that names one release itself runs that one for ever, wherever the link leads, today to the same one.
    """
    names = {recipe.server, _real(host, recipe.server)} - {""}
    if recipe.install == "copy" and {program, _real(host, program)} & names:
        return True
    if recipe.install == "link" and (program == recipe.server or _leads_over(host, program, recipe.current)):
        return True
    if recipe.install == "link" and _real(host, program).startswith(f"{_real(host, recipe.releases)}/"):
        return False
    pids = process.cgroup_pids(host, state.control_group) if state.control_group else ()
    return any(_running(host, pid) in names for pid in pids)


def _leads_over(host: Host, path: str, link: str) -> bool:
    """Whether a path leads over this link, by its own words or through other links."""
    names = {link, f"{_real(host, posixpath.dirname(link))}/{posixpath.basename(link)}"}
    place, parts = "", path.strip("/").split("/")
    for _ in range(LINKS_FOLLOWED):
        if not parts:
            return False
        parent, place = place or "/", f"{place}/{parts.pop(0)}"
        if place in names:
            return True
        try:
            if host.files.stat(place).is_link:
                target = posixpath.normpath(posixpath.join(parent, host.files.readlink(place)))
                place, parts = "", [*target.strip("/").split("/"), *parts]
        except FileTrouble:
            return False
    return False


def _real(host: Host, path: str) -> str:
    try:
        return host.files.realpath(path) if path else ""
    except FileTrouble:
        return ""


def _running(host: Host, pid: int) -> str:
    try:
        return re.sub(r" \(deleted\)$", "", host.files.readlink(f"/proc/{pid}/exe"))
    except FileTrouble:
        return ""
