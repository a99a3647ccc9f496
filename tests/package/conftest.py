"""Fixtures of the package tests: the repository, and the package that script/build-deb has built."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from bed import BootedHost

REPOSITORY = Path(__file__).resolve().parents[2]


def unavailable(reason: str) -> None:
    """Skip, or fail where the host tier is required."""
    if "host" in os.environ.get("HOLDFAST_REQUIRE", "").replace(",", " ").split():
        pytest.fail(f"required (HOLDFAST_REQUIRE) but not to be had: {reason}", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the working tree."""
    return REPOSITORY


@pytest.fixture(scope="session")
def built_package() -> Path:
    """This version's package for this machine, as `script/test host` has built it."""
    try:
        architecture = subprocess.run(
            ["dpkg", "--print-architecture"], capture_output=True, text=True, check=True
        ).stdout.strip()
    except OSError:
        unavailable("dpkg is missing: packages are tested on Debian and Ubuntu")
        raise
    packages = sorted(
        (REPOSITORY / "dist").glob(f"holdfast_*_{architecture}.deb"), key=lambda path: path.stat().st_mtime
    )
    if not packages:
        unavailable("no package in dist/: run script/build-deb")
    return packages[-1]


@pytest.fixture(scope="session")
def unpacked(built_package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package's files, unpacked without installing them."""
    target = tmp_path_factory.mktemp("unpacked")
    subprocess.run(["dpkg-deb", "--extract", built_package, target], check=True)
    return target


@pytest.fixture
def boot() -> Iterator[Callable[[str], BootedHost]]:
    """A function that boots a disposable host of a suite, without engines; its hosts end with the test."""
    # The test bed is a package of the host tier's folder; only tests that boot a host need it.
    folder = str(REPOSITORY / "tests" / "host")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    from bed import UnavailableError, ensure  # noqa: PLC0415 (not there when only sources are read)

    with contextlib.ExitStack() as stack:

        def boot_one(suite: str) -> BootedHost:
            try:
                return stack.enter_context(ensure(suite).boot(suite, llama=False))
            except UnavailableError as error:
                unavailable(str(error))
                raise

        yield boot_one
