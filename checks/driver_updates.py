"""Which security updates wait behind the holds, and whether unattended security updates come in at all.

Only where a person has run `holdfast hold` or `holdfast lock write`. WARNING: a held package has had a pending security
update for `stale_after_days` days, counted from when it was first seen; or the last run of unattended-upgrades failed
or was ended by the apt guard, or dpkg was left half-way, so that nothing is upgraded any more. A single run that failed
for want of a network or of a free dpkg is no news. Asked by hand, nothing has been seen before: days are counted by the
daemon alone. What to do: move the driver in a planned change,
`sudo holdfast change begin --to VERSION --reason …`; mend dpkg with `sudo dpkg --configure -a`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from pydantic import Field

from agent.errors import CommandFailed, FileTrouble
from agent.host import Host, apt_policy, driver, holds, packages, reboots, unattended, vetoes
from agent.host.hold_set import hold_set
from agent.host.packages import Package
from agent.model import Json, Judgement, Observation, Observed, Status
from agent.plugin import Check, Parameters, Target

DAY_S = 86400.0


class UpdatesParameters(Parameters):
    """When a hold has kept a security update out for too long."""

    stale_after_days: float = Field(default=14.0, gt=0)
    """A held package may have a pending security update for this many days."""


def observe(host: Host, target: Target, before: Observed | None) -> Iterable[Observation]:
    """What waits, since when, and what keeps updates out; while packages are being changed, what was seen before."""
    record = holds.owned(host)
    asked = record is not None or host.files.exists(driver.LOCK_FILE)
    yield Observation("asked", asked)
    if not asked:
        return
    yield Observation("stale_after_days", target.params.stale_after_days)
    now = packages.transaction(host)
    working = now is not None and now.pid > 0
    yield Observation("change", now.words if now is not None and working else "")
    if working:
        names = ("pending", "held", "problem", "interrupted", "unattended")
        yield from (each for each in (before.observations if before else ()) if each.name in names)
        return
    yield Observation("interrupted", "" if now is None else now.words)
    yield from _unattended(host, before)
    if record is None:
        return
    installed = packages.installed(host)
    wanted = {*record.packages, *hold_set(installed, record.kernel).keys}
    held = [package for package in installed if package.key in wanted]
    yield Observation("held", len(held))
    yield from _pending(host, held, installed, before)


def judge(now: Observed, before: Observed | None, params: UpdatesParameters) -> Judgement:
    """Blocked updates first, then one that has waited too long, then what could not be asked."""
    if not now.value("asked"):
        return Judgement(Status.OK, "nothing is held or locked")
    if now.value("interrupted"):
        return Judgement(Status.WARNING, f"nothing is upgraded any more: {now.value('interrupted')}")
    if now.value("unattended"):
        return Judgement(Status.WARNING, f"no security updates come in: {now.value('unattended')}")
    pending = now.value("pending")
    waits = [_days(each, now.at.wall) for each in pending or ()]
    if waits and max(waits) >= params.stale_after_days:
        return Judgement(Status.WARNING, f"a held package has had a security update pending for {max(waits):.0f} days")
    problem = next((now.value(name) for name in ("log.problem", "problem") if now.value(name)), None)
    if problem:
        return Judgement(Status.UNKNOWN, f"what keeps updates out cannot be told: {problem}")
    return _fine(now, pending, waits)


def _fine(now: Observed, pending: Json, waits: Sequence[float]) -> Judgement:
    """Nothing is wrong: what waits, if anything is held."""
    if pending is None and now.value("change"):
        return Judgement(Status.UNKNOWN, f"{now.value('change')}: what waits cannot be told yet")
    if pending is None:
        return Judgement(Status.OK, "nothing is held, and unattended upgrades are not blocked")
    if waits:
        words = f"security updates wait for {len(waits)} of the {now.value('held')} packages that are held"
        return Judgement(Status.OK, f"{words}, the first for {max(waits):.0f} days" if max(waits) >= 1 else words)
    return Judgement(Status.OK, f"no security update waits for the {now.value('held')} packages that are held")


def _unattended(host: Host, before: Observed | None) -> Iterable[Observation]:
    """Why the last unattended upgrade brought nothing in, "" where it did; as before where its log does not say."""
    seen = str(before.value("unattended") or "") if before is not None else ""
    try:
        found = unattended.runs(host)
        veto = vetoes.last(host)
    except FileTrouble as error:
        yield Observation("unattended", seen)
        yield Observation("log.problem", error.message)
        return
    if found:
        seen = _failure(host, unattended.failure(found), veto)
    elif veto is not None and veto.unattended:
        seen = _vetoed(veto)
    yield Observation("unattended", seen)


def _failure(host: Host, failed: unattended.UnattendedRun | None, veto: vetoes.Veto | None) -> str:
    if failed is None:
        return ""
    refused = veto is not None and veto.unattended and veto.at >= _began(host, failed) - 1.0
    if veto is not None and refused and failed.failed == unattended.INSTALLING:
        return _vetoed(veto)
    return f"the unattended upgrade of {failed.at[:16]} failed, {failed.failed}"


def _vetoed(veto: vetoes.Veto) -> str:
    return f"the apt guard ended the last unattended upgrade over {veto.package} ({veto.reason})"


def _began(host: Host, run: unattended.UnattendedRun) -> float:
    """When a run began, Unix seconds."""
    local = datetime.strptime(run.at, "%Y-%m-%d %H:%M:%S").replace(tzinfo=reboots.time_zone(host))
    return local.timestamp()


def _pending(
    host: Host, held: Sequence[Package], installed: Sequence[Package], before: Observed | None
) -> Iterable[Observation]:
    """The security updates that wait, each since it was first seen; when apt cannot be asked, what was seen before."""
    native = next((package.architecture for package in installed if package.name == "dpkg"), "")
    names = {each.name if each.architecture in (native, "all") else each.key: each for each in held}
    known = {str(each["name"]): each for each in (before.value("pending") if before is not None else None) or ()}
    now = host.clock.now().wall
    try:
        found = apt_policy.security_updates(host, sorted(names))
    except CommandFailed as error:
        yield Observation("problem", error.message)
        yield Observation("pending", list(known.values()))
        return
    yield Observation(
        "pending",
        [
            {
                "name": each.name,
                "installed": each.installed,
                "version": each.version,
                "since": min(now, float(known[each.name]["since"])) if each.name in known else now,
                "driver": packages.is_driver(names[each.name].name, names[each.name].source),
            }
            for each in found
            if each.name in names
        ],
    )


def _days(pending: Mapping[str, Json], now: float) -> float:
    return max(0.0, now - float(pending["since"])) / DAY_S


CHECK = Check(
    id="driver.updates",
    scope="host",
    every_s=6 * 3600.0,
    timeout_s=90.0,
    observe=observe,
    judge=judge,
    params=UpdatesParameters,
    as_root=True,
    due_when_changed=(apt_policy.LISTS, packages.STATUS, packages.UPDATES, holds.FILE, vetoes.FILE, unattended.STAMP),
    unsettled="change",
)
"""As root: the log of unattended-upgrades is readable by root and group adm alone. A dpkg that is killed has written
its journal, and its status file not at all."""
