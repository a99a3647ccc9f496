"""The words of a page: complete, short enough for a phone, and nothing that was not in the incident."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.model import Incident, Moment, Phase, Transition, Urgency
from agent.pager import message
from agent.pager.message import Origin, alerts

NOW = Moment(1_800_000_000.0, 10_000.0, "boot-1")
ORIGIN = Origin("gpu1", timezone(timedelta(hours=1), "CET"))
KEY = "holdfast/1a2b3c4d/engine-wedged/engine:chat"


def an_incident(**changes: object) -> Incident:
    incident = Incident(
        "01I", KEY, "engine-wedged", "engine:chat", Phase.OPEN, Urgency.WARNING,
        "accepts requests but produces no tokens", "inference thread still for 20 s; 3 requests wait",
        NOW.wall - 20, NOW, NOW,
    )  # fmt: skip
    return incident.changed(**changes)


def told(kind: str, text: str = "", **changes: object) -> list[tuple[str, str, str]]:
    """What a transition becomes: (action, key beside the incident's, urgency)."""
    made = alerts(an_incident(**changes), Transition("01T", "01I", NOW.wall, kind, text), ORIGIN)
    assert all(each.key.startswith(KEY) for each in made)
    return [(each.action, each.key.removeprefix(KEY), str(each.urgency)) for each in made]


def test_a_page_says_cause_since_when_evidence_what_was_tried_what_is_left_and_what_to_type() -> None:
    incident = an_incident(
        phase=Phase.ESCALATED, urgency=Urgency.CRITICAL, tried=("restart-engine: failed, exit 127",),
        left="find out why it exits", command="sudo holdfast incident show 01I", decision="three starts failed",
    )  # fmt: skip
    page = alerts(incident, Transition("01T", "01I", NOW.wall, "escalated", "three starts failed"), ORIGIN)[0]
    assert page.title == "Needs you: engine wedged: chat on gpu1 – accepts requests but produces no tokens"
    assert page.body.splitlines() == [
        "accepts requests but produces no tokens",
        "Since Fri 15 Jan 08:59 CET (07:59 UTC)",
        "Now: three starts failed",
        "Evidence: inference thread still for 20 s; 3 requests wait",
        "Tried: restart-engine: failed, exit 127",
        "Left: find out why it exits",
        "Type: sudo holdfast incident show 01I",
    ]
    assert (page.key, page.source, page.subject, page.finding) == (
        KEY + "/escalated", "gpu1", "engine:chat", "engine-wedged",
    )  # fmt: skip


def test_a_page_about_a_wait_says_until_when() -> None:
    waiting = an_incident(left="", not_before=NOW.wall + 300)
    page = alerts(waiting, Transition("01T", "01I", NOW.wall, "opened", waiting.summary), ORIGIN)[0]
    assert "Left: it is decided again at Fri 15 Jan 09:05 CET (08:05 UTC)" in page.body.replace("\n", " ")


def test_each_transition_rings_where_it_must() -> None:
    loud = {"urgency": Urgency.CRITICAL}
    assert told("opened") == [("trigger", "", "warning")]
    assert told("acting") == [("trigger", "", "warning"), ("resolve", "/approval", "warning")]
    assert told("verified") == [("trigger", "", "warning")]
    assert told("raised") == [("trigger", "", "warning")]
    assert told("raised", **loud) == [("trigger", "/critical", "critical")]
    assert told("progress", **loud) == [("event", "", "info")]
    assert told("progress", urgency=Urgency.INFO) == []
    assert told("needs-approval", **loud) == [("trigger", "/approval", "critical")]
    assert told("escalated", **loud) == [("trigger", "/escalated", "critical"), ("resolve", "/approval", "critical")]
    everywhere = ["", "/critical", "/escalated", "/approval"]
    assert told("acknowledged") == [("acknowledge", key, "warning") for key in everywhere]
    assert told("resolved") == [("resolve", key, "warning") for key in everywhere]


def test_what_is_over_when_it_is_found_is_one_quiet_event() -> None:
    assert told("over", urgency=Urgency.CRITICAL) == [("event", "", "info")]


def test_a_quiet_incident_is_told_once_and_opens_nothing() -> None:
    quiet = {"urgency": Urgency.INFO}
    assert told("opened", **quiet) == [("event", "", "info")]
    assert told("acting", **quiet) == told("updated", **quiet) == told("verified", **quiet) == []
    assert {action for action, _, _ in told("resolved", **quiet)} == {"resolve"}, "dropped where nothing was opened"


def test_building_the_alerts_again_yields_the_same_alerts() -> None:
    transition = Transition("01T", "01I", NOW.wall, "resolved", "")
    once, again = (alerts(an_incident(), transition, ORIGIN) for _ in range(2))
    assert once == again
    assert len({each.id for each in once}) == len(once)


def test_a_command_that_is_too_long_for_a_phone_gives_way_to_one_that_shows_it() -> None:
    made = alerts(an_incident(command="sudo " + "x" * 400), Transition("01T", "01I", 1.0, "opened", ""), ORIGIN)
    assert made[0].body.endswith("\nType: sudo holdfast incident show 01I")


def test_a_host_in_utc_names_the_time_once() -> None:
    assert message.since_words(0, Origin("gpu1", timezone.utc)) == "Thu 01 Jan 00:00 UTC"


LONG = st.text(max_size=3000)


@given(
    summary=LONG, evidence=LONG, tried=st.lists(LONG, max_size=6), left=LONG, decision=LONG, text=LONG,
    command=st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=400),
    kind=st.sampled_from(["opened", "raised", "escalated", "needs-approval", "acting", "resolved", "over"]),
)  # fmt: skip
def test_whatever_the_incident_says_a_page_fits_and_keeps_its_command(
    *, summary: str, evidence: str, tried: list[str], left: str, decision: str, text: str, command: str, kind: str
) -> None:
    incident = an_incident(
        summary=summary, evidence=evidence, tried=tuple(tried), left=left, decision=decision, command=command
    )
    for page in alerts(incident, Transition("01T", "01I", NOW.wall, kind, text), ORIGIN):
        shown = command if 0 < len(command) <= message.COMMAND_LENGTH else "sudo holdfast incident show 01I"
        assert page.body.splitlines()[-1] == f"Type: {shown}"
        assert len(page.body) <= message.BODY_LENGTH
        assert 0 < len(page.title) <= message.TITLE_LENGTH
        assert all(letter.isprintable() or letter == "\n" for letter in page.title + page.body)
        assert all(len(value) <= message.DETAIL_LENGTH for _, value in page.details)


@pytest.mark.parametrize("body", ["short", "x" * 900])
def test_the_event_in_place_of_what_was_never_told_fits_too(body: str) -> None:
    trigger = alerts(an_incident(), Transition("01T", "01I", NOW.wall, "opened", ""), ORIGIN)[0]
    resolve = alerts(an_incident(), Transition("01U", "01I", NOW.wall + 60, "resolved", ""), ORIGIN)[0]
    event = message.over_before_told(replace(trigger, body=body), resolve)
    assert len(event.body) <= message.BODY_LENGTH
    assert event.title.startswith("Over: ")
    assert (event.since, event.at, event.action, event.key) == (trigger.since, resolve.at, "event", KEY)
    assert "Fri 15 Jan 08:00:00 UTC" in event.body
    assert "Fri 15 Jan 08:01:00 UTC" in event.body
