"""Whether this host is going to reboot by itself, and when.

Armed are a scheduled shutdown (`shutdown -r`) and unattended-upgrades with Automatic-Reboot while a reboot is wanted.
WARNING while one is armed: the engines lose their requests then, and whatever is wrong with the next boot comes true.
What to do: nothing where it is meant; `sudo shutdown -c` cancels a scheduled one.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timezone

from agent.host import Host, reboots
from agent.model import Judgement, Observation, Observed, Status
from agent.plugin import Check, NoParameters, Target


def observe(host: Host, target: Target, before: Observed | None) -> Iterable[Observation]:
    """Who reboots, when, and which packages want it."""
    armed = reboots.armed(host)
    wanted = reboots.required(host)
    yield Observation("reboot.armed", armed is not None)
    yield Observation("reboot.at", None if armed is None else armed.at, "s")
    yield Observation("reboot.by", "" if armed is None else armed.by)
    yield Observation("reboot.words", "" if armed is None else armed.words)
    yield Observation("reboot.wanted_by", None if wanted is None else list(wanted))


def judge(now: Observed, before: Observed | None, params: NoParameters) -> Judgement:
    """An armed reboot is a warning with its time; one that is only wanted is said."""
    if now.value("reboot.armed"):
        at = now.value("reboot.at")
        when = "" if at is None else f" at {datetime.fromtimestamp(at, timezone.utc):%Y-%m-%d %H:%M} UTC"
        return Judgement(Status.WARNING, f"this host reboots by itself{when}: {now.value('reboot.words')}")
    wanted = now.value("reboot.wanted_by")
    if wanted is None:
        return Judgement(Status.OK, "no reboot is armed")
    return Judgement(Status.OK, f"no reboot is armed; one is wanted by {', '.join(wanted) or 'an update'}")


CHECK = Check(
    id="host.reboot",
    scope="host",
    every_s=60.0,
    timeout_s=30.0,
    observe=observe,
    judge=judge,
    due_when_changed=(reboots.SCHEDULED, *reboots.REQUIRED),
)
