"""Debian packages and an archive of them, made on the spot: upgrades, holds and refusals without a network."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from bed.errors import BedError
from bed.host import BootedHost

REPOSITORY = "/var/lib/bed/repository"


def make_deb(
    folder: Path,
    name: str,
    version: str = "1.0",
    *,
    architecture: str = "all",
    fields: Mapping[str, str] | None = None,
    files: Mapping[str, str] | None = None,
    scripts: Mapping[str, str] | None = None,
) -> Path:
    """Build a package into ``folder`` and return its file.

    ``fields`` are further lines of its control file (Depends, Provides, Section …), ``files`` maps absolute paths to
    texts, ``scripts`` maps preinst, postinst, prerm and postrm to shell scripts without their first line.
    """
    folder.mkdir(parents=True, exist_ok=True)
    control = {
        "Package": name,
        "Version": version,
        "Architecture": architecture,
        "Maintainer": "Test Bed <root@localhost>",
        "Description": "made by the test bed",
        **(fields or {}),
    }
    with tempfile.TemporaryDirectory() as work:
        tree = Path(work) / "tree"
        (tree / "DEBIAN").mkdir(parents=True)
        tree.chmod(0o755)
        (tree / "DEBIAN/control").write_text("".join(f"{key}: {value}\n" for key, value in control.items()))
        for script, text in (scripts or {}).items():
            (tree / "DEBIAN" / script).write_text(f"#!/bin/sh\nset -e\n{text}\n")
            (tree / "DEBIAN" / script).chmod(0o755)
        for path, text in (files or {}).items():
            place = tree / path.lstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text)
        deb = folder / f"{name}_{version.replace(':', '%3a')}_{architecture}.deb"
        done = subprocess.run(
            ["dpkg-deb", "--build", "--root-owner-group", str(tree), str(deb)],
            text=True,
            check=False,
            capture_output=True,
            timeout=300,
        )
    if done.returncode != 0:
        raise BedError(f"dpkg-deb {name}: {done.stderr}")
    return deb


def publish(host: BootedHost, debs: Iterable[Path]) -> None:
    """Add packages to an archive inside the host, make it apt's only source, and update apt's lists.

    Needs apt-ftparchive (apt-utils), which every host of the bed has. Origin and Label are "Bed", Suite "stable".
    """
    for deb in debs:
        host.push(deb, f"{REPOSITORY}/{deb.name}")
    host.sh(
        f"cd {REPOSITORY}; apt-ftparchive packages . >Packages; "
        "apt-ftparchive -o APT::FTPArchive::Release::Origin=Bed -o APT::FTPArchive::Release::Label=Bed "
        "-o APT::FTPArchive::Release::Suite=stable release . >/tmp/Release; mv /tmp/Release Release; "
        "rm -rf /etc/apt/sources.list /etc/apt/sources.list.d/*; "
        f"echo 'deb [trusted=yes] file:{REPOSITORY} ./' >/etc/apt/sources.list.d/bed.list; apt-get -q update",
        timeout=120,
    )
