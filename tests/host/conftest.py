"""Fixtures of the host tier: ``bed`` (made ready once per run) and ``host`` (boots disposable hosts).

Everything in this folder is marked ``host``. Where the bed cannot be had, its tests skip and say why; with ``host``
in HOLDFAST_REQUIRE they fail instead.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

HERE = Path(__file__).resolve().parent
if str(HERE) not in sys.path:
    sys.path.insert(0, str(HERE))

from bed import Bed, BedError, BootedHost, NotServedError, UnavailableError, ensure  # noqa: E402 (needs the path above)

# The first test of a fresh machine also waits for debootstrap and a build of llama-server.
TIMEOUT_S = 2400
JOURNAL_LINES = 120
_HOSTS = pytest.StashKey[list[BootedHost]]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what lies in this folder, and give it time to boot and to build."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("host")
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(TIMEOUT_S))


def unavailable(error: UnavailableError) -> NoReturn:
    """Skip the test with the reason, or fail it where the host tier is required."""
    required = "host" in os.environ.get("HOLDFAST_REQUIRE", "").replace(",", " ").split()
    if required and not isinstance(error, NotServedError):
        pytest.fail(f"required (HOLDFAST_REQUIRE) but not to be had: {error}", pytrace=False)
    pytest.skip(str(error))


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, Any, Any]:
    """Turn what is not to be had into a skip with its reason, wherever it shows."""
    try:
        return (yield)
    except UnavailableError as error:
        unavailable(error)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, Any, Any]:
    """See pytest_fixture_setup: hosts are booted, and engines built, by the tests themselves."""
    try:
        return (yield)
    except UnavailableError as error:
        unavailable(error)


@pytest.fixture(scope="session")
def bed() -> Bed:
    """The bed, made ready once per run."""
    try:
        return ensure()
    except UnavailableError as error:  # the hook above does not see what belongs to the whole session
        unavailable(error)


@pytest.fixture
def host(bed: Bed, request: pytest.FixtureRequest) -> Iterator[Callable[..., BootedHost]]:
    """A function that boots a host, with the arguments of ``Bed.boot``; its hosts end with the test."""
    hosts: list[BootedHost] = []
    request.node.stash[_HOSTS] = hosts
    with contextlib.ExitStack() as stack:

        def boot(suite: str = "bookworm", **options: Any) -> BootedHost:
            booted = stack.enter_context(bed.boot(suite, **options))
            hosts.append(booted)
            return booted

        yield boot


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Show the end of each host's journal with a failed test: the host is gone by the time anyone could look."""
    report: Any = yield
    if report.when == "call" and report.failed:
        for booted in item.stash.get(_HOSTS, []):
            for what, unit in (("journal", None), ("our own journal", "holdfast*")):
                try:
                    journal = booted.journal(unit) if booted.running else "(not running)"
                except (BedError, OSError, TimeoutError) as error:
                    journal = f"(no answer: {error})"
                report.sections.append((f"{what} of {booted.name}", "\n".join(journal.splitlines()[-JOURNAL_LINES:])))
    return report
