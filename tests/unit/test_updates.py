"""What apt's lists and the log of unattended-upgrades say: real answers, and lines that nobody should be fooled by."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from agent import frame, plugin
from agent.host import apt_policy, holds, packages, unattended
from agent.host.apt_policy import Waiting
from agent.host.holds import Owned
from agent.host.unattended import UnattendedRun
from agent.model import Moment, Observation, Observed, Status
from agent.plugin import Target
from tests.support.fake_host import FakeHost

DATA = Path(__file__).resolve().parents[1] / "data" / "driver.updates" / "waiting-since-today"
NOBLE = {tuple(entry["argv"]): entry["stdout"] for entry in yaml.safe_load((DATA / "commands.yaml").read_text())}
DEBIAN = """\
Package files:
 100 /var/lib/dpkg/status
     release a=now
 500 http://archive.example/debian-security bookworm-security/main amd64 Packages
     release v=12,o=Debian,a=oldstable-security,n=bookworm-security,l=Debian-Security,c=main,b=amd64
     origin archive.example
1001 http://archive.example/debian bookworm/main amd64 Packages
     release v=12.15,o=Debian,a=oldstable,n=bookworm,l=Debian,c=main,b=amd64
     origin archive.example
Pinned packages:
     openssl -> 3.0.20-1~deb12u2 with priority 1001
