"""Whether every package that must be held is held, once a person has run `holdfast hold`.

Must be held: what `holdfast hold` has held, as long as it is installed, and what belongs to the driver and has been
installed since. A hold is weak: `dpkg -i` of a held package installs it and clears the hold without a word, and so does
any script with `apt-mark unhold`. WARNING: a hold is missing, so the next upgrade moves the driver. Nothing is judged
while a planned change is open, and nothing is concluded while packages are being changed. What to do: nothing where
Holdfast may act, it holds them again; else `sudo holdfast hold`, or `sudo holdfast unhold` if it was meant.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from agent.host import Host, changes, holds, packages
from agent.host.hold_set import hold_set
from agent.host.holds import Owned
from agent.host.packages import Package
from agent.model import Json, Judgement, Observation, Observed, Status
from agent.plugin import Check, NoParameters, Target


def observe(host: Host, target: Target, before: Observed | None) -> Iterable[Observation]:
    """The record of our holds against dpkg's selections; dpkg is asked again only when either has changed."""
    record = holds.owned(host)
    yield Observation("asked", record is not None)
    if record is None:
        return
    planned = changes.read(host)
    yield Observation("planned", "" if planned is None else planned.words)
    yield Observation("by", record.by)
    known = _known(before)
    transaction = packages.transaction(host)
    yield Observation("change", "" if transaction is None else transaction.words)
    stamp = f"{packages.stamp(host)} {_stamp(host)}"
    if transaction is not None or (before is not None and before.value("stamp") == stamp):
        yield from (each for each in _carried(before) if transaction is None or each.name == "held")
        if transaction is None:
            yield Observation("stamp", stamp)
        return
    installed = packages.installed(host)
    wanted = {*record.packages, *hold_set(installed, record.kernel).keys}
    must = [package for package in installed if package.key in wanted]
    yield Observation("stamp", stamp)
    yield Observation("must", len(must))
    yield Observation("held", {each.key: each.version if each.held else known.get(each.key) for each in must})
    yield Observation("missing", [_missing(each, known, record) for each in must if not each.held])
    yield Observation("gone", sorted(set(record.packages) - {package.key for package in installed}))


def judge(now: Observed, before: Observed | None, params: NoParameters) -> Judgement:
    """Nobody asked, a change is planned, dpkg is at work, a hold is missing: in this order."""
    if not now.value("asked"):
        return Judgement(Status.OK, "no holds were asked for")
    if now.value("planned"):
        return Judgement(Status.OK, f"not judged while a planned change is open: {now.value('planned')}")
    if now.value("change"):
        return Judgement(Status.UNKNOWN, f"{now.value('change')}: the holds are not settled")
    missing, must = now.value("missing") or [], now.value("must")
    gone = now.value("gone") or []
    if missing:
        names = _some([each["name"] for each in missing])
        words = f"{names} must be held and {'is' if len(missing) == 1 else 'are'} not ({len(missing)} of {must})"
        return Judgement(Status.WARNING, f"{words}: {_why(missing)}")
    left = f"; {_some([name.rpartition(':')[0] for name in gone])} held once, not installed any more" if gone else ""
    return Judgement(Status.OK, f"{must} packages are held, as {now.value('by')} asked{left}")


def _why(missing: list[Mapping[str, Json]]) -> str:
    """What took the holds away, as far as what was seen before can tell."""
    moved = [each for each in missing if each["was"] not in (None, each["version"])]
    if moved:
        first = moved[0]
        return f"dpkg put {first['name']} {first['version']} in the place of {first['was']}, which clears a hold"
    if any(each["ours"] or each["was"] is not None for each in missing):
        return "somebody released them, and not with holdfast unhold"
    return "installed since then"


def _missing(package: Package, known: Mapping[str, Json], record: Owned) -> dict[str, Json]:
    return {
        "name": package.name,
        "version": package.version,
        "was": known.get(package.key) or _recorded(package, record),
        "ours": package.key in record.packages,
    }


def _recorded(package: Package, record: Owned) -> str | None:
    """The driver that was held, where the package brings another one now: known although it was never seen held."""
    ours = package.key in record.packages and packages.shares_the_version(package) and record.driver
    return record.driver if ours and package.driver_version != record.driver else None


def _known(before: Observed | None) -> Mapping[str, Json]:
    """The version in which each package was seen held last."""
    held = before.value("held") if before is not None else None
    return held if isinstance(held, dict) else {}


def _carried(before: Observed | None) -> Iterable[Observation]:
    """What was seen of dpkg last time."""
    names = ("must", "held", "missing", "gone")
    return () if before is None else (each for each in before.observations if each.name in names)


def _stamp(host: Host) -> str:
    """What changes with the record of our holds."""
    seen = host.files.stat(holds.FILE)
    return f"{seen.inode}:{seen.size}:{seen.mtime!r}"


def _some(names: list[str]) -> str:
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")


CHECK = Check(
    id="driver.holds",
    scope="host",
    every_s=60.0,
    timeout_s=30.0,
    observe=observe,
    judge=judge,
    due_when_changed=(packages.STATUS, holds.FILE, changes.FILE),
    unsettled="change",
)
