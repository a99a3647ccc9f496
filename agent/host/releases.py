"""The releases of one engine, side by side: which one serves, which were proven, and what the last switch was.

A release is a folder with `bin/llama-server` and `provenance.json`. With install = "link" the unit runs the server
through a link that is replaced in one step; with install = "copy" it runs one file, and the release that serves is the
one whose server has the same SHA-256. Only the runner writes `/var/lib/holdfast-runner/releases/ENGINE.json`; the
daemon reads it. What that file says is about the past: what serves now is always read from the machine.
"""

from __future__ import annotations

import contextlib
import json
import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from agent.errors import CommandFailed, FileTrouble
from agent.host import Host, builds, driver, ownership, process, systemd
from agent.host.recipe import Recipe
from agent.model import Json

STATE = "/var/lib/holdfast-runner/releases"
SERVER = "bin/llama-server"
OWNER = 0
"""Whose the folders must be that root writes to."""
HASH_S = 120.0
"""How long hashing one server may take; a static CUDA build has up to 2 GB."""
KEPT = 50
"""How many proofs are remembered."""


@dataclass(frozen=True, slots=True)
class Proof:
    """A release has served and generated: last when (Unix seconds), and with which driver ("" where it needs none)."""

    at: float
    driver: str = ""


@dataclass(frozen=True, slots=True)
class Switch:
    """The last change of the release that serves. Paths of release folders; at: Unix seconds.

    generated: whether the old one was seen to generate right before. rollback: back to one that was proven earlier.
    settled: whether the new one was proven under the unit since.
    """

    old: str
    new: str
    at: float
    generated: bool = False
    rollback: bool = False
    settled: bool = False


@dataclass(frozen=True, slots=True)
class State:
    """What is remembered of one engine's releases.

    server: the file that the unit runs. proven: by release folder.
    """

    server: str = ""
    proven: Mapping[str, Proof] = field(default_factory=dict)
    switch: Switch | None = None

    def noted(self, release: str, proof: Proof) -> State:
        """This state with one more proof; the oldest are forgotten."""
        all_of_them = {**self.proven, release: proof}
        newest = sorted(all_of_them, key=lambda each: all_of_them[each].at)[-KEPT:]
        return replace(self, proven={each: all_of_them[each] for each in newest})

    def without(self, release: str) -> State:
        """This state with a release forgotten."""
        return replace(self, proven={each: proof for each, proof in self.proven.items() if each != release})


@dataclass(frozen=True, slots=True)
class Release:
    """One release folder of ours. sha256: of its server. at: when it was built or kept (Unix seconds)."""

    path: str
    commit: str
    sha256: str
    at: float

    @property
    def name(self) -> str:
        """The folder's name."""
        return posixpath.basename(self.path)


# --- what is remembered --------------------------------------------------------------------------------------


def state_file(engine: str) -> str:
    """Where an engine's state is kept."""
    return f"{STATE}/{engine}.json"


def read(host: Host, engine: str) -> State:
    """What is remembered; nothing where there is no such file, or one that is not understood. Raises FileTrouble."""
    try:
        said: Json = json.loads(host.files.read_text(state_file(engine)))
        return _state(said)
    except FileTrouble as trouble:
        if trouble.kind == "missing":
            return State()
        raise
    except (ValueError, KeyError, TypeError, AttributeError):
        return State()


def text(state: State) -> str:
    """The state file's text."""
    switch = state.switch
    return json.dumps(
        {
            "server": state.server,
            "proven": {path: {"at": proof.at, "driver": proof.driver} for path, proof in state.proven.items()},
            "switch": None
            if switch is None
            else {
                "from": switch.old,
                "to": switch.new,
                "at": switch.at,
                "generated": switch.generated,
                "rollback": switch.rollback,
                "settled": switch.settled,
            },
        },
        indent=1,
        sort_keys=True,
    )


