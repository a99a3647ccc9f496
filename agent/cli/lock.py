"""`holdfast lock`: the driver version this host must run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.cli._common import Force, need_root
from agent.cli._result import Result, plain, rfc3339
from agent.cli._session import current
from agent.cli._verb import Verb
from agent.errors import FileTrouble, Refused
from agent.model import Status

if TYPE_CHECKING:
    from agent.host import Host

LOCK_FILE = "/etc/holdfast/driver.lock"


@dataclass(frozen=True, slots=True)
class Versions:
    """The three versions that should be one, None where there is none; `problem` is what is wrong with the lock."""

    locked: str | None
    problem: str
    loaded: str | None
    library: str | None


def versions(host: Host) -> Versions:
    """The three versions as they are now. Raises FileTrouble."""
    from agent.host import driver

    lock = driver.read_lock(host, LOCK_FILE)
    return Versions(lock.version, str(lock.problem or ""), driver.loaded_version(host), driver.library_version(host))


def judge(found: Versions) -> tuple[Status, str]:
    """Whether the three agree, in a status and one line."""
    there = {version for version in (found.locked, found.loaded, found.library) if version}
    if found.problem and found.problem != "absent":
        return Status.CRITICAL, f"the lock is {found.problem}: sudo holdfast lock write"
    if not found.loaded and not found.library:
        if found.locked:
            return Status.CRITICAL, f"the lock demands {found.locked}, and no driver is there"
        return Status.OK, "no NVIDIA driver and no lock: nothing to agree on"
    if found.loaded and found.library and found.loaded != found.library:
        return Status.CRITICAL, "the loaded driver and the libraries on disk differ: a restarted engine loses its GPU"
    if not found.locked:
        return Status.WARNING, "not locked: sudo holdfast lock write"
    if len(there) > 1:
        return Status.CRITICAL, f"the lock demands {found.locked}, and another version is there"
    if not found.loaded:
        return Status.CRITICAL, "the locked driver is on disk, but not loaded"
    return Status.OK, f"all agree on {found.locked}"


def show() -> Result:
    """Show the locked, the loaded and the installed version, and whether they agree."""
    from agent.views import texts

    found = versions(current().host)
    status, words = judge(found)
    rows = (
        ("lock", found.locked or found.problem or "absent", LOCK_FILE),
        ("loaded", found.loaded or "none", "the kernel module that runs now"),
        ("library", found.library or "none", "libnvidia-ml.so.1 on disk"),
    )
    data = {
        "status": status.value,
        "summary": words,
        "locked": found.locked,
        "problem": found.problem or None,
        "loaded": found.loaded,
        "library": found.library,
    }
    return Result(
        "lock",
        data,
        lambda width: "\n".join(
            [*texts.table(("WHAT", "VERSION", "FROM"), rows, width), *texts.labelled(status.value, words, width)]
        ),
        exit_code=status.exit_code,
    )


def write(force: Force = False) -> Result:
    """Lock the driver that is loaded now."""
    session = current()
    need_root(session, "holdfast lock write")
    found = versions(session.host)
    if found.loaded is None:
        raise Refused(
            "no NVIDIA driver is loaded: there is no version to lock", hint="load the driver first", code="no-driver"
        )
    disagree = found.library is not None and found.library != found.loaded
    if disagree and not force:
        raise Refused(
            f"the loaded driver is {found.loaded}, the libraries on disk are {found.library}",
            hint="reboot or reload the driver first; or write it all the same: sudo holdfast lock write --force",
            code="driver-mismatch",
        )
    if found.locked == found.loaded and not found.problem:
        return _written(found.loaded, f"{LOCK_FILE} already says {found.loaded}", changed=False)
    note = f"forced: the libraries on disk were {found.library}" if disagree else ""
    try:
        text = lock_text(found.loaded, at=session.host.clock.now().wall, who=session.caller, note=note)
        session.host.files.write_atomic(LOCK_FILE, text, 0o644)
    except FileTrouble as error:
        error.hint = error.hint or "the package makes this directory: is holdfast installed?"
        raise
    return _written(found.loaded, f"{LOCK_FILE} now says {found.loaded}", changed=True)


def _written(version: str, text: str, *, changed: bool) -> Result:
    return Result("lock-written", {"path": LOCK_FILE, "locked": version, "changed": changed}, plain(text))


def lock_text(version: str, *, at: float, who: str, note: str = "") -> str:
    """The lock file's text: who locked what and when, then the version alone on its line."""
    words = "".join(c for c in who if c.isprintable())[:64]
    lines = [
        "# The NVIDIA driver this host must run: holdfast explain driver.lock",
        f"# locked {rfc3339(at)} by {words}",
    ]
    if note:
        lines.append(f"# {note}")
    return "\n".join([*lines, version, ""])


def verify() -> Result:
    """Check the driver against the lock (the check driver.lock)."""
    from agent.cli.check import check

    return check(ids=["driver.lock"])


VERB = Verb(commands=(show, write, verify), help="Show, write or verify the driver lock.", group=True)
