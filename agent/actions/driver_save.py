"""Save everything that makes up the locked driver, because archives drop old versions without a word.

The packages of the driver at their installed versions, of the running kernel, of what links or builds its modules and
of what these need; and the modules as they are. From apt's cache, else from where apt gets them, else made again by
dpkg-repack where that is installed. What is there already with the right checksum is left alone. The manifest is
written last; it says what is missing, and why. The newest complete sets are kept, the others go.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import Field

from agent.errors import HostError
from agent.host import Host, saved_driver, saving
from agent.host.ownership import DAEMON_GROUP, has_daemon_group
from agent.host.saved_driver import FOLDER, MANIFEST
from agent.host.saving import CACHE, Source, Subject
from agent.model import Risk
from agent.plugin import Action, Command, Condition, Parameters, Plan, PlanStep, Read, Target, Wait, WriteFile

MODE = "0750"
RESERVE_BYTES = 512 << 20
"""What stays free on the disk: a full one would be worse than no way back."""
CHUNK_BYTES = 48 << 20
"""About this much is fetched by one command, so that there is something to tell between two."""
SLOWEST = 200_000
"""Bytes per second at which fetching is given up; and so is a server that does not answer."""
ANY_STATUS = tuple(range(256))
COPY_S = 300.0


class DriverSaveParameters(Parameters):
    """Who saves, and how many sets are kept."""

    by: str = Field(default="root", pattern=r"^[A-Za-z0-9._@+-]{1,64}$")
    """Who asks, for the manifest."""
    keep: int = Field(default=2, ge=1, le=20)
    """How many complete sets are kept, this one included."""


def plan(host: Host, target: Target, params: Any) -> Plan:
    """Every copy, download and check, from what is there and what is offered now."""
    about = saving.subject(host)
    if isinstance(about, str):
        return Plan((_only_if(f"there is a driver to save: {about}", about),))
    sources = saving.sources(host, about)
    modules = saving.modules(host, about)
    copied = saving.modules_there(host, about, tuple(modules))
    needed = sum(each.size for each in sources) + (0 if copied else sum(modules.values()))
    room = _room(host, needed)
    if room is not None:
        return Plan((room,))
    steps = [
        *_folders(host, about),
        *_fetched(about, sources),
        *(() if copied else _copied(host, about, tuple(modules))),
        WriteFile(
            f"{about.folder}/{MANIFEST}",
            lambda host: saved_driver.text(saving.manifest(host, about, sources, tuple(modules), params.by)),
            0o640,
        ),
        *_pruned(host, about, params.keep),
        Read("what was saved", lambda host: _summary(host, about.folder), sums_up=True),
    ]
    return Plan(tuple(steps))


def _only_if(words: str, why: str) -> Wait:
    """A condition that does not hold, so that the step fails with the reason and not the whole run."""
    return Wait(Condition(words, _never), 0.0, why=why, code="nothing-to-save")


def _never(_: Host) -> bool:
    return False


def _room(host: Host, needed: int) -> Wait | None:
    """Why there is no room, as a step that fails; None when there is."""
    place = FOLDER if host.files.exists(FOLDER) else "/var/lib"
    space = host.files.space(place)
    if space.read_only or space.bytes_free - needed < RESERVE_BYTES:
        free = "it is read-only" if space.read_only else f"{space.bytes_free >> 20} MiB are free"
        words = f"saving takes {needed >> 20} MiB below {FOLDER} and leaves {RESERVE_BYTES >> 20} MiB free, but {free}"
        return Wait(Condition("there is room on the disk", _never), 0.0, why=words, code="no-room")
    return None


def _folders(host: Host, about: Subject) -> Iterator[PlanStep]:
    places = (FOLDER, about.folder, *(f"{about.folder}/{each}" for each in ("debs", "repacked", "modules")))
    yield Command(("rm", "--recursive", "--force", "--", f"{about.folder}/fetch", f"{about.folder}/modules.new"), 60.0)
    yield _folder(host, *places, f"{about.folder}/fetch")


def _folder(host: Host, *places: str) -> Command:
    """Folders that root writes and the daemon may look into."""
    owned = (f"--group={DAEMON_GROUP}",) if has_daemon_group(host.files) else ()
    return Command(("install", "--directory", f"--mode={MODE}", *owned, "--", *places), 30.0)


def _fetched(about: Subject, sources: Sequence[Source]) -> Iterator[PlanStep]:
    """Cache, archive, dpkg-repack: each into a folder of its own first, so that half a file is never taken for one."""
    fetch, debs, repacked = (f"{about.folder}/{each}" for each in ("fetch", "debs", "repacked"))
    moved = ("-exec", "mv", "--target-directory", debs, "{}", "+")
    arrived = Command(("find", fetch, "-maxdepth", "1", "-type", "f", "-name", "*.deb", *moved), 60.0)
    cached = [f"{CACHE}/{each.wanted.file}" for each in sources if each.how == "cache"]
    if cached:
        copy = ("cp", "--reflink=auto", "--preserve=timestamps", "--target-directory", fetch, "--", *cached)
        yield Command(copy, COPY_S, words=f"copying {len(cached)} packages from apt's cache")
        yield arrived
    wanted = [each for each in sources if each.how == "archive"]
    told = 0
    for chunk in _chunks(wanted):
        size = sum(each.size for each in chunk)
        told += len(chunk)
        limit_s = 60 + size // SLOWEST
        yield Command(
            ("timeout", str(limit_s), "apt-get", "download", "--quiet", "--option", "APT::Sandbox::User=root",
             "--option", "Acquire::http::Timeout=15", "--option", "Acquire::https::Timeout=15",
             "--option", "Acquire::Retries=0", *(each.wanted.spec for each in chunk)),
            limit_s + 10.0,
            cwd=fetch,
            accept=ANY_STATUS,
            words=f"fetching packages, {told} of {len(wanted)} ({max(1, size >> 20)} MiB)",
        )  # fmt: skip
        yield arrived
    for source in sources:
        each = source.wanted
        repack = Command(
            ("timeout", "300", "dpkg-repack", f"{each.name}:{each.architecture}"),
            310.0,
            cwd=repacked,
            accept=ANY_STATUS,
            words=f"making {each.name} again with dpkg-repack",
        )
        if source.how == "repack":
            yield repack


def _chunks(wanted: Sequence[Source]) -> Iterator[list[Source]]:
    """Packages in groups of about the same size."""
    chunk: list[Source] = []
    for each in wanted:
        if chunk and sum(source.size for source in (*chunk, each)) > CHUNK_BYTES:
            yield chunk
            chunk = []
        chunk.append(each)
    if chunk:
        yield chunk


def _copied(host: Host, about: Subject, names: Sequence[str]) -> Iterator[PlanStep]:
    fresh, place = f"{about.folder}/modules.new", f"{about.folder}/modules"
    yield _folder(host, fresh)
    yield Command(
        ("cp", "--parents", "--dereference", "--reflink=auto", "--preserve=timestamps", "--", *names, fresh),
        COPY_S,
        cwd=f"/lib/modules/{about.kernel}",
        words=f"copying {len(names)} modules of kernel {about.kernel}",
    )
    yield Command(("rm", "--recursive", "--force", "--", place), 60.0)
    yield Command(("mv", "--no-target-directory", "--", fresh, place), 30.0)


def _pruned(host: Host, about: Subject, keep: int) -> Iterator[PlanStep]:
    """The removal of old sets and of what a cut left of one, each only once this one is complete."""
    found = saved_driver.sets(host)
    named = {each.folder for each in found}
    there = [f"{FOLDER}/{name}" for name in host.files.listdir(FOLDER)] if host.files.exists(FOLDER) else []
    gone = [each.folder for each in saving.obsolete(found, about.folder, keep)]
    for folder in (*gone, *(each for each in there if each not in named and each != about.folder)):
        stays = Condition(
            "the new set is not complete, so that the old one stays", lambda host: not _complete(host, about)
        )
        yield Wait(
            stays, 0.0, on_timeout=Command(("rm", "--recursive", "--force", "--one-file-system", "--", folder), 60.0)
        )


def _complete(host: Host, about: Subject) -> bool:
    return saved_driver.read(host, about.folder).complete


def _summary(host: Host, folder: str) -> str:
    """What was saved. Raises HostError, so that the step fails, where something is missing."""
    found = saved_driver.read(host, folder)
    if not found.complete:
        lacks = "; ".join(f"{each.name} {each.version}: {each.why}" for each in found.missing[:5])
        more = f"; and {len(found.missing) - 5} more (in {folder}/{MANIFEST})" if len(found.missing) > 5 else ""
        raise HostError(f"the saved set of driver {found.driver} is not complete: {lacks}{more}")
    repacked = [each.name for each in found.packages if each.origin == "repacked"]
    words = f"{len(found.packages)} packages and {len(found.modules)} modules, {found.size >> 20} MiB, in {folder}"
    return f"{words}; made again by dpkg-repack: {', '.join(repacked)}" if repacked else words


ACTION = Action(id="driver.save", params=DriverSaveParameters, risk=Risk.NONE, plan=plan)
