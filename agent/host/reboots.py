"""Whether this host is going to reboot by itself, and when: a scheduled shutdown, or unattended-upgrades' next run.

unattended-upgrades reboots when `/run/reboot-required` exists and `Unattended-Upgrade::Automatic-Reboot` is true, with
`shutdown -r TIME` at the end of its run; from then on it is a scheduled shutdown like any other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone, tzinfo
from zoneinfo import ZoneInfo

from agent.errors import CommandFailed, FileTrouble, HostError
from agent.host import Host

SCHEDULED = "/run/systemd/shutdown/scheduled"
"""Written by systemd-logind for `shutdown +10` and the like: USEC= (realtime), MODE=."""
REQUIRED = ("/run/reboot-required", "/var/run/reboot-required")
TIMER = "apt-daily-upgrade.timer"
"""What starts unattended-upgrades on Debian and Ubuntu (package apt)."""
_REBOOTING = ("reboot", "kexec")
_QUERY_S = 10.0
_SETTING = re.compile(r'^(\S+) "(.*)";$', re.MULTILINE)
_TRUE = ("true", "yes", "1", "with", "on", "enable")
"""What apt takes for true (apt-pkg/contrib/strutl.cc, StringToBool)."""


@dataclass(frozen=True, slots=True)
class ArmedReboot:
    """A reboot that will come by itself. `at` is Unix seconds, None when it is not known more closely than `words`."""

    at: float | None
    by: str
    words: str


def armed(host: Host) -> ArmedReboot | None:
    """The reboot that comes first, None when none is armed. Raises HostError where that cannot be told."""
    return _scheduled(host) or _unattended(host)


def required(host: Host) -> tuple[str, ...] | None:
    """The packages that want a reboot (may be empty), None when none is wanted. Raises FileTrouble."""
    for path in REQUIRED:
        if host.files.exists(path):
            names = host.files.read_text(f"{path}.pkgs").split("\n") if host.files.exists(f"{path}.pkgs") else []
            return tuple(dict.fromkeys(name.strip() for name in names if name.strip()))
    return None


def _scheduled(host: Host) -> ArmedReboot | None:
    try:
        text = host.files.read_text(SCHEDULED)
    except FileTrouble as trouble:
        if trouble.kind == "missing":
            return None
        raise
    fields = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    if fields.get("MODE") not in _REBOOTING:
        return None
    usec = fields.get("USEC", "")
    at = int(usec) / 1e6 if usec.isascii() and usec.isdecimal() else None
    return ArmedReboot(at, "shutdown", "a reboot is scheduled (shutdown -c cancels it)")


def _unattended(host: Host) -> ArmedReboot | None:
    """What unattended-upgrades will do at the end of its next run."""
    if required(host) is None:
        return None
    settings = _apt_settings(host)
    if settings.get("unattended-upgrade::automatic-reboot", "").lower() not in _TRUE:
        return None
    if settings.get("apt::periodic::unattended-upgrade", "0") in ("", "0"):
        return None
    when = settings.get("unattended-upgrade::automatic-reboot-time", "now")
    run = _next_run(host)
    words = f"unattended-upgrades reboots after its next run (Automatic-Reboot, {when})"
    return ArmedReboot(_reboot_at(host, run, when), "unattended-upgrades", words)


def _reboot_at(host: Host, run: float | None, when: str) -> float | None:
    """When `shutdown -r WHEN` at the end of a run reboots: the run itself, minutes later, or the next such time."""
    if when == "now":
        return run
    start = host.clock.now().wall if run is None else run
    minutes = re.fullmatch(r"\+?(\d{1,5})", when)
    if minutes:
        return start + 60.0 * int(minutes[1])
    clock = re.fullmatch(r"(\d{1,2}):(\d{2})", when)
    if clock is None or int(clock[1]) > 23 or int(clock[2]) > 59:
        return None
    after = datetime.fromtimestamp(start, time_zone(host))
    reboot = after.replace(hour=int(clock[1]), minute=int(clock[2]), second=0, microsecond=0)
    if reboot <= after:
        reboot += timedelta(days=1)
    return reboot.timestamp()


def _apt_settings(host: Host) -> Mapping[str, str]:
    """Apt's configuration as it is in effect, keys in lower case as apt compares them; {} where there is no apt."""
    try:
        answer = host.run(["apt-config", "dump"], timeout_s=_QUERY_S)
    except CommandFailed as error:
        if error.code == "command-not-found":
            return {}
        raise
    if answer.rc != 0:
        raise CommandFailed(f"apt-config dump ended with status {answer.rc}", where="apt-config")
    return {key.lower(): value for key, value in _SETTING.findall(answer.stdout)}


def _next_run(host: Host) -> float | None:
    """When the timer of unattended-upgrades elapses next, Unix seconds; None when that is not known."""
    try:
        answer = host.run(
            ["systemctl", "show", "--property=NextElapseUSecRealtime", "--value", "--", TIMER],
            timeout_s=_QUERY_S,
            env={"TZ": "UTC"},
        )
    except HostError:
        return None
    words = answer.stdout.split()
    if answer.rc != 0 or len(words) != 4 or words[3] != "UTC":  # "Sat 2026-11-21 06:32:11 UTC", or nothing
        return None
    try:
        return datetime.strptime(f"{words[1]} {words[2]} +0000", "%Y-%m-%d %H:%M:%S %z").timestamp()
    except ValueError:
        return None


def time_zone(host: Host) -> tzinfo:
    """The host's time zone, which `shutdown` counts in; UTC where it cannot be told."""
    try:
        name = host.files.realpath("/etc/localtime").partition("/zoneinfo/")[2]
        return ZoneInfo(name) if name else timezone.utc
    except (HostError, ValueError, OSError, KeyError):  # a zone that this host does not know is a KeyError
        return timezone.utc
