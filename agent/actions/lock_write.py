"""Lock the driver that is loaded now: write its version, who and when into /etc/holdfast/driver.lock.

Refused where nothing is loaded, on a machine that contradicts itself (unless forced: then the lock says so), and
while a planned change is open, because finishing it writes the lock. A lock that says so already is left as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from pydantic import Field

from agent.errors import FileTrouble
from agent.host import Host, changes, driver, driver_truth
from agent.host.driver_truth import Present
from agent.model import Json, Risk
from agent.plugin import Action, Noop, Parameters, Plan, Refuse, RemoveFile, Target, WriteFile


class LockWriteParameters(Parameters):
    """Who locks, and whether in spite of something."""

    by: str = Field(pattern=r"^[A-Za-z0-9._@+-]{1,64}$")
    """Who asks, for the lock's comments."""
    force: bool = False
    """Lock although the machine contradicts itself; the lock's comments say how."""
    in_change: bool = False
    """At the end of a planned change: only while one is open, and only the driver it leads to."""


def plan(host: Host, target: Target, params: Any) -> Plan:
    """Write the loaded version, or say why not. `before` says what was there and what could not be checked."""
    now, later = driver_truth.present(host), driver_truth.future(host, {})
    loaded, wrong = now.loaded.version, driver_truth.contradictions(now, later)
    refusal = _refused(host, now, wrong, params)
    if refusal is not None or loaded is None:
        return Plan((refusal or Refuse("no NVIDIA driver is loaded", "no-driver"),))
    doubts = driver_truth.unreadable(now, later)
    before: dict[str, Json] = {"version": loaded, "changed": False, "not_told": list(doubts)}
    if now.lock.version == loaded and not now.lock.problem:
        return Plan((Noop(f"{driver.LOCK_FILE} already says {loaded}"),), before)
    notes = [f"forced: {each}" for each in wrong] + [f"not told: {each}" for each in doubts]
    text = lock_text(loaded, at=host.clock.now().wall, who=params.by, notes=notes)
    before |= {"changed": True, "old": _text(host), "wrote": text}
    return Plan((WriteFile(driver.LOCK_FILE, text, 0o644), Noop(f"{driver.LOCK_FILE} now says {loaded}")), before)


def undo(host: Host, target: Target, params: Any, before: Mapping[str, Json]) -> Plan:
    """Put the lock back that was there, unless another hand has written it since."""
    if not before.get("changed"):
        return Plan((Noop("the lock was left as it was", untouched=True),))
    now, old = _text(host), before.get("old")
    if now == old:
        return Plan((Noop("the lock was not written yet", untouched=True),))
    if now != before.get("wrote"):
        return Plan((Noop(f"{driver.LOCK_FILE} was written by another hand since"),))
    return Plan((WriteFile(driver.LOCK_FILE, old, 0o644) if isinstance(old, str) else RemoveFile(driver.LOCK_FILE),))


def lock_text(version: str, *, at: float, who: str, notes: Sequence[str] = ()) -> str:
    """The lock file's text: who locked what and when (`at`, Unix seconds), then the version alone on its line."""
    when = datetime.fromtimestamp(at, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    lines = [
        "# The NVIDIA driver this host must run: holdfast explain driver.lock",
        f"# locked {when} by {who}",
        *(f"# {_one_line(note)}" for note in notes),
    ]
    return "\n".join([*lines, version, ""])


def _refused(host: Host, now: Present, wrong: Sequence[str], params: LockWriteParameters) -> Refuse | None:
    try:
        change = changes.read(host)
    except FileTrouble as error:
        return Refuse(f"{error.message}; sudo holdfast change abort removes it", "change-unreadable")
    if change is not None and not params.in_change:
        return Refuse(f"a planned change is open: {change.words}; finishing it writes the lock", "change-open")
    if params.in_change and change is None:
        return Refuse("no planned change is open", "no-change")
    loaded = now.loaded.version
    if loaded is None:
        why = now.loaded.problem or "no NVIDIA driver is loaded: there is no version to lock"
        return Refuse(why, "no-driver" if not now.loaded.problem else "driver-unknown")
    if change is not None and loaded != change.to:
        return Refuse(f"driver {loaded} is loaded, the planned change leads to {change.to}", "change-incomplete")
    if wrong and not params.force:
        libraries = any(each.version not in (None, loaded) for each in (now.library, now.cuda))
        return Refuse("; ".join(wrong), "driver-mismatch" if libraries else "driver-inconsistent")
    return None


def _text(host: Host) -> str | None:
    """The lock as it is, None where there is none that can be read."""
    try:
        return host.files.read_text(driver.LOCK_FILE, 64 << 10)
    except FileTrouble:
        return None


def _one_line(text: str) -> str:
    return "".join(character for character in text if character.isprintable())


ACTION = Action(id="lock.write", params=LockWriteParameters, risk=Risk.NONE, plan=plan, undo=undo)
