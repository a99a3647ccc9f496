"""Put the driver's packages on hold, and the kernel's where its modules are prebuilt: exact names, read back, owned.

The record of what is ours is on disk before dpkg is asked, so that no crash leaves a hold that nobody owns; what
somebody else had on hold before is never in it, and stays when ours are released. With the holds go two generated
files: what unattended-upgrades leaves aside, and the services that needrestart does not restart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import Field

from agent.actions._selections import busy, on_hold, release_holds, set_holds
from agent.errors import FileTrouble
from agent.host import Host, changes, drop_ins, holding, holds, packages
from agent.host.hold_set import hold_set
from agent.host.holding import Look
from agent.host.holds import Owned
from agent.host.packages import Package
from agent.model import Json, Risk
from agent.plugin import Action, Noop, Parameters, Plan, PlanStep, Refuse, RemoveFile, Target, WriteFile

RECORD_MODE = 0o640


class PackagesHoldParameters(Parameters):
    """On whose word the holds are set, and what goes with them."""

    purpose: Literal["hold", "restore", "reassert"] = "hold"
    """hold: a person asks; the host must be locked and agree with itself, and no planned change be open.
    restore: a planned change ends; holds are worked out anew, and nothing is done where nobody had asked for any.
    reassert: what is on record, and what of the driver was installed since, is set again; refused where there is no
    record, and while a planned change is open."""
    by: str = Field(default="root", min_length=1, max_length=64)
    """Who asks, for the record."""


@dataclass(frozen=True, slots=True)
class _Turn:
    """What holding comes to: which to set, which of ours to release, which are ours afterwards, which others'."""

    new: tuple[str, ...]
    obsolete: tuple[str, ...]
    ours: tuple[str, ...]
    others: tuple[str, ...]


def plan(host: Host, target: Target, params: Any) -> Plan:
    """Everything from fresh facts: what to hold, what is held already, and by whom."""
    at_work = busy(host)
    if at_work is not None:
        return Plan((at_work,))
    ours = holds.owned(host)
    if params.purpose != "restore":
        change = changes.in_words(host)
        if change:
            words = f"a planned change is open ({change}): holds come back when it ends (holdfast change status)"
            return Plan((Refuse(words, "change-open"),))
    if ours is None and params.purpose == "reassert":
        return Plan((Refuse("nobody has asked for holds here, so none are set again: sudo holdfast hold", "no-holds"),))
    if ours is None and params.purpose == "restore":
        return Plan((Noop("nobody has asked for holds here"),))
    if ours is not None and params.purpose == "reassert":
        return _reasserted(host, target, ours)
    found = holding.look(host)
    if found.refusal is not None and (params.purpose == "hold" or found.refusal.code == holding.NO_DPKG):
        return Plan((Refuse(found.refusal.words, found.refusal.code),))
    return _held(host, target, found, ours)


def undo(host: Host, target: Target, params: Any, before: Mapping[str, Json]) -> Plan:
    """Release what this run had set, hold again what it had released, and put files and record back, in this order."""
    now, ours = on_hold(host), holds.owned(host)
    recorded = ours.packages if ours is not None else ()
    # What is not on record was not held by us: the record is written first.
    back = [key for key in before["new"] if key in recorded and now.get(key) is True]
    again = [key for key in before["obsolete"] if now.get(key) is False]
    files = {str(path): text for path, text in (*before["files"].items(), (holds.FILE, before["record"]))}
    changed = {path: text for path, text in files.items() if _text(host, path) != text}
    if not back and not again and not changed:
        return Plan((Noop("nothing was on hold yet", untouched=True),))
    at_work = busy(host)
    if at_work is not None:
        return Plan((at_work,))
    steps = [*release_holds(back), *set_holds(again), *(_as_it_was(path, text) for path, text in changed.items())]
    return Plan((*steps, Noop("holds and their record are as they were")))


def _as_it_was(path: str, text: Json) -> PlanStep:
    if text is None:
        return RemoveFile(path)
    return WriteFile(path, str(text), RECORD_MODE if path == holds.FILE else 0o644)


