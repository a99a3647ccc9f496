"""What a build has made, once root has unpacked it where nobody else can reach it: looked at, measured, described.

The archive was made by the build user. Only plain files, folders and links within one folder are taken over; anything
else in it (a device, a set-user-ID bit, a link that leads elsewhere) is a reason to trust none of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from agent.errors import CommandFailed, HostError
from agent.host import Host, build_options, builds, driver, llama_source, toolchain
from agent.host.build_unit import Limits
from agent.host.recipe import Recipe
from agent.model import Json

SERVER = f"bin/{build_options.TARGET}"
LOOK_S = 60.0
HASH_S = 300.0
_ENTRY = re.compile(r"^(.)\t(\d+)\t(\d+)\t(\d+)\t([^\t]*)\t([^\t]*)$", re.DOTALL)
_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,127}$")


@dataclass(frozen=True, slots=True)
class Contents:
    """What lies in a release: plain files with their sizes in bytes, and links with what they say."""

    files: Mapping[str, int]
    links: Mapping[str, str]

    @property
    def size(self) -> int:
        """All of it, bytes."""
        return sum(self.files.values())


@dataclass(frozen=True, slots=True)
class Spent:
    """What one build took: seconds, and bytes for source and objects."""

    configure_s: float
    compile_s: float
    work_bytes: int = 0


def contents(host: Host, folder: str) -> Contents:
    """What was unpacked there. Raises HostError when there is anything that no release has, or no server in it."""
    listed = host.run(["find", folder, "-printf", r"%y\t%m\t%U\t%s\t%P\t%l\0"], timeout_s=LOOK_S, limit=1 << 20)
    if listed.rc != 0:
        raise CommandFailed(f"{folder} cannot be looked at", where=folder)
    files: dict[str, int] = {}
    links: dict[str, str] = {}
    for line in filter(None, listed.stdout.split("\0")):
        found = _ENTRY.match(line)
        if found is None:
            raise HostError("the build made a file with a name that no release has", where=folder)
        kind, mode, owner, size, path, target = found.groups()
        if path in ("", "bin") and kind == "d":
            continue
        if not path.startswith("bin/") or not _NAME.match(path.removeprefix("bin/")):
            raise HostError(f"the build made {path[:80]!r}, which has no place in a release", where=folder)
        if kind == "l" and _NAME.match(target):
            links[path] = target
        elif kind == "f" and owner == "0" and int(mode, 8) & 0o7000 == 0:
            files[path] = int(size)
        else:
            raise HostError(
                f"the build made {path[:80]!r}, which is no plain file (type {kind}, mode {mode})", where=folder
            )
    if SERVER not in files:
        raise HostError(f"the build made no {SERVER}", where=folder)
    return Contents(files, links)


def provenance(host: Host, recipe: Recipe, commit: str, name: str, granted: Limits, spent: Spent) -> dict[str, Json]:
    """What a release was made of, by what, and how long that took. Raises HostError."""
    folder = builds.staging(recipe, name)
    found = contents(host, folder)
    known = llama_source.identity(host, recipe, commit)
    cmake = toolchain.tool(host, "cmake")
    compiler = toolchain.tool(host, toolchain.compiler(recipe))
    kit = toolchain.cuda(host, recipe)
    return {
        "engine": recipe.engine,
        "release": name,
        "commit": commit,
        "tag": known.tag,
        "build": known.number,
        "at": host.clock.now().wall,
        "toolkit": kit.version if kit else None,
        "architectures": list(toolchain.architectures(host, recipe)),
        "driver": driver.loaded_version(host) if recipe.cuda else None,
        "compiler": compiler.version if compiler else None,
        "cmake": cmake.version if cmake else None,
        "generator": toolchain.generator(host),
        "options": list(build_options.options(host, recipe, commit)),
        "jobs": granted.jobs,
        "memory_mib": granted.memory_mib,
        "configure_s": round(spent.configure_s, 1),
        "compile_s": round(spent.compile_s, 1),
        "bytes": found.size,
        "links": dict(found.links),
        "sha256": digests(host, folder, tuple(found.files)),
    }


def provenance_text(found: Mapping[str, Json]) -> str:
    """As it lies in a release."""
    return json.dumps(dict(found), indent=1, sort_keys=True) + "\n"


def digests(host: Host, folder: str, names: tuple[str, ...]) -> dict[str, Json]:
    """The SHA-256 of each file, by its name relative to the folder. Raises CommandFailed."""
    done = host.run(["sha256sum", "--zero", "--", *names], timeout_s=HASH_S, cwd=folder)
    found = {line[66:]: line[:64] for line in done.stdout.split("\0") if re.match(r"[0-9a-f]{64}  ", line)}
    if done.rc != 0 or set(found) != set(names):
        raise CommandFailed(f"the checksums of {folder} cannot be taken", where=folder)
    return dict(found)


def work_bytes(host: Host, recipe: Recipe) -> int:
    """What source and objects take on the disk, bytes; 0 where that cannot be told."""
    paths = (builds.source_tree(recipe), builds.build_tree(recipe))
    try:
        said = host.run(["du", "--summarize", "--block-size=1", "--", *paths], timeout_s=LOOK_S).stdout
    except CommandFailed:
        return 0
    return sum(int(line.split()[0]) for line in said.splitlines() if line[:1].isdigit())
