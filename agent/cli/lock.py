"""`holdfast lock`: the driver version this host must run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.cli._common import Force, need_root, recorded_name
from agent.cli._result import Live, Progress, Result, plain
from agent.cli._session import current
from agent.cli._verb import Verb
from agent.errors import DaemonUnreachable, HostError, Refused
from agent.model import CheckResult, Json, Outcome, Status, worst

if TYPE_CHECKING:
    from agent.host import Host

LOCK_FILE = "/etc/holdfast/driver.lock"


@dataclass(frozen=True, slots=True)
class Versions:
    """The versions that should be one, None where there is none; `problem` is what is wrong with the lock."""

    locked: str | None
    problem: str
    loaded: str | None
    library: str | None
    cuda: str | None = None


def versions(host: Host) -> Versions:
    """The versions as they are now. Raises FileTrouble."""
    from agent.host import driver

    lock = driver.read_lock(host, LOCK_FILE)
    return Versions(
        lock.version,
        str(lock.problem or ""),
        driver.loaded_version(host),
        driver.library_version(host),
        driver.library_version(host, driver.CUDA_LIBRARY),
    )


def judge(found: Versions) -> tuple[Status, str]:
    """Whether they agree, in a status and one line."""
    there = {version for version in (found.locked, found.loaded, found.library, found.cuda) if version}
    libraries = {version for version in (found.library, found.cuda) if version}
    if found.problem not in ("", "absent"):
        if found.problem == "unreadable":
            return Status.UNKNOWN, f"{LOCK_FILE} cannot be read"
        return Status.CRITICAL, f"the lock is {found.problem}: sudo holdfast lock write"
    if not found.loaded and not found.library:
        if found.locked:
            return Status.CRITICAL, f"the lock demands {found.locked}, and no driver is there"
        return Status.OK, "no NVIDIA driver and no lock: nothing to agree on"
    if found.loaded and libraries - {found.loaded}:
        return Status.CRITICAL, "the loaded driver and the libraries on disk differ: a restarted engine loses its GPU"
    if not found.locked:
        return Status.WARNING, "not locked: sudo holdfast lock write"
    if len(there) > 1 or not found.loaded:
        wrong = f"the lock demands {found.locked}, and another version is there"
        return Status.CRITICAL, wrong if len(there) > 1 else "the locked driver is on disk, but not loaded"
    return Status.OK, f"all agree on {found.locked}"


def show() -> Result:
    """Show every truth about the driver: locked, loaded, on disk, and what the next boot would load."""
    from agent import plugin
    from agent.cli._checks import run_now
    from agent.host import driver
    from agent.plugin import Target
    from agent.views import texts

    found = versions(current().host)
    checks = [plugin.checks()[name] for name in ("driver.next_boot", "driver.packages", "host.reboot")]
    results = run_now([(check, Target("host", check.params(), check.every_s)) for check in checks])
    boot, packages, reboot = results
    verdicts = [judge(found), (boot.status, boot.summary), (packages.status, packages.summary)]
    status = worst(each for each, _ in verdicts)
    words = next(text for each, text in verdicts if each is status)
    kind = "open " if driver.loaded_is_open(current().host) else ""
    rows = [
        ("lock", found.locked or found.problem or "absent", LOCK_FILE),
        ("loaded", found.loaded or "none", f"the {kind}kernel module that runs now"),
        ("libnvidia-ml", found.library or "none", "on disk: what nvidia-smi and monitoring load"),
        ("libcuda", found.cuda or "none", "on disk: what an engine loads when it starts"),
        *_boot_rows(boot),
        ("packages", _package_versions(packages), packages.summary),
        ("reboot", "armed" if reboot.value("reboot.armed") else "-", reboot.summary),
    ]
    data = {
        "status": status.value,
        "summary": words,
        "locked": found.locked,
        "problem": found.problem or None,
        "loaded": found.loaded,
        "library": found.library,
        "cuda": found.cuda,
        **{name: _facts(result) for name, result in zip(("next_boot", "packages", "reboot"), results, strict=True)},
    }
    return Result(
        "lock",
        data,
        lambda width: "\n".join(
            [*texts.table(("WHAT", "VERSION", "FROM"), rows, width), *texts.labelled(status.value, words, width)]
        ),
        exit_code=status.exit_code,
    )


def _boot_rows(boot: CheckResult) -> list[tuple[str, str, str]]:
    """What the running kernel would load again, and what the next one will."""
    rows = []
    for what, prefix in (("running kernel", "running"), ("next boot", "next")):
        problem = boot.value(f"{prefix}.problem") or boot.value(f"{prefix}.driver_problem")
        kernel, why = boot.value(f"{prefix}.release"), boot.value(f"{prefix}.how") or "would load again"
        if problem or not kernel:
            nothing = boot.value("traces") is False
            rows.append((what, "-" if nothing else "unknown", boot.summary if nothing else problem or boot.summary))
            continue
        source = boot.value(f"{prefix}.absent") or boot.value(f"{prefix}.stale") or boot.value(f"{prefix}.path")
        rows.append((what, boot.value(f"{prefix}.version") or "none", f"{kernel} ({why}): {source}"))
    secure = boot.value("secure_boot")
    if secure:
        rows.append(("Secure Boot", "on", f"the module is signed by {boot.value('next.signer') or 'nobody'}"))
    return rows


def _package_versions(packages: CheckResult) -> str:
    found = {package["driver"] for package in packages.value("packages") or () if package["driver"]}
    return ", ".join(sorted(found)) or "-"


def _facts(result: CheckResult) -> Json:
    """What a check saw, by name; what it only keeps for its next look is left out."""
    kept = ("known", "stamp", "change.since")
    seen = {each.name: each.value for each in result.evidence if each.name not in kept}
    return {"status": result.status.value, "summary": result.summary, **seen}


def write(force: Force = False) -> Live:
    """Lock the driver that is loaded now; refused where the host contradicts itself."""
    from agent.cli._sockets import events, new_id
    from agent.protocol import Request

    session = current()
    need_root(session, "holdfast lock write")
    request = Request(
        do="run",
        id=new_id(),
        runbook="write-lock",
        subject="host",
        args={"by": recorded_name(session), "force": force},
        because="lock write --force" if force else "lock write",
        force=force,
    )
    before: dict[str, Json] = {}
    for event in events(session, request):
        data = event.data
        if event.event == "refused":
            raise _refused(str(data.get("reason") or "the runner refused"), str(data.get("code") or "refused"))
        if event.event == "step_started":
            yield Progress(f"{data.get('name', '')} …", transient=True)
        if event.event == "planned" and data.get("use") == "lock.write":
            before = dict(data.get("before") or {})
        if event.event == "step_ended" and data.get("use") != "lock.write":
            yield Progress(_beside(data))
        if event.event == "ended":
            if data.get("outcome") != Outcome.SUCCEEDED.value:
                hint = f"holdfast audit show {request.id}"
                raise HostError(str(data.get("summary")), code=str(data.get("code") or "not-written"), hint=hint)
            return _written(before)
    raise DaemonUnreachable("the runner hung up before the lock was written", where=request.id, code="runner-gone")


def _beside(step: Mapping[str, Json]) -> str:
    """What another step of the run did."""
    words = f"{step.get('name', '')}: {step.get('summary') or 'done'}"
    return words if step.get("ok") else f"{words} (this did not work; the lock is not touched by it)"


def _refused(reason: str, code: str) -> Refused:
    """The runner's no, with what to do about it."""
    mend = {
        "driver-mismatch": "reboot or reload the driver",
        "driver-inconsistent": "mend that (holdfast lock show)",
    }
    hint = {
        "no-driver": "load the driver first",
        "change-open": "holdfast change status",
    }.get(code, "")
    if code in mend:
        hint = f"{mend[code]} first; or write it all the same: sudo holdfast lock write --force"
    return Refused(reason, hint=hint, code=code)


def _written(before: Mapping[str, Json]) -> Result:
    version, changed, doubts = before.get("version"), bool(before.get("changed")), list(before.get("not_told") or ())
    text = f"{LOCK_FILE} {'now' if changed else 'already'} says {version}"
    data = {"path": LOCK_FILE, "locked": version, "changed": changed, "not_told": doubts}
    lines = [text, *(f"could not be checked: {each}" for each in doubts)]
    return Result("lock-written", data, plain("\n".join(lines)))


def verify() -> Result:
    """Check the driver against the lock (the check driver.lock)."""
    from agent.cli.check import check

    return check(ids=["driver.lock"])


VERB = Verb(commands=(show, write, verify), help="Show, write or verify the driver lock.", group=True)
