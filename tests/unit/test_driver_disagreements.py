"""Every way in which a host's truths about its driver can disagree, each a host in tests/data/driver-disagreements.

`host.yaml` is the host: its files, their times, its links, and what its programs print ("..." is any rest of a call).
Seen through the real checks and the real rules: `expected.yaml` names every cause that is told, with its urgency and a
part of its words, and nothing else may be told. "UNKNOWN CHECK" is a check that says that it cannot tell.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from agent import frame, plugin
from agent.model import Results, Status
from agent.plugin import Target
from tests.support.fake_host import FakeHost, File, Link

DATA = Path(__file__).resolve().parents[1] / "data" / "driver-disagreements"
CASES = sorted(case for case in DATA.iterdir() if case.is_dir())
CHECKS = ("driver.lock", "driver.next_boot", "driver.packages", "host.reboot")
RULES = [rule for rule in plugin.rules().values() if rule.reads and set(rule.reads) <= set(CHECKS)]


def host(case: Path) -> FakeHost:
    """The host of a case."""
    said = yaml.safe_load((case / "host.yaml").read_text(encoding="utf-8"))
    times = said.get("times", {})
    files = {path: File(text, mtime=times.get(path, 0.0)) for path, text in said["files"].items()}
    links = {path: Link(target) for path, target in said["links"].items()}
    commands = {
        tuple(... if word == "..." else word for word in command["argv"]): command["stdout"]
        for command in said["commands"]
    }
    return FakeHost.build({**files, **links}, commands=commands)


def told(seen: FakeHost) -> dict[str, tuple[str, str]]:
    """Every cause with its status and summary, and every check that cannot tell."""
    found = {}
    for name in CHECKS:
        check = plugin.checks()[name]
        found[(name, "host")] = frame.run_check(seen, check, Target("host", check.params(), check.every_s), None)
    results = Results(found)
    causes = {
        cause.id: (str(cause.status), cause.summary)
        for rule in RULES
        for cause in rule.diagnose(results, seen.clock.now())
    }
    silent = {
        f"UNKNOWN {name}": (str(result.status), result.summary)
        for (name, _), result in found.items()
        if result.status is Status.UNKNOWN
    }
    return {**causes, **silent}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_each_disagreement_is_told_by_its_causes_and_by_no_other(case: Path) -> None:
    expected = yaml.safe_load((case / "expected.yaml").read_text(encoding="utf-8"))
    found = told(host(case))
    assert set(found) == set(expected)
    for cause, (status, words) in expected.items():
        assert found[cause][0] == status
        assert words in found[cause][1]


def test_the_rules_of_the_drivers_truths_are_all_among_them() -> None:
    causes = {rule.id for rule in RULES}
    pinned = {cause for case in CASES for cause in yaml.safe_load((case / "expected.yaml").read_text(encoding="utf-8"))}
    assert causes - pinned == set()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_each_says_where_it_comes_from(case: Path) -> None:
    assert (case / "SOURCE.md").read_text(encoding="utf-8").strip()