def _state(said: Json) -> State:
    switch = said["switch"]
    return State(
        server=str(said["server"]),
        proven={str(path): Proof(float(each["at"]), str(each["driver"])) for path, each in said["proven"].items()},
        switch=None
        if switch is None
        else Switch(
            str(switch["from"]),
            str(switch["to"]),
            float(switch["at"]),
            bool(switch["generated"]),
            bool(switch["rollback"]),
            bool(switch["settled"]),
        ),
    )


# --- what is there -------------------------------------------------------------------------------------------


def place(recipe: Recipe) -> str:
    """What is replaced by a switch: the link, or the file."""
    return recipe.current if recipe.install == "link" else recipe.binary


def way_forward(recipe: Recipe) -> str:
    """Beside the place: what is renamed over it."""
    return _beside(recipe, "new")


def way_back(recipe: Recipe) -> str:
    """Beside the place: what was there before the last switch, until it is proven."""
    return _beside(recipe, "back")


def _beside(recipe: Recipe, word: str) -> str:
    folder, name = posixpath.split(place(recipe))
    return posixpath.join(folder, f".{name}.{word}")


def server_of(release: str) -> str:
    """The server in a release folder."""
    return f"{release}/{SERVER}"


def release(host: Host, path: str) -> Release | None:
    """The release in this folder, None when it is none of ours (no provenance, or one that is not understood)."""
    try:
        said = json.loads(host.files.read_text(f"{path}/{builds.PROVENANCE}"))
        return Release(path, str(said["commit"]), str(said["sha256"][SERVER]), float(said["at"]))
    except (FileTrouble, ValueError, KeyError, TypeError):
        return None


def kept_provenance(digest: str, at: float) -> str:
    """The provenance of a file that was there before Holdfast and is kept as a release."""
    known = {"commit": "", "kept": True, "sha256": {SERVER: digest}, "at": at}
    return json.dumps(known, indent=1, sort_keys=True) + "\n"


def releases(host: Host, recipe: Recipe) -> tuple[Release, ...]:
    """Every release of ours in the folder, oldest first. Raises FileTrouble."""
    if not host.files.exists(recipe.releases):
        return ()
    names = [name for name in host.files.listdir(recipe.releases) if not name.startswith(".")]
    found = (release(host, f"{recipe.releases}/{name}") for name in names)
    return tuple(sorted((each for each in found if each is not None), key=lambda each: (each.at, each.name)))


def serving(host: Host, recipe: Recipe) -> str:
    """The folder of the release that the unit's server is from, "" when it is from none.

    With "link" whatever folder the link leads to, one of ours or not; with "copy" the release whose server the file
    is. Raises FileTrouble and CommandFailed.
    """
    if recipe.install == "link":
        return pointed_at(host, recipe.current)
    if not host.files.exists(recipe.binary):
        return ""
    digest = sha256(host, recipe.binary)
    return next((each.path for each in reversed(releases(host, recipe)) if each.sha256 == digest), "")


def pointed_at(host: Host, link: str) -> str:
    """Where a link leads, as an absolute path; "" when there is no link. Raises FileTrouble."""
    try:
        if not host.files.stat(link).is_link:
            return ""
    except FileTrouble as trouble:
        if trouble.kind == "missing":
            return ""
        raise
    return posixpath.normpath(posixpath.join(posixpath.dirname(link), host.files.readlink(link)))


def sha256(host: Host, path: str) -> str:
    """The SHA-256 of a file. Raises CommandFailed."""
    done = host.run(("sha256sum", "--", path), timeout_s=HASH_S)
    if done.rc != 0 or not re.match(r"\\?[0-9a-f]{64} ", done.stdout):
        raise CommandFailed(f"the checksum of {path} cannot be taken: exit {done.rc}", where=path)
    return done.stdout.lstrip("\\")[:64]


