"""Diagnosis: rules run over results, what is explained is folded, a broken rule blinds nobody."""

from __future__ import annotations

from collections.abc import Iterable

from agent.diagnose import diagnose, fold
from agent.model import Finding, Moment, Results, Status
from agent.plugin import EVENT, Rule

NOW = Moment(1.0, 1.0, "b")
UNIT = ("engine.unit", "engine:chat")
PROGRESS = ("engine.progress", "engine:chat")


def finding(name: str, rests_on: Iterable[tuple[str, str]], explains: Iterable[tuple[str, str]] = ()) -> Finding:
    return Finding(name, "engine:chat", Status.CRITICAL, name, results=tuple(rests_on), explains=tuple(explains))


def test_a_finding_is_folded_only_when_all_its_results_are_explained() -> None:
    root = finding("driver", [("driver.lock", "host")], [UNIT])
    assert [each.id for each in fold([root, finding("dead", [UNIT])])] == ["driver"]
    assert [each.id for each in fold([root, finding("dead", [UNIT, PROGRESS])])] == ["driver", "dead"]


def test_a_finding_that_rests_on_nothing_is_never_folded() -> None:
    assert len(fold([finding("a", []), finding("b", [], [UNIT])])) == 2


def test_folding_keeps_the_text_of_what_was_folded() -> None:
    (left,) = fold([finding("driver", [("driver.lock", "host")], [UNIT]), finding("dead", [UNIT])])
    assert left.folded == ("dead: dead",)


def test_two_findings_that_explain_each_other_do_not_both_vanish() -> None:
    left = fold([finding("a", [UNIT], [PROGRESS]), finding("b", [PROGRESS], [UNIT])])
    assert len(left) == 1


def test_a_chain_ends_at_its_root() -> None:
    chain = [finding("c", [PROGRESS]), finding("b", [UNIT], [PROGRESS]), finding("a", [("x.y", "host")], [UNIT])]
    (left,) = fold(chain)
    assert left.id == "a"
    assert set(left.folded) == {"b: b", "c: c"}


def test_a_rule_that_crashes_is_told_and_the_others_still_speak() -> None:
    def crash(results: Results, now: Moment) -> Iterable[Finding]:
        raise ValueError("boom")

    rules = {
        "broken": Rule(id="broken", reads=(), confirm=EVENT, diagnose=crash),
        "works": Rule(id="works", reads=(), confirm=EVENT, diagnose=lambda results, now: [finding("works", [])]),
    }
    found = diagnose(rules, Results(), NOW)
    assert {each.id for each in found} == {"rule-failed", "works"}
    assert all("boom" not in each.summary for each in found)
