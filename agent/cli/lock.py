"""`holdfast lock`: the driver version this host must run."""

from __future__ import annotations

from dataclasses import dataclass

from agent.cli._common import Force, need_root
from agent.cli._result import Result, plain, rfc3339
from agent.cli._session import current
from agent.cli._verb import Verb
from agent.errors import FileTrouble, Refused
from agent.model import Status

LOCK_FILE = "/etc/holdfast/driver.lock"


@dataclass(frozen=True, slots=True)
class Versions:
    """The three versions that should be one, None where there is none; `problem` is what is wrong with the lock."""

    locked: str | None
    problem: str
    loaded: str | None
    library: str | None


def _versions() -> Versions:
    from agent.host import driver

    host = current().host
    lock = driver.read_lock(host, LOCK_FILE)
    return Versions(lock.version, str(lock.problem or ""), driver.loaded_version(host), driver.library_version(host))


def judge(versions: Versions) -> tuple[Status, str]:
    """Whether the three agree, in a status and one line."""
    there = {version for version in (versions.locked, versions.loaded, versions.library) if version}
    if versions.problem and versions.problem != "absent":
        return Status.CRITICAL, f"the lock is {versions.problem}: sudo holdfast lock write"
    if not versions.loaded and not versions.library:
        if versions.locked:
            return Status.CRITICAL, f"the lock demands {versions.locked}, and no driver is there"
        return Status.OK, "no NVIDIA driver and no lock: nothing to agree on"
    if versions.loaded and versions.library and versions.loaded != versions.library:
        return Status.CRITICAL, "the loaded driver and the libraries on disk differ: a restarted engine loses its GPU"
    if not versions.locked:
        return Status.WARNING, "not locked: sudo holdfast lock write"
    if len(there) > 1:
        return Status.CRITICAL, f"the lock demands {versions.locked}, and another version is there"
    if not versions.loaded:
        return Status.CRITICAL, "the locked driver is on disk, but not loaded"
    return Status.OK, f"all agree on {versions.locked}"


def show() -> Result:
    """Show the locked, the loaded and the installed version, and whether they agree."""
    from agent.views import texts

    versions = _versions()
    status, words = judge(versions)
    rows = (
        ("lock", versions.locked or versions.problem or "absent", LOCK_FILE),
        ("loaded", versions.loaded or "none", "the kernel module that runs now"),
        ("library", versions.library or "none", "libnvidia-ml.so.1 on disk"),
    )
    data = {
        "status": status.value,
        "summary": words,
        "locked": versions.locked,
        "problem": versions.problem or None,
        "loaded": versions.loaded,
        "library": versions.library,
    }
    return Result(
        "lock",
        data,
        lambda width: "\n".join([*texts.table(("WHAT", "VERSION", "FROM"), rows, width), *texts.labelled(status.value, words, width)]),
        exit_code=status.exit_code,
    )


def write(force: Force = False) -> Result:
    """Lock the driver that is loaded now."""
    session = current()
    need_root(session, "holdfast lock write")
    versions = _versions()
    if versions.loaded is None:
        raise Refused("no NVIDIA driver is loaded: there is no version to lock", hint="load the driver first", code="no-driver")
    disagree = versions.library is not None and versions.library != versions.loaded
    if disagree and not force:
        raise Refused(
            f"the loaded driver is {versions.loaded}, the libraries on disk are {versions.library}",
            hint="reboot or reload the driver first; or write it all the same: sudo holdfast lock write --force",
            code="driver-mismatch",
        )
    if versions.locked == versions.loaded and not versions.problem:
        return _written(versions.loaded, f"{LOCK_FILE} already says {versions.loaded}", changed=False)
    note = f"forced: the libraries on disk were {versions.library}" if disagree else ""
    try:
        text = lock_text(versions.loaded, at=session.host.clock.now().wall, who=session.caller, note=note)
        session.host.files.write_atomic(LOCK_FILE, text, 0o644)
    except FileTrouble as error:
        error.hint = error.hint or "the package makes this directory: is holdfast installed?"
        raise
    return _written(versions.loaded, f"{LOCK_FILE} now says {versions.loaded}", changed=True)


def _written(version: str, text: str, *, changed: bool) -> Result:
    return Result("lock-written", {"path": LOCK_FILE, "locked": version, "changed": changed}, plain(text))


def lock_text(version: str, *, at: float, who: str, note: str = "") -> str:
    """The lock file's text: who locked what and when, then the version alone on its line."""
    words = "".join(c for c in who if c.isprintable())[:64]
    lines = ["# The NVIDIA driver this host must run: holdfast explain driver.lock", f"# locked {rfc3339(at)} by {words}"]
    if note:
        lines.append(f"# {note}")
    return "\n".join([*lines, version, ""])


def verify() -> Result:
    """Check the driver against the lock (the check driver.lock)."""
    from agent.cli.check import check

    return check(ids=["driver.lock"])


VERB = Verb(commands=(show, write, verify), help="Show, write or verify the driver lock.", group=True)
