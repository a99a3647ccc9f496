"""What every plug-in owes: an id that is its file's name, a docstring, a runbook or a person, and no id twice."""

from __future__ import annotations

import importlib
import inspect
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

from agent import plugin, runbook
from agent.host.real import real_host
from agent.messages import SELF_CHECKS

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = {
    "checks": plugin.checks,
    "agent.rules": plugin.rules,
    "agent.engines": plugin.engines,
    "agent.actions": plugin.actions,
    "agent.pager.receivers": plugin.receivers,
}
MODULES = [
    importlib.import_module(f"{package}.{plugin.file_name(identifier)}")
    for package, discover in PACKAGES.items()
    for identifier in discover()
]


def runbooks() -> runbook.Runbooks:
    return runbook.load(real_host().files, directories=(str(REPOSITORY / "runbooks"),))


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_plugin_explains_itself(module: ModuleType) -> None:
    words = inspect.getdoc(module) or ""
    first = words.splitlines()[0] if words else ""
    assert len(first) > 20, "the first line of the docstring is what `holdfast explain` shows first"


@pytest.mark.parametrize("identifier", sorted(plugin.rules()))
def test_every_cause_says_what_to_do(identifier: str) -> None:
    module = importlib.import_module(f"agent.rules.{plugin.file_name(identifier)}")
    assert "What to do:" in (inspect.getdoc(module) or "")


@pytest.mark.parametrize("identifier", sorted(plugin.rules()))
def test_every_cause_has_a_runbook_or_is_a_persons(identifier: str) -> None:
    served = runbooks().runbook_for(identifier, "llama.cpp") is not None
    assert served != plugin.rules()[identifier].manual


@pytest.mark.parametrize("identifier", sorted(plugin.rules()))
def test_every_rule_reads_and_awaits_checks_that_exist(identifier: str) -> None:
    rule = plugin.rules()[identifier]
    assert set(rule.explainers) <= set(plugin.checks())
    assert set(rule.reads) <= set(plugin.checks()) | SELF_CHECKS


def test_no_id_means_two_things() -> None:
    ids = Counter(identifier for discover in PACKAGES.values() for identifier in discover())
    ids.update(runbooks().by_id.keys())
    assert [identifier for identifier, count in ids.items() if count > 1] == []


@pytest.mark.parametrize("identifier", sorted(plugin.checks()))
def test_a_check_takes_no_longer_than_its_cadence_allows_for(identifier: str) -> None:
    check = plugin.checks()[identifier]
    assert check.timeout_s > 0
    assert check.params(), "every parameter has a default, so that no check needs a table"
