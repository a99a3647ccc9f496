"""Texts for people and metrics for Prometheus: pure functions of plain data."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from agent.model import Status, Urgency, Verdict
from agent.views import texts
from agent.views.metrics import Snapshot, exposition, serve
from agent.views.note import FRESH_S, NOTE_EVERY_S, DaemonNote, daemon_note
from agent.views.texts import InFlightLine
from tests.support.fake_host import START


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (-5, "0 s"),
        (59.6, "1 min"),
        (61, "1 min 1 s"),
        (3600, "1 h"),
        (3725, "1 h 2 min"),
        (90000, "1 d 1 h"),
    ],
)
def test_durations_are_said_in_two_units(seconds: float, words: str) -> None:
    assert texts.duration(seconds) == words


def test_a_time_of_another_day_carries_its_date() -> None:
    assert texts.clock(START.wall, START.wall + 60) == "08:00:00 UTC"
    assert texts.clock(START.wall, START.wall + 86400) == "2027-01-15 08:00 UTC"


@given(st.text(alphabet="abc de\n", max_size=200), st.integers(min_value=30, max_value=120))
def test_labelled_lines_lose_no_word(text: str, width: int) -> None:
    lines = texts.labelled("label", text, width)
    assert " ".join(line[texts.LABEL :] for line in lines).split() == text.split()


@given(st.lists(st.tuples(st.text(alphabet="ab", max_size=8), st.text(alphabet="ab cd", max_size=90)), max_size=4))
def test_a_table_loses_no_word_at_any_width(rows: list[tuple[str, str]]) -> None:
    for width in (20, 40, 80, 200):
        said = " ".join(texts.table(("A", "B"), rows, width)).split()
        for first, second in rows:
            for word in (*first.split(), *second.split()):
                assert word in said


def test_a_command_is_never_broken() -> None:
    long = "sudo holdfast run restart-engine --subject engine:chat --force --because 'it hangs'"
    assert texts.command("next", long, 40) == ["next", long]
    assert texts.command("next", "x", 40) == ["next     x"]


@pytest.mark.parametrize(("seconds", "words"), [(3, "10 s"), (38, "40 s"), (702, "12 min"), (7300, "2 h")])
def test_what_is_only_guessed_is_said_in_round_numbers(seconds: float, words: str) -> None:
    assert texts.about(seconds) == words


def test_a_bar_is_as_full_as_the_work_is_done() -> None:
    assert [texts.bar(percent, 4) for percent in (-5, 0, 50, 99, 200)] == ["░░░░", "░░░░", "██░░", "████", "████"]


def series(snapshot: Snapshot) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(exposition(snapshot).decode())
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def test_the_metrics_have_the_names_that_were_promised() -> None:
    now = series(
        Snapshot(
            driver_running="580.178.04",
            driver_locked="550.54.15",
            driver_matches=False,
            checks=(("host.disk", "host", Status.WARNING),),
            engines=(("chat", Verdict.WEDGED),),
            incidents_open={Urgency.CRITICAL: 2},
            runs={("restart-engine", "succeeded"): 3},
            outbox_depth={"hook": 4},
            loop_lag_s=0.25,
            in_flight=(
                InFlightLine("01J", "rebuild", "engine:chat", 0.0, 3, 9, "Build", "compiling", 42.0, 300.0, 420.0),
                InFlightLine("01K", "hold", "host", 0.0),
                InFlightLine("01L", "restore", "host", 0.0, 2, 3, rehearsal=True),
            ),
            rehearsals={("rebuild", "engine:chat"): (1_800_000_000.0, 702.0), ("restore", "host"): (1.0, None)},
        )
    )
    chat = (("runbook", "rebuild"), ("subject", "engine:chat"))
    assert now["holdfast_run_step", chat] == 3
    assert now["holdfast_run_step_progress_ratio", chat] == 0.42
    assert now["holdfast_run_step_remaining_seconds", chat] == 420
    assert ("holdfast_run_step_progress_ratio", (("runbook", "hold"), ("subject", "host"))) not in now
    restore = (("runbook", "restore"), ("subject", "host"))
    assert ("holdfast_run_step", restore) not in now, "a rehearsal is no run that anybody waits for"
    assert now["holdfast_rehearsal_proven_timestamp_seconds", chat] == 1_800_000_000
    assert now["holdfast_rehearsal_duration_seconds", chat] == 702
    assert ("holdfast_rehearsal_duration_seconds", restore) not in now
    assert now["holdfast_driver_info", (("locked", "550.54.15"), ("running", "580.178.04"))] == 1
    assert now["holdfast_driver_matches_lock", ()] == 0
    assert now["holdfast_check_status", (("check", "host.disk"), ("subject", "host"))] == 1
    assert now["holdfast_engine_verdict", (("engine", "chat"), ("verdict", "WEDGED"))] == 1
    assert now["holdfast_engine_verdict", (("engine", "chat"), ("verdict", "READY"))] == 0
    assert now["holdfast_incidents_open", (("urgency", "critical"),)] == 2
    assert now["holdfast_incidents_open", (("urgency", "info"),)] == 0
    assert now["holdfast_run_total", (("outcome", "succeeded"), ("runbook", "restart-engine"))] == 3
    assert now["holdfast_outbox_depth", (("receiver", "hook"),)] == 4
    assert now["holdfast_loop_lag_seconds", ()] == 0.25


def test_whether_the_driver_matches_is_not_told_when_it_is_not_known() -> None:
    assert not any(name == "holdfast_driver_matches_lock" for name, _ in series(Snapshot()))


def test_a_label_with_odd_characters_does_not_break_the_text() -> None:
    assert series(Snapshot(outbox_depth={'a"b\nc\\': 1}))["holdfast_outbox_depth", (("receiver", 'a"b\nc\\'),)] == 1


def test_metrics_that_are_off_serve_nothing() -> None:
    exporter = serve("off", Snapshot)
    assert (exporter.port, exporter.problem) == (0, "")
    exporter.stop()


def test_a_note_comes_back_equal_and_nonsense_is_no_note() -> None:
    note = DaemonNote(
        at=1.5, pid=2, boot_id="b", started_at=1.0, mode="act", configured=True, receivers=("a",), heartbeat=False
    )
    assert daemon_note(note.as_json()) == note
    for nonsense in (None, 3, [], {"at": "soon", "receivers": "x", "pid": None}):
        assert daemon_note(nonsense) == DaemonNote()


def test_a_note_is_fresh_for_a_while_within_its_boot() -> None:
    note = DaemonNote(at=START.wall - FRESH_S + 1, boot_id=START.boot_id)
    assert note.alive(START)
    assert NOTE_EVERY_S * 3 < FRESH_S
    assert not DaemonNote(at=START.wall - FRESH_S - 1, boot_id=START.boot_id).alive(START)
    assert not DaemonNote(at=START.wall, boot_id="another").alive(START)
    assert not DaemonNote().alive(START)
