"""Frozen values survive the way through JSON text."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import StoreError
from agent.model import (
    Alert,
    CheckResult,
    Finding,
    Incident,
    Moment,
    Observation,
    Outcome,
    Phase,
    Run,
    Status,
    StepResult,
    Transition,
    Urgency,
    Verdict,
)
from agent.store.codec import from_text, to_text

NOW = Moment(1_800_000_000.25, 12.5, "boot")


def test_every_stored_noun_comes_back_equal() -> None:
    step = StepResult("Restart", "engine.restart", ok=True, summary="done", duration_s=1.5)
    values = [
        NOW,
        CheckResult(
            "engine.alive",
            "engine:chat",
            Status.OK,
            "fine",
            (Observation("a", {"x": [1, None]}, "s", (("k", "v"),)),),
            NOW,
            0.1,
            Verdict.READY,
        ),
        CheckResult("host.disk", "host", Status.UNKNOWN, "?", (), NOW, 0.0),
        Incident(
            "01",
            "k",
            "engine-dead",
            "engine:chat",
            Phase.OPEN,
            Urgency.WARNING,
            "s",
            "e",
            1.0,
            NOW,
            NOW,
            folded=("a",),
            runs=("r",),
        ),
        Transition("t", "01", 1.0, "opened", "text"),
        Run("r", "restart-engine", "engine:chat", "why", 1.0, 2.0, Outcome.SUCCEEDED, steps=(step,)),
        Run("r", "restart-engine", "engine:chat", "why", 1.0, None, None),
        Alert(
            "a", "k", "trigger", Urgency.CRITICAL, "t", "b", "s", "engine:chat", "engine-dead", 1.0, 1.0, (("a", "b"),)
        ),
        Finding("engine-dead", "engine:chat", Status.CRITICAL, "s", results=(("a", "b"),)),
    ]
    for value in values:
        assert from_text(type(value), to_text(value)) == value


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(json_values)
def test_any_json_observed_comes_back_equal(value: Any) -> None:
    observation = Observation("anything", value)
    assert from_text(Observation, to_text(observation)) == observation


def test_fields_of_a_newer_version_are_ignored_and_missing_ones_take_their_default() -> None:
    raw = json.loads(to_text(Observation("a", 1, "s")))
    del raw["unit"]
    raw["invented_later"] = True
    assert from_text(Observation, json.dumps(raw)) == Observation("a", 1)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("nonsense", "not JSON"),
        ("[]", "Moment"),
        ('{"wall": 1, "boot_s": 2}', "Moment.boot_id"),
        ('{"wall": "secret", "boot_s": 2, "boot_id": "b"}', "Moment.wall"),
        ('{"wall": true, "boot_s": 2, "boot_id": "b"}', "Moment.wall"),
    ],
)
def test_what_cannot_be_read_is_named_without_its_value(text: str, place: str) -> None:
    with pytest.raises(StoreError) as caught:
        from_text(Moment, text)
    assert place in caught.value.message
    assert "secret" not in caught.value.message


def test_an_unknown_word_is_a_mistake_and_not_a_guess() -> None:
    raw = json.loads(to_text(CheckResult("a.b", "host", Status.OK, "", (), NOW, 0.0)))
    raw["status"] = "FINE"
    with pytest.raises(StoreError, match=r"CheckResult\.status"):
        from_text(CheckResult, json.dumps(raw))
