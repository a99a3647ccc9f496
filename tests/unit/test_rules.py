"""Every rule against the results in tests/data/<rule>/<case>: which findings it makes of them.

`results.yaml`: check, subject, status, verdict, summary, evidence by name. `findings.yaml`: the findings expected, each
with the fields that matter. The moment is 1,800,000,000 s (UTC).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from agent import plugin
from agent.diagnose import diagnose
from agent.model import CheckResult, Moment, Observation, Results, Status, Verdict

DATA = Path(__file__).resolve().parents[1] / "data"
NOW = Moment(1_800_000_000.0, 5000.0, "boot")
CASES = [case for rule in plugin.rules() for case in sorted((DATA / rule).glob("*/"))]


def results_of(rows: list[dict[str, Any]]) -> Results:
    """The results that a case describes."""
    found = [
        CheckResult(
            row["check"],
            row["subject"],
            Status(row["status"]),
            row["summary"],
            tuple(Observation(name, value) for name, value in row.get("evidence", {}).items()),
            NOW,
            0.0,
            Verdict(row["verdict"]) if "verdict" in row else None,
        )
        for row in rows
    ]
    return Results({(result.check, result.subject): result for result in found})


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.parent.name}/{case.name}")
def test_a_rule_finds_what_its_fixture_expects(case: Path) -> None:
    rule = plugin.rules()[case.parent.name]
    given_results = results_of(yaml.safe_load((case / "results.yaml").read_text(encoding="utf-8")))
    expected = yaml.safe_load((case / "findings.yaml").read_text(encoding="utf-8"))
    found = list(rule.diagnose(given_results, NOW))
    assert len(found) == len(expected), [finding.summary for finding in found]
    for finding, wanted in zip(found, expected, strict=True):
        assert {name: getattr(finding, name) for name in wanted} == wanted


@pytest.mark.parametrize("rule", sorted(plugin.rules()))
def test_every_rule_has_a_fixture_that_fires_and_one_that_is_quiet(rule: str) -> None:
    counts = {
        len(yaml.safe_load((case / "findings.yaml").read_text(encoding="utf-8")))
        for case in CASES
        if case.parent.name == rule
    }
    assert 0 in counts
    assert counts - {0}


@given(
    st.lists(
        st.tuples(
            st.sampled_from([*sorted(plugin.checks()), "holdfast.store", "holdfast.runner"]),
            st.sampled_from(["host", "engine:chat", "engine:other"]),
            st.sampled_from(list(Status)),
            st.one_of(st.none(), st.sampled_from(list(Verdict))),
        ),
        max_size=12,
    )
)
def test_no_rule_crashes_on_results_without_evidence(rows: list[tuple[str, str, Status, Verdict | None]]) -> None:
    results = Results(
        {
            (check, subject): CheckResult(check, subject, status, "s", (), NOW, 0.0, verdict)
            for check, subject, status, verdict in rows
        }
    )
    found = diagnose(plugin.rules(), results, NOW)
    assert "rule-failed" not in {finding.id for finding in found}
    assert len({finding.key for finding in found}) == len(found), "one finding for each cause and subject"


def test_one_page_tells_of_a_broken_next_boot_and_the_reboot_into_it() -> None:
    rows = yaml.safe_load((DATA / "reboot-will-break" / "fires" / "results.yaml").read_text(encoding="utf-8"))
    (found,) = diagnose(plugin.rules(), results_of(rows), NOW)
    assert found.id == "reboot-will-break"
    assert found.folded[0].startswith("next-boot-no-driver: ")


@pytest.mark.parametrize(
    "case", ["fires", "while-systemd-goes-on-starting-it", "that-seems-to-serve-between-two-deaths"]
)
def test_one_page_tells_of_an_engine_that_does_not_fit_the_machine(case: str) -> None:
    rows = yaml.safe_load((DATA / "engine-incompatible" / case / "results.yaml").read_text(encoding="utf-8"))
    rows[0]["evidence"] |= {"crash.repaired": rows[0]["verdict"] == "READY", "failure.curable": False}
    rows[0]["evidence"]["crash.times"] += [NOW.wall - 3, NOW.wall - 2, NOW.wall - 1]  # a crash loop by its own account
    found = [each for each in diagnose(plugin.rules(), results_of(rows), NOW) if each.subject == "engine:chat"]
    assert [each.id for each in found] == ["engine-incompatible"]
    assert found[0].folded, "what else is true of it is told in the same page"


@pytest.mark.parametrize("case", ["dead", "crashes"])
def test_going_back_a_release_comes_before_building_another_one(case: str) -> None:
    rows = yaml.safe_load((DATA / "release-failing" / case / "results.yaml").read_text(encoding="utf-8"))
    unit = next(row for row in rows if row["check"] == "engine.unit")
    unit["evidence"] |= {
        "failure.cure": "rebuild",
        "failure.text": "CUDA error",
        "failure.meaning": "",
        "unit.n_restarts": 5,
    }
    found = [each.id for each in diagnose(plugin.rules(), results_of(rows), NOW) if each.subject == "engine:chat"]
    assert found == ["release-failing"]
    unit["evidence"]["crash.times"] = [NOW.wall - 1]  # the first of a loop: no reason to begin a rebuild meanwhile
    unit["verdict"] = "LOADING"
    found = [each.id for each in diagnose(plugin.rules(), results_of(rows), NOW) if each.subject == "engine:chat"]
    assert found == []
    release = next(row for row in rows if row["check"] == "engine.release")
    release["evidence"]["fallback"] = None
    found = [each.id for each in diagnose(plugin.rules(), results_of(rows), NOW) if each.subject == "engine:chat"]
    assert found == ["engine-incompatible"]


def test_an_engine_that_does_not_fit_the_driver_names_the_driver() -> None:
    case = DATA / "engine-incompatible" / "of-another-driver" / "results.yaml"
    found = diagnose(plugin.rules(), results_of(yaml.safe_load(case.read_text(encoding="utf-8"))), NOW)
    words = next(each.evidence[0].value for each in found if each.id == "engine-incompatible")
    assert words == "This build has no code for this GPU. The driver: 550.54.15 loaded, 580.178.04 locked."


def test_what_a_hold_keeps_out_is_told_with_the_way_to_let_it_in() -> None:
    for case, way in (("fires", "--to VERSION"), ("fires-for-a-kernel", "--kernel RELEASE")):
        rows = yaml.safe_load((DATA / "hold-stale" / case / "results.yaml").read_text(encoding="utf-8"))
        (found,) = diagnose(plugin.rules(), results_of(rows), NOW)
        assert found.evidence[0].value == f"when it suits: sudo holdfast change begin {way} --reason …"
