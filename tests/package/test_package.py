"""The built package's files, without installing them."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.host, pytest.mark.timeout(600)]

LAUNCHERS = (
    "usr/bin/holdfast",
    *(f"usr/lib/holdfast/bin/holdfast-{name}" for name in ("runner", "inspect", "recover", "failed")),
)
PYTHONS = ("cp310", "cp311", "cp312", "cp313", "cp314")


def test_ships_the_agreed_layout(unpacked: Path) -> None:
    for path in (
        "etc/holdfast/holdfast.toml", "etc/holdfast/conf.d", "etc/holdfast/runbooks.d", "etc/holdfast/secrets",
        "usr/lib/holdfast/agent/__init__.py", "usr/lib/holdfast/checks/__init__.py", "usr/share/holdfast/runbooks",
        "usr/lib/sysusers.d/holdfast.conf", "usr/lib/tmpfiles.d/holdfast.conf",
        "usr/share/doc/holdfast/copyright", "usr/share/doc/holdfast/sbom.cdx.json",
        "usr/share/doc/holdfast/changelog.gz",
        *(f"usr/lib/systemd/system/holdfast{name}" for name in (
            ".service", "-failed@.service", "-inspect.socket", "-inspect@.service", "-runner.socket",
            "-runner@.service", "-recover.service", "-build-.service.d/walls.conf",
            "-prove-.service.d/walls.conf",
        )),
        *(f"usr/lib/holdfast/vendor/{name}" for name in ("common", *PYTHONS)),
        *LAUNCHERS,
    ):  # fmt: skip
        assert (unpacked / path).exists(), path
    assert (unpacked / "usr/lib/holdfast/runbooks").is_symlink()


def test_ships_nothing_that_belongs_to_development(unpacked: Path) -> None:
    names = {
        path.relative_to(unpacked / "usr/lib/holdfast").as_posix()
        for path in (unpacked / "usr/lib/holdfast").rglob("*")
    }
    assert not [name for name in names if "__pycache__" in name or name.endswith((".pyc", ".orig")) or "/." in name]
    assert not {name.split("/")[0] for name in names} - {"agent", "apt-guard", "bin", "checks", "runbooks", "vendor"}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_launchers_isolate_python(unpacked: Path, launcher: str) -> None:
    path = unpacked / launcher
    assert path.read_text().splitlines()[0] == "#!/usr/bin/python3 -IS"
    assert path.stat().st_mode & 0o777 == 0o755


def test_every_program_that_a_unit_starts_is_shipped(unpacked: Path) -> None:
    for unit in (unpacked / "usr/lib/systemd/system").glob("*.service"):
        for command in re.findall(r"^ExecStart=(\S+)", unit.read_text(), re.MULTILINE):
            assert (unpacked / command.lstrip("/")).exists(), f"{unit.name}: {command}"


def test_every_python_has_the_compiled_libraries_and_only_one_copy_of_the_others(unpacked: Path) -> None:
    vendor = unpacked / "usr/lib/holdfast/vendor"
    common = {path.name for path in (vendor / "common").iterdir()}
    for python in PYTHONS:
        own = {path.name for path in (vendor / python).iterdir()}
        assert {"pydantic_core", "yaml", "markupsafe"} <= own
        assert not own & common
        for module in (vendor / python).rglob("*.so"):
            assert f".cpython-{python[2:]}-" in module.name
    assert (vendor / "cp310" / "tomli").exists()
    assert "tomli" not in common


def test_certificates_are_the_systems(unpacked: Path) -> None:
    bundle = unpacked / "usr/lib/holdfast/vendor/common/certifi/cacert.pem"
    assert bundle.is_symlink()
    assert str(bundle.readlink()) == "/etc/ssl/certs/ca-certificates.crt"


def test_bill_of_materials_names_every_vendored_library_with_version_hash_and_licence(
    unpacked: Path, repository: Path
) -> None:
    bill = json.loads((unpacked / "usr/share/doc/holdfast/sbom.cdx.json").read_text())
    listed = {component["name"]: component for component in bill["components"]}
    lock = (repository / "requirements/runtime.txt").read_text()
    assert {name: component["version"] for name, component in listed.items()} == dict(
        re.findall(r"^([a-z0-9-]+)==([^\s;]+)", lock, re.MULTILINE)
    )
    for name, component in listed.items():
        assert component["licenses"][0]["license"]["name"], name
        digests = re.findall(r"sha256:([0-9a-f]{64})", json.dumps(component["properties"]))
        assert digests, name
        assert all(digest in lock for digest in digests), name
    on_disk = {
        path.name.split("-")[0].lower().replace("_", "-")
        for path in (unpacked / "usr/lib/holdfast/vendor").glob("*/*.dist-info")
    }
    assert on_disk == set(listed)
    assert listed["pydantic-core"]["components"], "the Rust crates linked into it"


def test_compiled_libraries_need_only_libc_and_libgcc(unpacked: Path) -> None:
    if shutil.which("readelf") is None:
        pytest.skip("readelf is missing")
    allowed = re.compile(r"(libc|libgcc_s|libpthread|libdl|librt|libm|ld-linux-x86-64|ld-linux-aarch64)\.so\.\d+")
    for module in (unpacked / "usr/lib/holdfast/vendor").rglob("*.so"):
        shown = subprocess.run(["readelf", "--dynamic", module], capture_output=True, text=True, check=True).stdout
        for needed in re.findall(r"\(NEEDED\).*\[(.+)\]", shown):
            assert allowed.fullmatch(needed), f"{module.name} needs {needed}"


def test_shipped_configuration_sets_nothing(unpacked: Path) -> None:
    lines = (unpacked / "etc/holdfast/holdfast.toml").read_text().splitlines()
    assert all(not line or line.startswith("#") for line in lines)


def test_units_have_no_mistake_that_systemd_sees(
    unpacked: Path, tmp_path: Path, record_property: pytest.RecordProperty
) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is missing")
    # The programs are not installed here; whether they are shipped is another test's question.
    units = []
    for unit in sorted((unpacked / "usr/lib/systemd/system").iterdir()):
        if unit.is_dir():  # what every transient unit of that name gets
            shutil.copytree(unit, tmp_path / unit.name)
            units.append(tmp_path / unit.name.replace("-.service.d", "-chat.service"))
            units[-1].write_text("[Service]\nExecStart=/bin/true\n")
            continue
        copy = tmp_path / unit.name.replace("@.", "@test.")
        copy.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", unit.read_text(), flags=re.MULTILINE))
        units.append(copy)
        (tmp_path / unit.name).write_text(copy.read_text())
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True, check=False
    )
    ours = [line for line in done.stderr.splitlines() if "holdfast" in line]
    assert not ours
    for unit in units:
        if unit.suffix == ".service":
            rated = subprocess.run(
                ["systemd-analyze", "security", "--offline=true", "--no-pager", unit],
                capture_output=True,
                text=True,
                check=False,
            )
            found = re.search(r"exposure level for .*: ([\d.]+)", rated.stdout)
            if found:  # --offline is there from systemd 250 on
                record_property(unit.name, float(found[1]))


def test_the_same_commit_gives_the_same_package(repository: Path, tmp_path: Path) -> None:
    digests = set()
    for place in ("here", "another/place"):  # the path must not get into the package
        clone = tmp_path / place
        subprocess.run(["git", "clone", "--quiet", repository, clone], check=True)
        subprocess.run(
            [clone / "script/build-deb"], check=True, capture_output=True, stdin=subprocess.DEVNULL, timeout=300
        )
        [package] = (clone / "dist").glob("*.deb")
        digests.add(hashlib.sha256(package.read_bytes()).hexdigest())
    assert len(digests) == 1


def test_lintian_finds_nothing(built_package: Path) -> None:
    if shutil.which("lintian") is None:
        pytest.skip("lintian is missing: apt-get install lintian")
    done = subprocess.run(
        ["lintian", "--fail-on=error,warning", "--allow-root", built_package],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_lock_parser_refuses_what_it_does_not_understand(repository: Path) -> None:
    pytest.importorskip("packaging")
    spec = importlib.util.spec_from_file_location("vendor", repository / "packaging/deb/vendor.py")
    assert spec
    assert spec.loader
    vendor = importlib.util.module_from_spec(spec)
    sys.modules["vendor"] = vendor
    spec.loader.exec_module(vendor)
    good = "a-b==1.0 ; python_full_version < '3.11' \\\n    --hash=sha256:" + "0" * 64 + "\n    # via x\n"
    [pin] = vendor.read_lock(good)
    assert pin.wanted_by("3.10", "x86_64")
    assert not pin.wanted_by("3.11", "x86_64")
    for bad in ("a==1.0\n", "a>=1.0 --hash=sha256:" + "0" * 64, "-e .\n", "a==1 --hash=md5:00"):
        with pytest.raises(SystemExit, match="cannot read"):
            vendor.read_lock(bad)