def _reasserted(host: Host, target: Target, ours: Owned) -> Plan:
    """Set again what must be on hold and is not; nothing is released. Nor undone: a person has asked for holds."""
    installed = packages.installed(host)
    now = {package.key: package.held for package in installed}
    # While they were suspended nothing of ours was on hold, so what is now was held by somebody else.
    kept = [key for key in ours.packages if not (ours.suspended and now.get(key) is True)]
    chosen = hold_set(installed, ours.kernel).keys
    since = [key for key in chosen if now[key] is False and key not in kept]
    missing = [*(key for key in kept if now.get(key) is False), *since]
    record = replace(ours, packages=(*kept, *since), suspended=False)
    files = _drop_ins(host, target, [*record.packages, *chosen], installed)
    if not missing and record == ours and not files:
        return Plan((Noop("everything that must be on hold is"),))
    steps: list[PlanStep] = [_record(record)] if record != ours else []
    steps += [WriteFile(path, text) for path, text in files.items()]
    return Plan((*steps, *set_holds(missing), Noop(f"{_counted(len(missing))} on hold again")))


def _held(host: Host, target: Target, found: Look, ours: Owned | None) -> Plan:
    """Hold all that is wanted, release of ours what is no longer, and write down which are ours."""
    now = {package.key: package.held for package in found.installed}
    mine = ours.packages if ours is not None and not ours.suspended else ()
    turn = _turn(found.chosen.keys, now, mine)
    by = target.params.by if target.params.purpose == "hold" or ours is None else ours.by
    owned = Owned(turn.ours, found.driver, found.chosen.kernel, host.clock.now().wall, by)
    files = _drop_ins(host, target, found.chosen.keys, found.installed)
    summary = Noop(_summary(found, turn))
    same = ours is not None and replace(owned, at=ours.at, by=ours.by) == ours
    if same and not turn.new and not turn.obsolete and not files:
        return Plan((summary,))
    before: dict[str, Json] = {
        "record": _text(host, holds.FILE),
        "new": list(turn.new),
        "obsolete": list(turn.obsolete),
        "files": {path: _text(host, path) for path in files},
    }
    steps: list[PlanStep] = []
    if not same:
        steps.append(_record(replace(owned, packages=(*turn.ours, *turn.obsolete))))
    # Before the holds, so that nothing is left to do once those are read back.
    steps += [WriteFile(path, text) for path, text in files.items()]
    steps += [*set_holds(turn.new), *release_holds(turn.obsolete)]
    if turn.obsolete:
        steps.append(_record(owned))
    return Plan((*steps, summary), before)


def _turn(wanted: Sequence[str], now: Mapping[str, bool], mine: Sequence[str]) -> _Turn:
    """Compare what is wanted with what is on hold now and what of that is ours. Pure."""
    new = tuple(key for key in wanted if not now[key])
    return _Turn(
        new=new,
        obsolete=tuple(key for key in mine if now.get(key) is True and key not in wanted),
        ours=tuple(key for key in wanted if key in new or key in mine),
        others=tuple(key for key in wanted if now[key] and key not in mine),
    )


def _record(owned: Owned) -> WriteFile:
    return WriteFile(holds.FILE, holds.text(owned) + "\n", RECORD_MODE)


def _drop_ins(host: Host, target: Target, keys: Sequence[str], installed: Sequence[Package]) -> dict[str, str]:
    """The generated files that do not say yet what they should, and what that is. keys: everything on hold."""
    wanted = {drop_ins.UNATTENDED: drop_ins.unattended(keys, holding.native_architecture(installed))}
    if host.files.exists(drop_ins.NEEDRESTART_FOLDER):
        wanted[drop_ins.NEEDRESTART] = drop_ins.needrestart(each.unit for each in target.engines if each.unit)
    return {path: text for path, text in wanted.items() if _text(host, path) != text}


def _text(host: Host, path: str) -> str | None:
    """The file's text, None where there is none. Raises FileTrouble for one that cannot be read."""
    try:
        return host.files.read_text(path)
    except FileTrouble as error:
        if error.kind == "missing":
            return None
        raise


def _summary(found: Look, turn: _Turn) -> str:
    kernel = f" and kernel {found.chosen.kernel}" if found.chosen.kernel else ""
    parts = [f"{_counted(len(turn.ours))} on hold for driver {found.driver or 'packages'}{kernel}"]
    if turn.others:
        parts.append(f"{len(turn.others)} more were held by somebody else and stay so")
    if turn.obsolete:
        parts.append(f"{len(turn.obsolete)} no longer needed are released")
    return "; ".join(parts)


def _counted(number: int) -> str:
    return f"{number} package{'' if number == 1 else 's'}"


ACTION = Action(id="packages.hold", params=PackagesHoldParameters, risk=Risk.NONE, plan=plan, undo=undo)
