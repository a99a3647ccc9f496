"""The package on a booted host: installed without a network, upgraded under a run, removed, purged; and its last words.

Maintainer scripts never start, stop or restart an engine: its main process is the same before and after each.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from bed import BootedHost, kill, stopped
from cutting import PLACES, in_flight, let_go, outcomes, prepare, standing_at, starts_of_engine, wait_until_over
from spine import Page, Watched, built_package, watched

Boot = Callable[..., BootedHost]
SUITES = ("bookworm", "trixie", "jammy", "noble", "resolute")
OURS = (
    "/etc/holdfast /usr/lib/holdfast /usr/share/holdfast /usr/share/doc/holdfast /var/lib/holdfast"
    " /var/lib/holdfast-runner /run/holdfast /run/holdfast-runner.sock /run/holdfast-inspect.sock /usr/bin/holdfast"
    " /etc/apt/apt.conf.d/52holdfast /etc/apt/apt.conf.d/80holdfast /etc/needrestart/conf.d/holdfast.conf"
)
IMPORT_ALL = """\
import importlib, pkgutil, runpy, sys
sys.argv = ["holdfast"]
runpy.run_path("/usr/bin/holdfast", run_name="launcher")
import agent, checks
found = []
for package in (agent, checks):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith(("__main__", "nvml_child")):
            importlib.import_module(module.name)
            found.append(module.name)
