"""What the package says about itself, read from the sources: no package needs to be built for these."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

UNITS = Path(__file__).resolve().parents[2] / "packaging" / "deb" / "units"


def locked(repository: Path, name: str = "runtime") -> dict[str, str]:
    text = (repository / "requirements" / f"{name}.txt").read_text()
    return dict(re.findall(r"^([a-z0-9-]+)==([^\s;]+)", text, re.MULTILINE))


def copyright_stanzas(repository: Path) -> list[str]:
    return (repository / "packaging/deb/debian/copyright").read_text().strip().split("\n\n")


def test_every_locked_library_has_a_licence_entry_and_no_entry_is_left_over(repository: Path) -> None:
    listed = {
        name.replace("_", "-")
        for stanza in copyright_stanzas(repository)
        for name in re.findall(r"vendor/\*/(\w+)-\*\.dist-info/\*", stanza)
    }
    assert listed == set(locked(repository))


def test_every_licence_that_an_entry_names_has_its_text(repository: Path) -> None:
    stanzas = copyright_stanzas(repository)
    texts = {match[1] for stanza in stanzas if (match := re.match(r"License: (\S+)\n ", stanza))}
    named = set()
    for stanza in stanzas:
        if stanza.startswith("Files:"):
            found = re.search(r"^License: (.+)$", stanza, re.MULTILINE)
            assert found, stanza
            assert "Copyright: " in stanza
            named |= set(found[1].split(" and "))
    assert named == texts


def test_tests_run_on_the_versions_that_the_package_ships(repository: Path) -> None:
    runtime, dev = locked(repository), locked(repository, "dev")
    assert {name: dev.get(name) for name in runtime} == runtime


def test_every_locked_file_is_pinned_by_its_hash(repository: Path) -> None:
    for name in ("runtime", "dev", "build"):
        text = (repository / "requirements" / f"{name}.txt").read_text()
        blocks = re.split(r"^(?=[a-z0-9-]+==)", text, flags=re.MULTILINE)[1:]
        assert blocks
        for block in blocks:
            assert re.search(r"--hash=sha256:[0-9a-f]{64}", block), block.splitlines()[0]


def test_version_is_the_same_in_the_project_and_in_the_package(repository: Path) -> None:
    project = re.search(r'^version = "(.+)"$', (repository / "pyproject.toml").read_text(), re.MULTILINE)
    package = re.match(r"holdfast \((.+?)\)", (repository / "packaging/deb/debian/changelog").read_text())
    assert project
    assert package
    assert project[1] == package[1]


@pytest.mark.parametrize("unit", sorted(UNITS.glob("*.service")), ids=lambda path: path.name)
def test_no_unit_sets_what_hides_the_card_or_the_processes(unit: Path) -> None:
    set_here = set(re.findall(r"^(\w+)=", unit.read_text(), re.MULTILINE))
    # facts about systemd: these hide /dev/nvidia*, /usr/lib/modules, /dev/kmsg or other users' processes.
    hiding = {
        "PrivateDevices",
        "ProtectClock",
        "ProtectKernelModules",
        "ProtectKernelLogs",
        "ProtectProc",
        "ProcSubset",
    }
    if unit.name != "holdfast-failed@.service":  # it only reads the journal and sends
        assert not set_here & hiding


def test_sockets_lie_outside_the_directory_that_the_daemon_takes_with_it() -> None:
    for unit in UNITS.glob("*.socket"):
        listen = re.search(r"^ListenStream=(.+)$", unit.read_text(), re.MULTILINE)
        assert listen
        assert not listen[1].startswith("/run/holdfast/")
        assert "TriggerLimitIntervalSec=0" in unit.read_text()


def test_maintainer_scripts_never_touch_runs_on_an_upgrade_nor_holds_nor_engines(repository: Path) -> None:
    scripts = {
        name: (repository / "packaging/deb/debian" / name).read_text()
        for name in ("preinst", "postinst", "prerm", "postrm")
    }
    # apt has the lock that releasing a hold needs: only the job that purge leaves behind does it, when apt is done.
    job = re.search(r"<<'END'.*?^END$", scripts["postrm"], flags=re.DOTALL | re.MULTILINE)
    assert job is not None
    before, _, purge = scripts["postrm"].partition("\npurge)")
    assert ("release_holds ||" in before, "release_holds ||" in purge) == (False, True)
    for name, text in scripts.items():
        lines = text.replace(job[0], "").splitlines()
        code = "\n".join(line for line in lines if not line.lstrip().startswith(("#", "echo")))
        assert not re.search(r"apt-mark|reboot|shutdown|systemctl (re)?start|docker (start|stop|restart)", code), name
    assert "holdfast-runner@" not in re.sub(r"^\s*#.*$", "", scripts["postinst"], flags=re.MULTILINE)
    upgrade = scripts["prerm"].split("upgrade | failed-upgrade) ;;")
    assert len(upgrade) == 2