def runs_from(host: Host, recipe: Recipe, unit: str, wanted: str) -> bool:
    """Whether a process of the unit runs this release's server. False when nothing runs. Raises HostError."""
    group = systemd.unit_state(host, unit).control_group
    programs = {pid: _program(host, pid) for pid in (process.cgroup_pids(host, group) if group else ())}
    if recipe.install == "link":
        try:
            place = host.files.realpath(server_of(wanted))
        except FileTrouble:
            return False
        return place in programs.values()
    known = release(host, wanted)
    if known is None:
        return False
    # The file is renamed over: what runs may be shown under this name or as deleted, so its content decides.
    same_name = [pid for pid, program in programs.items() if program.removesuffix(" (deleted)") in _names(host, recipe)]
    return any(sha256(host, f"/proc/{pid}/exe") == known.sha256 for pid in same_name)


def program_names(host: Host, unit: str) -> tuple[str, ...]:
    """The programs that the unit's processes run, as the kernel names them. Raises HostError."""
    group = systemd.unit_state(host, unit).control_group
    found = {_program(host, pid) for pid in (process.cgroup_pids(host, group) if group else ())}
    return tuple(sorted(each for each in found if each))


def _names(host: Host, recipe: Recipe) -> tuple[str, ...]:
    """The names under which the kernel may know the one file: its own, and those of the ways to and fro."""
    folder = posixpath.dirname(recipe.binary)
    with contextlib.suppress(FileTrouble):
        folder = host.files.realpath(folder)
    return tuple(
        f"{folder}/{posixpath.basename(each)}" for each in (recipe.binary, way_forward(recipe), way_back(recipe))
    )


def _program(host: Host, pid: int) -> str:
    try:
        return host.files.readlink(f"/proc/{pid}/exe")
    except FileTrouble:
        return ""


def proof(host: Host, recipe: Recipe) -> Proof:
    """What is noted of a release that generates now. Raises FileTrouble."""
    return Proof(host.clock.now().wall, (driver.loaded_version(host) or "") if recipe.cuda else "")


def last_proven(host: Host, state: State, but: str) -> str:
    """The release that was proven last, other than `but`, is still there and fits the loaded driver; "" for none.

    One that was proven with another driver has not been proven. Raises FileTrouble.
    """
    loaded = driver.loaded_version(host) or ""
    for path in sorted(state.proven, key=lambda each: state.proven[each].at, reverse=True):
        fits = state.proven[path].driver in ("", loaded)
        if path != but and fits and host.files.exists(server_of(path)):
            return path
    return ""


def in_use(host: Host) -> frozenset[str]:
    """Release folders that some engine serves from, is to fall back to, or has a process of. Raises FileTrouble.

    Engines may share a folder of releases: what belongs to another one must stay.
    """
    found: set[str] = set()
    names = host.files.listdir(STATE) if host.files.exists(STATE) else []
    for name in names:
        if not name.endswith(".json"):
            continue
        state = read(host, name.removesuffix(".json"))
        target = pointed_at(host, state.server.removesuffix(f"/{SERVER}")) if state.server else ""
        # Newest and newest but one: where the file was copied, only the proofs say what serves.
        newest = last_proven(host, state, "")
        found.update(each for each in (target, newest, last_proven(host, state, target or newest)) if each)
        if state.switch is not None and not state.switch.settled:
            found.update((state.switch.old, state.switch.new))
    for pid in host.files.listdir("/proc"):
        program = _program(host, int(pid)) if pid.isdecimal() else ""
        if program.endswith(f"/{SERVER}"):
            found.add(program.removesuffix(f"/{SERVER}"))
    return frozenset(found)


def not_ours_alone(host: Host, recipe: Recipe) -> str:
    """Why root must not write where the releases lie: somebody else could, too. "" when nobody else can.

    Raises FileTrouble.
    """
    folders = [recipe.releases, posixpath.dirname(recipe.current if recipe.install == "link" else recipe.binary)]
    for folder in folders:
        try:
            place = host.files.realpath(folder)
        except FileTrouble as trouble:
            if trouble.kind == "missing":
                continue
            raise
        wrong = ownership.mistake(host.files, place, OWNER)
        if wrong is not None:
            return f"{folder}: {wrong.wrong} ({wrong.allowed})"
    return ""
