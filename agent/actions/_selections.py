"""The steps that set and release dpkg's holds: exact names, one call, read back.

apt-mark does not wait for dpkg's lock but fails (status 100), and what it prints is no proof: only what dpkg says
afterwards counts. Packages are named NAME:ARCHITECTURE here.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from agent.host import Host, packages
from agent.plugin import Command, Condition, PlanStep, Refuse, Wait

APT_MARK_S = 60.0
"""How long one apt-mark may take; it reads apt's whole cache, cold on a slow disk."""
BUSY_STATUS = 100
"""apt's status for every error: here, that somebody took dpkg's lock in that very moment."""
AGAIN_S = 45.0
"""How long to wait for dpkg before the second and last try."""


def busy(host: Host) -> Refuse | None:
    """Why nothing can be planned now, None when nobody changes packages. Raises FileTrouble."""
    found = packages.transaction(host)
    return None if found is None else Refuse(f"{found.words}: try again when that is over", "packages-busy", 20.0)


def on_hold(host: Host) -> dict[str, bool]:
    """Every installed package, and whether it is on hold. Raises CommandFailed where dpkg cannot be asked."""
    return {package.key: package.held for package in packages.installed(host)}


def set_holds(keys: Sequence[str]) -> list[PlanStep]:
    """Put these on hold."""
    return _select("hold", keys, wanted=True)


def release_holds(keys: Sequence[str]) -> list[PlanStep]:
    """Release these."""
    return _select("unhold", keys, wanted=False)


def _select(verb: str, keys: Sequence[str], *, wanted: bool) -> list[PlanStep]:
    if not keys:
        return []
    # apt has no architecture "all": such a package goes by its name.
    argv = ("apt-mark", verb, *(key.removesuffix(":all") for key in keys))
    words = f"dpkg has all {len(keys)} {'on hold' if wanted else 'released'}"
    done = Condition(words, lambda host: _are(host, keys, wanted=wanted), ("apt-mark", "showhold"))
    ready = Condition(
        f"{words}, or is free for a second try",
        lambda host: packages.transaction(host) is None or _are(host, keys, wanted=wanted),
    )
    why = f"apt-mark {verb} was called, and dpkg does not say so of every package (apt-mark showhold)"
    return [
        Command(argv, APT_MARK_S, accept=(0, BUSY_STATUS)),
        Wait(ready, AGAIN_S, why="packages are being changed, so dpkg takes no holds", code="packages-busy"),
        Wait(done, 0.0, on_timeout=Command(argv, APT_MARK_S)),
        Wait(done, 0.0, why=why, code="holds-not-set" if wanted else "holds-not-released"),
    ]


def _are(host: Host, keys: Collection[str], *, wanted: bool) -> bool:
    """Whether all of these are as wanted; a package that is gone meanwhile does not count."""
    now = on_hold(host)
    return all(now[key] is wanted for key in keys if key in now)
