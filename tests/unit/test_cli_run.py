"""Runs, pauses and approvals: a protocol client that follows to the end and says what to do next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent import ledger
from tests.support import lab
from tests.support.cli import RUN, Runner, Said, absent, holdfast, tree
from tests.support.fake_host import FakeHost
from tests.unit.test_cli_status import WEDGED, box

SOCKET = "/run/holdfast-runner.sock"
CONTROL = "/run/holdfast/control.sock"
CONFIG = """
[[engine]]
name = "chat"
kind = "llama.cpp"
url = "http://127.0.0.1:8080"
unit = "chat.service"
"""
BOOK = (Path(__file__).resolve().parents[2] / "runbooks/restart-engine.yaml").read_text()
FILES = {
    "/etc/holdfast/holdfast.toml": CONFIG,
    "/usr/share/holdfast/runbooks/restart-engine.yaml": BOOK,
}
STEP = {"step": 0, "name": "Keep the evidence", "use": "evidence.collect"}
GOOD: Sequence[tuple[str, Mapping[str, Any]]] = [
    ("accepted", {"runbook": "restart-engine", "subject": "engine:chat"}),
    ("step_started", STEP),
    ("step_ended", {**STEP, "ok": True, "summary": "12 files", "duration_s": 0.31, "output": ""}),
    ("verifying", {"check": "engine.generates", "within_s": 600.0}),
    ("verified", {"check": "engine.generates", "summary": "1 token in 3 ms"}),
    ("ended", {"outcome": "succeeded", "summary": "1 token in 3 ms", "signature": ""}),
]


def with_runner(runner: Any, files: Mapping[str, str] = FILES) -> FakeHost:
    return FakeHost.build(files, ipc={SOCKET: runner})


def run(*words: str, runner: Any, uid: int = 0) -> Said:
    return holdfast("run", *words, host=with_runner(runner), uid=uid)


def test_a_run_is_followed_step_by_step_to_its_end() -> None:
    runner = Runner(GOOD)
    said = run("restart-engine", "--because", "it hangs", runner=runner)
    assert said.code == 0, said.err
    lines = said.out.splitlines()
    assert lines[0].endswith("restart-engine on engine:chat")
    assert lines[1] == "1/3      Keep the evidence: OK, 12 files, 0.3 s"
    assert lines[-1] == "SUCCEEDED: 1 token in 3 ms"
    asked = runner.asked[0]
    assert (asked["do"], asked["subject"], asked["because"], asked["force"]) == (
        "run",
        "engine:chat",
        "it hangs",
        False,
    )


def going_on(*percents: float | None) -> list[tuple[str, Mapping[str, Any]]]:
    """A run whose one step says how far it is."""
    said = [
        {"step": 0, "text": "compiling", "percent": each, "elapsed_s": 3.0 * (each or 0), "remaining_s": 7.2 * 50}
        for each in percents
    ]
    return [GOOD[0], GOOD[1], *(("progress", each) for each in said), *GOOD[2:]]


def test_a_long_step_shows_a_bar_that_fits_the_terminal() -> None:
    host = with_runner(Runner(going_on(0.0, 42.4, 100.0)))
    said = holdfast("run", "restart-engine", host=host, typed="")
    bars = [line for line in said.out.split("\r\x1b[K") if "█" in line or "░" in line]
    assert bars[1] == "1/3      ████████░░░░░░░░░░░░ 42 % compiling, 2 min 7 s, about 6 min left"
    narrow = holdfast("run", "restart-engine", host=with_runner(Runner(going_on(42.4))), typed="", width=40)
    assert all(len(line) < 40 for line in narrow.out.split("\n")[1].split("\r\x1b[K")[:-1])


def test_without_a_terminal_a_long_step_is_told_at_every_tenth() -> None:
    said = run("restart-engine", runner=Runner(going_on(1.0, 2.0, 9.9, 10.0, 11.0, 35.0)))
    told = [line for line in said.out.splitlines() if "compiling" in line]
    assert told[0] == "1/3      1 % compiling, 3 s, about 6 min left"
    assert [line.split()[1] for line in told] == ["1", "10", "35"]
    unknown = run("restart-engine", runner=Runner(going_on(None, None)))
    assert "compiling …, 0 s, about 6 min left" in unknown.out


@pytest.mark.parametrize(
    ("outcome", "code"), [("succeeded", 0), ("stopped", 1), ("failed", 2), ("undone", 2), ("interrupted", 3)]
)
def test_the_exit_code_is_that_of_the_outcome(outcome: str, code: int) -> None:
    said = run("restart-engine", runner=Runner([*GOOD[:1], ("ended", {"outcome": outcome, "summary": "so"})]))
    assert said.code == code
    assert outcome.upper() in said.out


def test_a_refusal_is_77_with_the_reason_and_when_to_try_again() -> None:
    data = {"code": "cooldown", "reason": "the last attempt was 10 s ago", "not_before": 1_800_000_290.0}
    said = run("restart-engine", runner=Runner([("refused", data)]))
    assert said.code == 77
    assert "the last attempt was 10 s ago [cooldown]" in said.err
    assert "possible again in 4 min 50 s (08:04:50 UTC); or add --force" in said.err


def test_a_runner_that_hangs_up_leaves_the_run_going_and_says_how_to_follow() -> None:
    said = run("restart-engine", runner=Runner(GOOD[:3]))
    assert said.code == 69
    assert "[runner-gone]" in said.err
    assert "sudo holdfast run --follow" in said.err


def test_ctrl_c_leaves_the_run_going_and_says_so() -> None:
    said = run("restart-engine", runner=Runner(GOOD, interrupt_after=3))
    assert said.code == 3
    assert "The run goes on without you" in said.out
    assert "sudo holdfast stop " in said.out


def test_only_root_may_run_and_nothing_is_asked_before() -> None:
    runner = Runner(GOOD)
    said = run("restart-engine", runner=runner, uid=1000)
    assert said.code == 77
    assert "do:    sudo holdfast run restart-engine" in said.err
    assert runner.asked == []


def test_an_unknown_runbook_names_the_near_one() -> None:
    said = run("restart-engin", runner=Runner(GOOD))
    assert said.code == 64
    assert "did you mean 'restart-engine'?" in said.err


def test_an_unknown_subject_is_refused_before_the_runner_is_asked() -> None:
    runner = Runner(GOOD)
    said = run("restart-engine", "--engine", "chatt", runner=runner)
    assert said.code == 64
    assert runner.asked == []


def test_several_subjects_must_be_chosen_from() -> None:
    two = CONFIG + CONFIG.replace('"chat"', '"embed"').replace("8080", "8081").replace("chat.service", "embed.service")
    host = with_runner(Runner(GOOD), {**FILES, "/etc/holdfast/holdfast.toml": two})
    said = holdfast("run", "restart-engine", host=host)
    assert said.code == 64
    assert "--subject engine:chat | engine:embed" in said.err


def test_a_dry_run_asks_for_the_plan_and_shows_what_would_be_typed() -> None:
    planned = {
        "plan": "abc",
        "steps": [{"name": "Restart", "use": "engine.restart", "lines": ["systemctl stop --no-block chat.service"]}],
        "verify": {"check": "engine.generates", "within_s": 600.0},
        "decision": {"allow": False, "code": "paused", "reason": "a person paused all acting"},
    }
    runner = Runner([("planned", planned)])
    said = run("restart-engine", "--dry-run", runner=runner)
    assert said.code == 0
    assert runner.asked[0]["do"] == "plan"
    assert "# 1. Restart (engine.restart)\nsystemctl stop --no-block chat.service" in said.out
    assert "# it would be refused now: a person paused all acting [paused]" in said.out


def test_a_runner_that_does_not_listen_is_69_for_who_is_not_root_to_start_one() -> None:
    said = holdfast("run", "--follow", RUN, host=with_runner(absent), uid=1000)
    assert said.code == 69
    assert "do:    sudo systemctl start holdfast-runner.socket" in said.err


def test_every_connection_to_the_runner_carries_a_request_because_an_empty_one_is_on_record_as_refused() -> None:
    opened: list[Runner] = []

    def door(_path: str) -> Runner:
        opened.append(Runner([("paused", {})]))
        return opened[-1]

    assert holdfast("pause", "1h", "--reason", "driver change", host=with_runner(door)).code == 0
    assert [len(each.asked) for each in opened] == [1]


def test_root_starts_a_runner_of_its_own_where_none_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    import agent.host.spawn  # noqa: PLC0415 - replaced below

    child = Runner(GOOD)
    monkeypatch.setattr(agent.host.spawn, "runner", lambda: child)
    said = run("restart-engine", runner=absent)
    assert said.code == 0
    assert child.asked[0]["do"] == "run"


def test_root_starts_a_runner_of_its_own_where_a_flooded_socket_hangs_up_without_a_word(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import agent.host.spawn  # noqa: PLC0415 - replaced below

    flooded, child = Runner(()), Runner(GOOD)
    monkeypatch.setattr(agent.host.spawn, "runner", lambda: child)
    said = run("restart-engine", runner=flooded)
    assert said.code == 0
    assert child.asked == flooded.asked, "the same id, so that nothing is done twice"


def test_following_something_that_is_no_run_is_a_usage_error() -> None:
    said = run("--follow", "nonsense", runner=Runner(GOOD))
    assert said.code == 64


def test_a_pause_is_asked_for_in_seconds_with_its_reason() -> None:
    runner = Runner([("paused", {})])
    said = holdfast("pause", "1h30m", "--reason", "driver change", host=with_runner(runner))
    assert said.code == 0
    assert "PAUSED for 1 h 30 min, until 09:30:00 UTC: driver change" in said.out
    assert (runner.asked[0]["do"], runner.asked[0]["args"], runner.asked[0]["because"]) == (
        "pause",
        {"for_s": 5400.0},
        "driver change",
    )


@pytest.mark.parametrize("text", ["", "0", "0m", "90", "soon", "-5m", "2h30"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    runner = Runner([("paused", {})])
    assert holdfast("pause", "--reason", "x", "--", text, host=with_runner(runner)).code == 64
    assert runner.asked == []


def test_resume_says_so() -> None:
    assert holdfast("resume", host=with_runner(Runner([("resumed", {})]))).out.startswith("resumed")


def test_a_person_who_is_not_root_neither_pauses_nor_resumes_nor_stops() -> None:
    for words in (["pause", "1h", "--reason", "x"], ["resume"], ["stop"]):
        said = holdfast(*words, host=with_runner(Runner(())), uid=1000)
        assert said.code == 77
        assert "sudo holdfast" in said.err


def with_attempt(tmp_path: Path, runner: Any) -> FakeHost:
    host = tree(tmp_path, FILES, ipc={SOCKET: runner})
    bare = ledger.Record(
        0, host.clock.now(), ledger.Kind.ATTEMPT, RUN, {"runbook": "r", "subject": "host"}, ledger.FIRST, ""
    )
    (tmp_path / "var/lib/holdfast-runner").mkdir(parents=True)
    record = replace(bare, hash=ledger._hash(bare))
    host.files.append_durable(ledger.FILE, ledger.json.dumps({**ledger._fields(record), "hash": record.hash}))
    return host


def test_stop_finds_the_only_run_in_flight_and_follows_its_undo(tmp_path: Path) -> None:
    runner = Runner(
        [("undone", {"summary": "started again"}), ("ended", {"outcome": "stopped", "summary": "asked to stop"})]
    )
    said = holdfast("stop", host=with_attempt(tmp_path, runner))
    assert said.code == 0, said.err
    assert runner.asked[0]["do"] == "stop"
    assert runner.asked[0]["id"] == RUN
    assert "STOPPED: asked to stop" in said.out


def test_stop_with_nothing_in_flight_is_a_usage_error() -> None:
    said = holdfast("stop", host=with_runner(Runner(())))
    assert said.code == 64
    assert "no run is in flight" in said.err


class Daemon(Runner):
    """A control socket with one answer."""

    answer = b'{"v": 1}'

    def receive(self, timeout_s: float, limit: int = 0) -> bytes | None:
        return self.answer


def test_acknowledging_goes_to_the_daemon_with_who_asked(tmp_path: Path) -> None:
    daemon = Daemon(())
    host = replace(box(tmp_path, incidents=[WEDGED]), ipc=FakeHost.build(ipc={CONTROL: daemon}).ipc)
    said = holdfast("incident", "ack", host=host, uid=1000, environ={"USER": "alice"})
    assert said.code == 0, said.err
    assert daemon.asked[0]["do"] == "acknowledge"
    assert daemon.asked[0]["args"] == {"incident": WEDGED.id, "who": "alice"}


def test_what_the_daemon_refuses_is_told_in_its_words(tmp_path: Path) -> None:
    daemon = Daemon(())
    daemon.answer = b'{"v": 1, "code": "unknown", "error": "there is no open incident X", "hint": "h"}'
    host = replace(box(tmp_path, incidents=[WEDGED]), ipc=FakeHost.build(ipc={CONTROL: daemon}).ipc)
    said = holdfast("incident", "ack", host=host)
    assert said.code == 77
    assert "there is no open incident X [unknown]" in said.err


def test_an_approval_is_bound_to_the_plan_that_was_shown(tmp_path: Path) -> None:
    planned = {"plan": "f00d", "steps": [{"name": "Restart", "use": "engine.restart", "lines": ["systemctl stop x"]}]}
    runners = [Runner([("planned", planned)]), Runner([("approved", {})])]
    ends = iter(runners)
    host = box(tmp_path, incidents=[WEDGED])
    tree(tmp_path, FILES)
    host = replace(host, ipc=FakeHost.build(ipc={SOCKET: lambda _path: next(ends)}).ipc)
    said = holdfast("incident", "approve", "--because", "I looked", host=host)
    assert "systemctl stop x" in said.out
    asked = runners[1].asked[0]
    assert asked["do"] == "approve"
    assert asked["args"] == {"incident": WEDGED.id, "plan": "f00d"}
    assert said.code == 3
    assert "the daemon has not started it yet" in said.out


# --- rehearse ---------------------------------------------------------------------------------------------------------

REHEARSABLE = {**FILES, "/usr/share/holdfast/runbooks/restart-engine.yaml": BOOK + "rehearsal: {every: 7d}\n"}
REHEARSED: Sequence[tuple[str, Mapping[str, Any]]] = [
    *GOOD[:3],
    ("undone", {**STEP, "ok": True, "summary": "the work folder was emptied"}),
    (
        "ended",
        {"outcome": "succeeded", "summary": "1 of 3 steps work; left out: Restart", "rehearsal": True, "took_s": 702.0},
    ),
]


def rehearse(*words: str, runner: Any, uid: int = 0) -> Said:
    return holdfast("rehearse", *words, host=with_runner(runner, REHEARSABLE), uid=uid)


def test_a_rehearsal_is_followed_to_its_end_and_says_how_long_it_takes() -> None:
    runner = Runner(REHEARSED)
    said = rehearse("restart-engine", "--because", "Tuesday", runner=runner)
    assert said.code == 0, said.err
    lines = said.out.splitlines()
    assert "undo 1/3 Keep the evidence: the work folder was emptied" in lines
    assert lines[-1] == "REHEARSED in 11 min 42 s: 1 of 3 steps work; left out: Restart"
    asked = runner.asked[0]
    assert (asked["do"], asked["runbook"], asked["subject"], asked["because"]) == (
        "rehearse", "restart-engine", "engine:chat", "Tuesday",
    )  # fmt: skip


def test_a_rehearsal_answers_as_one_document_too() -> None:
    said = rehearse("restart-engine", "--json", runner=Runner(REHEARSED))
    data = said.json["data"]
    assert (data["outcome"], data["rehearsal"], data["took_s"]) == ("succeeded", True, 702.0)


@pytest.mark.parametrize(("outcome", "code"), [("stopped", 1), ("failed", 2), ("interrupted", 3)])
def test_a_rehearsal_that_did_not_work_says_so(outcome: str, code: int) -> None:
    ending = ("ended", {"outcome": outcome, "summary": "no compiler", "rehearsal": True, "took_s": 1.0})
    said = rehearse("restart-engine", runner=Runner([*GOOD[:1], ending]))
    assert said.code == code
    assert f"REHEARSAL {outcome.upper()}: no compiler" in said.out


def test_a_rehearsal_is_for_root_and_refused_with_the_reason() -> None:
    runner = Runner([("refused", {"code": "no-rehearsal", "reason": "restart-engine has no rehearsal: use a dry run"})])
    assert rehearse("restart-engine", runner=runner, uid=1000).code == 77
    assert runner.asked == []
    said = rehearse("restart-engine", runner=runner)
    assert said.code == 77
    assert "has no rehearsal: use a dry run [no-rehearsal]" in said.err


def test_the_engine_that_is_configured_for_it_is_the_one_that_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    two = CONFIG + CONFIG.replace('"chat"', '"bare"').replace("8080", "8081").replace("chat.service", "bare.service")
    files = {
        "/etc/holdfast/holdfast.toml": two,
        "/usr/share/holdfast/runbooks/rebuild-lab.yaml": lab.install(monkeypatch),
    }
    runner = Runner(REHEARSED)
    assert holdfast("rehearse", "rebuild-lab", host=with_runner(runner, files)).code == 0
    assert runner.asked[0]["subject"] == "engine:chat"
