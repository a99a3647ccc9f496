"""Every check against the hosts in tests/data/<check>/<case>: what it says there is pinned word for word.

`expected.json`: `status`; `summary` (or `summary_has`, a part of it); where wanted `verdict` and `values` by name.
`engine` are the settings of the engine it is run against, `params` the check's own, `before` what it observed 10 s ago.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent import frame, plugin
from agent.model import Moment, Observation, Observed
from agent.plugin import Target
from tests.support.fake_host import FakeHost

DATA = Path(__file__).resolve().parents[1] / "data"
CASES = [case for check in plugin.checks() for case in sorted((DATA / check).glob("*/")) if case.is_dir()]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.parent.name}/{case.name}")
def test_a_check_says_what_its_fixture_expects(case: Path) -> None:
    expected = json.loads((case / "expected.json").read_text(encoding="utf-8"))
    check = plugin.checks()[case.parent.name]
    params = check.params.model_validate(expected.get("params", {}))
    host = FakeHost.load(case)
    target = Target("host", params, check.every_s)
    if "engine" in expected:
        kind = plugin.engines()[expected["engine"]["kind"]]
        settings = kind.settings.model_validate(expected["engine"])
        target = Target(f"engine:{settings.name}", params, check.every_s, kind, settings)
    result = frame.run_check(host, check, target, _before(expected, host.clock.now()))
    assert result.status == expected["status"], result.summary
    assert result.summary == expected.get("summary", result.summary)
    assert expected.get("summary_has", "") in result.summary
    assert result.verdict == expected.get("verdict", result.verdict)
    for name, value in expected.get("values", {}).items():
        assert result.value(name) == value, name


def _before(expected: dict[str, object], now: Moment) -> Observed | None:
    before = expected.get("before")
    if not isinstance(before, dict):
        return None
    earlier = Moment(now.wall - 10, now.boot_s - 10, now.boot_id)
    return Observed(earlier, tuple(Observation(name, value) for name, value in before.items()))


@pytest.mark.parametrize("check", sorted(plugin.checks()))
def test_every_check_has_a_fixture_that_makes_it_fire_and_one_that_keeps_it_quiet(check: str) -> None:
    statuses = {
        json.loads((case / "expected.json").read_text(encoding="utf-8"))["status"]
        for case in CASES
        if case.parent.name == check
    }
    assert "OK" in statuses
    assert statuses - {"OK", "UNKNOWN"}


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.parent.name}/{case.name}")
def test_every_fixture_says_where_it_comes_from(case: Path) -> None:
    assert (case / "SOURCE.md").read_text(encoding="utf-8").strip()
