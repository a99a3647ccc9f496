"""Release exactly the holds that are ours; what somebody else holds stays.

For good: dpkg first, the generated files next, the record last, so that a run that is cut off in between still owns
what it has not released. For a planned change the record stays and says that they are suspended, and so do the
generated files, because unattended-upgrades has no business in a change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from agent.actions._selections import busy, on_hold, release_holds, set_holds
from agent.errors import FileTrouble
from agent.host import Host, changes, drop_ins, holds
from agent.model import Json, Risk
from agent.plugin import Action, Noop, Parameters, Plan, PlanStep, Refuse, RemoveFile, Target, WriteFile

FILES = (drop_ins.UNATTENDED, drop_ins.NEEDRESTART)


class PackagesReleaseParameters(Parameters):
    """Whether for good or for a planned change."""

    keep_record: bool = False
    """Keep the record of what is ours, as suspended, so that packages.hold can restore it when the change ends."""


def plan(host: Host, target: Target, params: Any) -> Plan:
    """What of ours is on hold now, released; and what goes with it."""
    at_work = busy(host)
    if at_work is not None:
        return Plan((at_work,))
    ours = holds.owned(host)
    files = {path: host.files.read_text(path) for path in FILES if host.files.exists(path)}
    if ours is None:
        gone = () if params.keep_record else files
        return Plan((*map(RemoveFile, gone), Noop("nothing here is held by Holdfast")))
    change = "" if params.keep_record else changes.in_words(host)
    if change:
        words = f"a planned change is open ({change}), and its end restores the holds: end it first"
        return Plan((Refuse(words, "change-open"),))
    now = on_hold(host)
    held = [] if ours.suspended else [key for key in ours.packages if now.get(key) is True]
    if params.keep_record and ours.suspended:
        return Plan((Noop("our holds are suspended already"),))
    before: dict[str, Json] = {"record": host.files.read_text(holds.FILE), "released": list(held), "files": files}
    steps: list[PlanStep] = release_holds(held)
    count = f"{len(held)} package{'' if len(held) == 1 else 's'}"
    if params.keep_record:
        steps.append(WriteFile(holds.FILE, holds.text(replace(ours, suspended=True)) + "\n", 0o640))
        return Plan((*steps, Noop(f"{count} released until the planned change ends")), before)
    return Plan((*steps, *map(RemoveFile, (*files, holds.FILE)), Noop(f"{count} released")), before)


def undo(host: Host, target: Target, params: Any, before: Mapping[str, Json]) -> Plan:
    """Put the record back first, then hold again what this run had released, and the files."""
    now = on_hold(host)
    again = [key for key in before["released"] if now.get(key) is False]
    files = {str(path): str(text) for path, text in before["files"].items()}
    changed = {path: text for path, text in files.items() if not _is(host, path, text)}
    if not again and not changed and _is(host, holds.FILE, str(before["record"])):
        return Plan((Noop("nothing was released yet", untouched=True),))
    at_work = busy(host)
    if at_work is not None:
        return Plan((at_work,))
    return Plan(
        (
            WriteFile(holds.FILE, str(before["record"]), 0o640),
            *set_holds(again),
            *(WriteFile(path, text) for path, text in changed.items()),
            Noop("what was released is on hold again"),
        )
    )


def _is(host: Host, path: str, text: str) -> bool:
    try:
        return host.files.read_text(path) == text
    except FileTrouble as error:
        if error.kind == "missing":
            return False
        raise


ACTION = Action(id="packages.release", params=PackagesReleaseParameters, risk=Risk.NONE, plan=plan, undo=undo)
