"""Whether and when this host reboots by itself."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import pytest

from agent.errors import CommandFailed, FileTrouble
from agent.host import reboots
from tests.support.fake_host import START, FakeHost, Link

NOW = START.wall  # 2027-01-15 08:00:00 UTC
REQUIRED = {"/run/reboot-required": "*** System restart required ***\n"}
SETTINGS = 'APT::Periodic::Unattended-Upgrade "1";\nUnattended-Upgrade::Automatic-Reboot "true";\n'
TIMER = "systemctl show --property=NextElapseUSecRealtime --value -- apt-daily-upgrade.timer"
NEXT_RUN = "Sat 2027-01-16 06:32:11 UTC\n"


def unattended(settings: str = SETTINGS, timer: Any = NEXT_RUN, **files: Any) -> FakeHost:
    return FakeHost.build({**REQUIRED, **files}, commands={"apt-config dump": settings, TIMER: timer})


def at(host: FakeHost) -> str | None:
    armed = reboots.armed(host)
    assert armed is not None
    return None if armed.at is None else datetime.fromtimestamp(armed.at, timezone.utc).strftime("%d %H:%M:%S")


@pytest.mark.parametrize("mode", ["reboot", "kexec"])
def test_a_scheduled_shutdown_is_armed_at_its_time(mode: str) -> None:
    text = f"USEC={int((NOW + 3600) * 1e6)}\nWARN_WALL=1\nMODE={mode}\n"
    armed = reboots.armed(FakeHost.build({reboots.SCHEDULED: text}))
    assert armed is not None
    assert (armed.at, armed.by) == (NOW + 3600, "shutdown")


@pytest.mark.parametrize("mode", ["poweroff", "halt", "dry-reboot", ""])
def test_another_kind_of_shutdown_is_no_reboot(mode: str) -> None:
    assert reboots.armed(FakeHost.build({reboots.SCHEDULED: f"USEC=1\nMODE={mode}\n"})) is None


def test_a_schedule_without_a_time_is_armed_all_the_same() -> None:
    armed = reboots.armed(FakeHost.build({reboots.SCHEDULED: "MODE=reboot\nUSEC=soon\n"}))
    assert armed is not None
    assert armed.at is None


def test_a_schedule_that_cannot_be_read_is_not_taken_for_none() -> None:
    with pytest.raises(FileTrouble):
        reboots.armed(FakeHost.build({reboots.SCHEDULED: FileTrouble("denied", kind="denied")}))


def test_without_a_wanted_reboot_nothing_is_asked() -> None:
    host = FakeHost.build()
    assert reboots.armed(host) is None
    assert host.run.calls == []


def test_unattended_upgrades_reboots_after_its_next_run() -> None:
    assert at(unattended()) == "16 06:32:11"


@pytest.mark.parametrize(
    ("time", "expected"),
    [("04:00", "17 04:00:00"), ("07:00", "16 07:00:00"), ("+30", "16 07:02:11"), ("5", "16 06:37:11"),
     ("soon", None), ("25:00", None)],
)  # fmt: skip
def test_its_time_counts_from_that_run(time: str, expected: str | None) -> None:
    settings = f'{SETTINGS}Unattended-Upgrade::Automatic-Reboot-Time "{time}";\n'
    assert at(unattended(settings)) == expected


def test_the_time_is_the_hosts_own() -> None:
    settings = f'{SETTINGS}Unattended-Upgrade::Automatic-Reboot-Time "04:00";\n'
    zone = {"/etc/localtime": Link("/usr/share/zoneinfo/Europe/Berlin"), "/usr/share/zoneinfo/Europe/Berlin": ""}
    assert at(unattended(settings, **zone)) == "17 03:00:00"


@pytest.mark.parametrize("timer", [1, "", "n/a\n", "Sat 2027-13-40 06:32:11 UTC\n", CommandFailed("no systemd")])
def test_without_a_timer_the_earliest_moment_is_told(timer: Any) -> None:
    settings = f'{SETTINGS}Unattended-Upgrade::Automatic-Reboot-Time "08:30";\n'
    assert at(unattended(settings, timer)) == "15 08:30:00"
    assert at(unattended(timer=timer)) is None


@pytest.mark.parametrize(
    "settings",
    ["", SETTINGS.replace('"true"', '"false"'), SETTINGS.replace('"1"', '"0"'), SETTINGS.splitlines()[1] + "\n"],
)
def test_a_run_that_will_not_reboot_is_not_armed(settings: str) -> None:
    assert reboots.armed(unattended(settings)) is None


def test_keys_are_read_as_apt_reads_them() -> None:
    assert reboots.armed(unattended(SETTINGS.upper().replace("TRUE", "Yes"))) is not None


def test_a_host_without_apt_has_no_unattended_upgrades() -> None:
    missing = CommandFailed("apt-config: not found", code="command-not-found")
    assert reboots.armed(FakeHost.build(REQUIRED, commands={"apt-config dump": missing})) is None
    with pytest.raises(CommandFailed):
        reboots.armed(FakeHost.build(REQUIRED, commands={"apt-config dump": 100}))


def test_who_wants_the_reboot_is_named_once() -> None:
    pkgs = {"/run/reboot-required.pkgs": "linux-image-6.8.0-149-generic\nlibc6\nlinux-image-6.8.0-149-generic\n"}
    assert reboots.required(FakeHost.build({**REQUIRED, **pkgs})) == ("linux-image-6.8.0-149-generic", "libc6")
    assert reboots.required(FakeHost.build(REQUIRED)) == ()
    assert reboots.required(FakeHost.build({"/var/run/reboot-required": ""})) == ()
    assert reboots.required(FakeHost.build()) is None
