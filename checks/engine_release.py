"""Which release of llama.cpp an engine runs, whether it was proven, and what it could go back to.

Only for an engine that is rebuilt here. A unit that runs something else than what is in its place is told: its next
restart would switch it, and nobody has proven that. A release is proven when it has served and generated.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable
from datetime import datetime, timezone

from agent.errors import FileTrouble
from agent.host import Host, recipe, releases, systemd
from agent.model import Judgement, Observation, Observed, Status
from agent.plugin import Check, NoParameters, Target

_COSTLY = ("release.path", "release.runs")
"""With install = "copy" these need checksums of a large file."""


def observe(host: Host, target: Target, before: Observed | None) -> Iterable[Observation]:
    """What is in its place and what runs, from the machine; what was proven and switched, from the runner's record."""
    known, unit = recipe.of(target.settings), target.unit
    if known is None or unit is None:
        return
    main_pid = systemd.unit_state(host, unit).main_pid
    key = _key(host, releases.place(known), main_pid) if known.install == "copy" else ""
    yield Observation("release.key", key)
    if key and before is not None and before.value("release.key") == key:
        seen = {name: before.value(name) for name in _COSTLY}
    else:
        path = releases.serving(host, known)
        runs = bool(path) and releases.runs_from(host, known, unit, path)
        seen = {"release.path": path, "release.runs": runs}
    path = str(seen["release.path"] or "")
    state, release = releases.read(host, known.engine), releases.release(host, path) if path else None
    yield from (Observation(name, value) for name, value in seen.items())
    yield Observation("release.place", releases.place(known))
    yield Observation("release.name", posixpath.basename(path))
    yield Observation("release.commit", release.commit if release is not None else "")
    yield Observation("release.complete", host.files.exists(releases.server_of(path) if path else known.server))
    yield Observation("release.proven_at", state.proven[path].at if path in state.proven else None)
    yield Observation("unit.main_pid", main_pid)
    yield Observation("fallback", releases.last_proven(host, state, path))
    if state.switch is not None:
        for name in ("old", "new", "at", "rollback", "settled"):
            yield Observation(f"switch.{name}", getattr(state.switch, name))


def _key(host: Host, path: str, pid: int) -> str:
    """While this does not change, neither do the file and the process that runs it."""
    try:
        stat = host.files.stat(path)
    except FileTrouble:
        return ""
    return f"{stat.inode} {stat.size} {stat.mtime} {pid}"


def judge(now: Observed, before: Observed | None, params: NoParameters) -> Judgement:
    """WARNING where the next start would be a surprise: nothing to start, or something else than what runs."""
    place, name = now.value("release.place"), now.value("release.name")
    if not now.value("release.complete"):
        return Judgement(Status.WARNING, f"{place} leads to no llama-server: the engine would not start again")
    if not name:
        return Judgement(Status.OK, f"{place} is none of the releases")
    if now.value("unit.main_pid") and not now.value("release.runs"):
        words = f"{name} is in its place, but the engine runs another program: its next restart switches it"
        return Judgement(Status.WARNING, words)
    proven = now.value("release.proven_at")
    words = f"proven {_day(float(proven))}" if proven is not None else "not proven yet"
    fallback = posixpath.basename(str(now.value("fallback") or ""))
    return Judgement(Status.OK, f"{name}, {words}; before it {fallback}" if fallback else f"{name}, {words}")


def _day(wall: float) -> str:
    return datetime.fromtimestamp(wall, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


CHECK = Check(
    id="engine.release",
    scope="engine",
    every_s=300.0,
    timeout_s=60.0,
    observe=observe,
    judge=judge,
    applies=lambda target: recipe.of(target.settings) is not None and target.unit is not None,
    on_suspicion_s=60.0,
    due_when_changed=(releases.STATE,),
    as_root=True,
    gives_verdict=False,
)
"""As root: only root may see which program another user's process runs."""