"""
SECURITY = "http://archive.example/debian-security bookworm-security/main amd64 Packages"


def table(*lines: str, name: str = "openssl") -> str:
    return "\n".join([f"{name}:", "  Installed: 1", "  Candidate: 3", "  Version table:", *lines]) + "\n"


def test_a_pocket_is_known_by_its_release_file_on_debian_and_on_ubuntu() -> None:
    assert apt_policy.security_pockets(DEBIAN) == {SECURITY}
    noble = apt_policy.security_pockets(NOBLE["apt-cache", "policy"])
    assert noble
    assert all("noble-security" in each for each in noble)


def test_a_mirror_of_everything_under_another_name_is_known_by_what_it_says_of_itself() -> None:
    said = " 500 file:/srv/mirror ./ Packages\n     release o=Bed,a=noble-security,n=noble,l=Bed,b=amd64\n"
    assert apt_policy.security_pockets(said) == {"file:/srv/mirror ./ Packages"}
    assert apt_policy.security_pockets(said.replace("noble-security", "noble-updates")) == frozenset()


@pytest.mark.parametrize(
    ("said", "newest"),
    [
        (table("     3 500", f"        500 {SECURITY}", " *** 1 500", "        100 /var/lib/dpkg/status"), "3"),
        (table("     3 500 (phased 10%)", f"        500 {SECURITY}", " *** 1 500"), "3"),
        (table("     3 -1", f"         -1 {SECURITY}", " *** 1 1001", f"       1001 {SECURITY}"), "3"),
        # The newest comes from elsewhere, the one below it is the security update.
        (
            table(
                "     4 500", "        500 http://x backports", "     3 500", f"        500 {SECURITY}", " *** 1 500"
            ),
            "3",
        ),
        (table("     4 500", "        500 http://x updates", f"        500 {SECURITY}", " *** 1 500"), "4"),
    ],
)
def test_a_newer_version_in_a_security_pocket_waits(said: str, newest: str) -> None:
    assert apt_policy.waiting(said, frozenset({SECURITY})) == (Waiting("openssl", "1", newest),)


@pytest.mark.parametrize(
    "said",
    [
        table(" *** 1 500", f"        500 {SECURITY}", "        100 /var/lib/dpkg/status"),
        table("     3 500", "        500 http://x noble-updates/main amd64 Packages", " *** 1 500"),
        # Installed is newer than what the pocket has.
        table(" *** 5 500", "        100 /var/lib/dpkg/status", "     3 500", f"        500 {SECURITY}"),
        # Not installed: no line with ***.
        table("     3 500", f"        500 {SECURITY}"),
        "N: Unable to locate package openssl\n",
        "",
    ],
)
def test_what_is_not_a_security_update_does_not_wait(said: str) -> None:
    assert apt_policy.waiting(said, frozenset({SECURITY})) == ()


def test_each_package_of_an_answer_stands_for_itself() -> None:
    waits = table(
        "     3 500", f"        500 {SECURITY}", " *** 1 500", "        100 /var/lib/dpkg/status", name="a:i386"
    )
    quiet = table(" *** 1 500", f"        500 {SECURITY}", name="b")
    assert apt_policy.waiting(quiet + waits + quiet, frozenset({SECURITY})) == (Waiting("a:i386", "1", "3"),)


# --- unattended-upgrades -------------------------------------------------------------------------------------

BEGAN = "2026-11-20 06:12:33,123 INFO Starting unattended upgrades script\n"
GOOD = UnattendedRun("2026-11-20 06:12:33", "")


def run(*lines: str) -> str:
    return BEGAN + "".join(f"2026-11-20 06:12:40,001 {line}\n" for line in lines)


@pytest.mark.parametrize(
    "line", ["INFO All upgrades installed", "INFO No packages found that can be upgraded unattended and no pending …"]
)
def test_a_good_run(line: str) -> None:
    assert unattended.ended(run(line)) == (GOOD,)


@pytest.mark.parametrize(
    ("line", "passing"),
    [
        ("ERROR Installing the upgrades failed!", False),
        ("ERROR Cache has broken packages, exiting", False),
        ("ERROR Apt returned an error, exiting", False),
        ("ERROR An error occurred: SystemError", False),
        ("ERROR The URI http://x failed to download, aborting", True),
        ("ERROR Lock could not be acquired (another package manager running?)", True),
    ],
)
def test_a_run_that_failed_is_told_at_once_or_when_it_happens_again(line: str, passing: bool) -> None:
    (failed,) = unattended.ended(run(line))
    assert failed.failed
    assert unattended.failure((GOOD, failed)) == (None if passing else failed)
    assert unattended.failure((failed, failed)) == failed
    assert unattended.failure((failed, failed, GOOD)) is None


def test_a_download_that_failed_says_so_although_an_error_occurred() -> None:
    (failed,) = unattended.ended(
        run("ERROR An error occurred: 404", "ERROR The URI http://x failed to download, aborting")
    )
    assert (failed.failed, failed.passing) == ("a package could not be downloaded", True)


def test_runs_that_only_downloaded_were_cut_off_or_dry_say_nothing() -> None:
    log = (
        run("INFO All upgrades installed")
        + run("INFO Allowed origins are: x")
        + run("WARNING SIGTERM received, will stop")
    )
    log += run("INFO Option --dry-run given, *not* performing real actions", "ERROR Installing the upgrades failed!")
    assert unattended.ended(log) == (GOOD,)


def test_garbage_and_other_peoples_lines_say_nothing() -> None:
    words = "Installing the upgrades failed!\n"
    log = f"2026-11-20 06:12:40,001 ERROR {words}\x00\x00garbage\n{words}"
    assert unattended.ended(log) == ()
    assert unattended.ended(run("INFO Packages: Installing the upgrades failed!", "INFO All upgrades installed")) == (
        GOOD,
    )


# --- while dpkg works ----------------------------------------------------------------------------------------

AT_WORK = {
    packages.STATUS: "Package: x\n",
    packages.LOCKS[0]: "",
    holds.FILE: holds.text(Owned(("a:amd64",), "550.54.15", "", 1.0, "root")),
    "/proc/42/comm": "apt-get\n",
    "/proc/locks": "",
    "/proc/1/mountinfo": "",
}
SEEN = {
    "driver.holds": {"asked": True, "held": {"a:amd64": "1"}, "missing": [], "must": 1, "stamp": "old"},
    "driver.updates": {"asked": True, "held": 1, "pending": [{"name": "a", "since": 1.0}], "unattended": ""},
}


def at_work() -> FakeHost:
    host = FakeHost.build(AT_WORK)
    inode = host.files.stat(packages.LOCKS[0]).inode
    host.files.entries["/proc/locks"] = f"1: POSIX  ADVISORY  WRITE 42 fe:00:{inode} 0 EOF\n"
    return host


@pytest.mark.parametrize("name", sorted(SEEN))
def test_nothing_is_concluded_while_packages_are_changed_and_nothing_forgotten(name: str) -> None:
    check = plugin.checks()[name]
    before = Observed(Moment(1.0, 1.0, "b"), tuple(Observation(each, value) for each, value in SEEN[name].items()))
    result = frame.run_check(at_work(), check, Target("host", check.params(), check.every_s), before)
    assert result.value(check.unsettled) == "apt-get (pid 42) is changing packages"
    kept = {"driver.holds": "held", "driver.updates": "pending"}[name]
    assert result.value(kept) == SEEN[name][kept]
    fresh = frame.run_check(at_work(), check, Target("host", check.params(), check.every_s), None)
    assert fresh.status is Status.UNKNOWN
    assert "apt-get (pid 42) is changing packages" in fresh.summary