print(len(found), sys.version.split()[0])
"""


@pytest.mark.parametrize("suite", SUITES)
def test_it_installs_without_a_network_and_every_module_imports(host: Boot, suite: str) -> None:
    booted = host(suite, llama=False)
    booted.install_deb(built_package())
    printed = booted.run("/usr/bin/python3", "-IS", "-c", IMPORT_ALL).stdout.split()
    assert int(printed[0]) > 80, printed
    print(f"\n{suite}: Python {printed[1]}, {printed[0]} modules")
    assert field(built_package(), "Version") in booted.run("holdfast", "--version").stdout
    for unit in ("holdfast.service", "holdfast-runner.socket", "holdfast-inspect.socket"):
        assert booted.unit(unit, "ActiveState") == {"ActiveState": "active"}
    assert booted.run("systemctl", "list-units", "--failed", "--no-legend", "holdfast*").stdout.strip() == ""
    assert booted.run("dpkg", "--verify", "holdfast").stdout == ""
    assert "holds" not in booted.run("apt-mark", "showhold").stdout


def field(deb: Path, name: str) -> str:
    """One field of a package."""
    argv = ["dpkg-deb", "--field", str(deb), name]
    return subprocess.run(argv, check=True, timeout=60, text=True, capture_output=True).stdout.strip()


def newer(folder: Path) -> Path:
    """The built package again, as a later version of itself."""
    tree = folder / "tree"
    subprocess.run(["dpkg-deb", "--raw-extract", str(built_package()), str(tree)], check=True, timeout=120)
    control = tree / "DEBIAN/control"
    version = field(built_package(), "Version")
    control.write_text(control.read_text().replace(f"\nVersion: {version}\n", f"\nVersion: {version}+later1\n"))
    deb = folder / f"holdfast_{version}+later1_amd64.deb"
    argv = ["dpkg-deb", "-Zgzip", "-z1", "--build", "--root-owner-group", str(tree), str(deb)]
    subprocess.run(argv, check=True, timeout=300, stdout=subprocess.DEVNULL)
    return deb


@pytest.mark.parametrize("suite", ["bookworm", "trixie"])
def test_an_upgrade_does_not_cut_a_run_in_flight_and_keeps_state(host: Boot, suite: str, tmp_path: Path) -> None:
    deb = newer(tmp_path)
    scene = watched(host, suite)
    prepare(scene)
    place = next(place for place in PLACES if place.name == "verify")
    with standing_at(scene, place) as run:
        engine, daemon = scene.engine.pid, scene.host.main_pid("holdfast.service")
        incident = scene.incidents()[0]["id"]
        scene.host.install_deb(deb)
        assert "+later1" in scene.host.run("dpkg-query", "-W", "holdfast").stdout
        assert scene.host.main_pid("holdfast.service") not in (0, daemon), "the daemon runs the new version"
        assert in_flight(scene.host) == run, "the run goes on"
        assert scene.engine.pid == engine
        let_go(scene.host, place)
        wait_until_over(scene)
    assert outcomes(scene) == ["succeeded"]
    assert starts_of_engine(scene.host) == 2
    assert [each["id"] for each in scene.incidents()] == [incident]
    scene.resolved("engine-dead", 60)
    assert "mode" in scene.host.read("/etc/holdfast/holdfast.toml")


def test_remove_stops_everything_and_purge_leaves_nothing(host: Boot) -> None:
    scene = watched(host)
    kill(scene.host, scene.engine.pid)
    scene.resolved("engine-dead", 120)
    engine = scene.engine.pid
    scene.host.sh("apt-get remove -q -y holdfast", timeout=120)
    assert scene.host.run("systemctl", "list-units", "--no-legend", "holdfast*").stdout.strip() == ""
    assert scene.host.run("pgrep", "-u", "holdfast", check=False).stdout == ""
    assert scene.host.exists("/var/lib/holdfast/holdfast.db") or scene.host.sh("ls /var/lib/holdfast")
    assert scene.host.exists("/var/lib/holdfast-runner/ledger.jsonl")
    assert not scene.host.exists("/usr/lib/holdfast"), "byte code goes with the files"
    assert scene.engine.pid == engine
    scene.host.sh("apt-get purge -q -y holdfast", timeout=120)
    assert scene.host.sh(f"ls -d {OURS} 2>/dev/null || true") == ""
    left = scene.host.sh("find / -xdev -iname '*holdfast*' 2>/dev/null || true").splitlines()
    others = ("/proc/", "/var/cache/bed/", "/var/log/", "/var/lib/dpkg", "/var/lib/apt")
    kept = [path for path in left if not path.startswith(others)]
    assert kept == []
    assert scene.engine.pid == engine
    assert scene.engine.generates()


def test_removing_the_package_during_a_run_undoes_it_first(host: Boot) -> None:
    scene = watched(host, engine="stop_grace_s = 60")
    prepare(scene)
    place = next(place for place in PLACES if place.name == "while it stops")
    with standing_at(scene, place):
        scene.host.sh("apt-get remove -q -y holdfast", timeout=180)
        scene.engine.wait_until_generates(60)
    recorded = [record["data"]["outcome"] for record in scene.ledger("outcome")]
    assert recorded == ["stopped"]
    assert starts_of_engine(scene.host) == 2


def failed_pages(scene: Watched) -> list[Page]:
    """What was told about the daemon itself."""
    return [page for page in scene.pages() if page.finding == "daemon-failed"]


def test_a_daemon_that_cannot_start_is_paged_once_and_resolved_when_it_serves_again(host: Boot) -> None:
    scene = watched(host)
    good = scene.host.read("/etc/holdfast/holdfast.toml")
    scene.host.run("systemctl", "stop", "holdfast")
    scene.host.write("/etc/holdfast/holdfast.toml", good + "\n[pager]\npage_after = 1\n", 0o640)
    scene.host.sh("chgrp holdfast /etc/holdfast/holdfast.toml; systemctl start holdfast || true")
    assert scene.host.unit("holdfast.service", "ExecMainStatus") == {"ExecMainStatus": "78"}
    scene.page(lambda page: page.finding == "daemon-failed", 60, "the page")
    time.sleep(10)
    (page,) = failed_pages(scene)
    assert (page.action, page.severity) == ("trigger", "critical")
    assert "configuration" in page.message
    scene.host.write("/etc/holdfast/holdfast.toml", good, 0o640)
    scene.host.sh("chgrp holdfast /etc/holdfast/holdfast.toml; systemctl start holdfast")
    scene.page(lambda page: page.finding == "daemon-failed" and page.action == "resolve", 60, "the resolve")
    assert [page.action for page in failed_pages(scene)] == ["trigger", "resolve"]
    assert len({page.key for page in failed_pages(scene)}) == 1


def test_a_daemon_that_hangs_is_killed_by_its_watchdog_told_and_serves_again(host: Boot) -> None:
    scene = watched(host)
    before = scene.host.main_pid("holdfast.service")
    with stopped(scene.host, before):
        scene.host.wait_for(
            lambda: scene.host.main_pid("holdfast.service") not in (0, before), 150, "the next daemon", every=1
        )
    assert "Watchdog timeout" in scene.host.journal("holdfast.service")
    scene.page(lambda page: page.finding == "daemon-restarted", 60, "the event about the watchdog")
    time.sleep(10)
    told = [page for page in scene.pages() if page.finding.startswith("daemon-") or "daemon-" in page.key]
    assert [page.action for page in told] == ["trigger", "resolve"], "told once; an event is resolved at once"
    assert told[0].severity == "info"
    assert "SIGABRT" in told[0].message
    kill(scene.host, scene.engine.pid)
    scene.resolved("engine-dead", 120)
