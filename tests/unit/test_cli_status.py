"""The status page: right first, on a phone too, with the daemon up or down."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent import ledger
from agent.model import (
    Alert,
    CheckResult,
    Delivery,
    Incident,
    Moment,
    Observation,
    Outcome,
    Phase,
    Run,
    Status,
    Transition,
    Urgency,
    Verdict,
)
from agent.store import Dispatch, open_store
from agent.transcript import Transcript
from agent.views.note import NOTE, TOKENS, DaemonNote
from tests.support.cli import RUN, holdfast, tree
from tests.support.fake_host import START, FakeClock, FakeHost

EARLIER = Moment(START.wall - 240, START.boot_s - 240, START.boot_id)
LIVING = DaemonNote(
    at=START.wall - 2, pid=7, boot_id=START.boot_id, mode="act", configured=True, receivers=("primary",), heartbeat=True
)
WEDGED = Incident(
    id="01JD3Z5W8QABCDEFGHJKMNPQRS",
    key="holdfast/12345678/engine-wedged/engine:chat",
    finding="engine-wedged",
    subject="engine:chat",
    phase=Phase.ESCALATED,
    urgency=Urgency.CRITICAL,
    summary="chat accepts requests and produces no tokens",
    evidence="the inference thread used 0 ms of CPU in 12 s with 4 requests waiting",
    since=EARLIER.wall,
    opened_at=EARLIER,
    changed_at=START,
    tried=("restart-engine: failed, no token within 600 s",),
    left="a person",
    command="sudo holdfast run restart-engine --subject engine:chat --force",
)


def result(
    check: str, subject: str, status: Status, verdict: Verdict | None = None, summary: str = "fine"
) -> CheckResult:
    return CheckResult(check, subject, status, summary, (Observation("x", 1),), EARLIER, 0.1, verdict)


def box(tmp_path: Path, note: DaemonNote | None = LIVING, **stored: Any) -> FakeHost:
    host = tree(tmp_path, {"/sys/module/nvidia/version": "580.178.04\n", "/etc/holdfast/driver.lock": "580.178.04\n"})
    place = tmp_path / "var/lib/holdfast/holdfast.db"
    place.parent.mkdir(parents=True)
    store = open_store(place, FakeClock())
    if note is not None:
        store.set(NOTE, note.as_json())
    store.save_results(stored.get("results", [result("engine.progress", "engine:chat", Status.OK, Verdict.READY)]))
    store.commit(incidents=stored.get("incidents", ()), transitions=stored.get("transitions", ()))
    for run in stored.get("runs", ()):
        store.save_run(run)
    store.set(TOKENS, stored.get("tokens", {}))
    store.close()
    return host


def test_all_is_well_is_one_glance_and_exit_code_0(tmp_path: Path) -> None:
    said = holdfast("status", host=box(tmp_path))
    assert said.code == 0
    first = said.out.splitlines()[0]
    assert first.startswith("OK ")
    assert first.endswith("all is well")
    assert "580.178.04 loaded, as locked" in said.out
    assert "act: repairs by itself" in said.out
    assert said.err == ""


def test_an_incident_comes_first_with_what_since_why_done_and_next(tmp_path: Path) -> None:
    results = [result("engine.progress", "engine:chat", Status.CRITICAL, Verdict.WEDGED, "still for 12 s")]
    said = holdfast("status", host=box(tmp_path, incidents=[WEDGED], results=results))
    assert said.code == 2
    text = said.out
    assert "engine-wedged engine:chat ESCALATED" in text
    assert "since    07:56:00 UTC (4 min)" in text
    assert "why      the inference thread used 0 ms" in text
    assert "done     restart-engine: failed" in text
    assert "sudo holdfast run restart-engine --subject engine:chat --force\n" in text
    assert text.index("engine-wedged") < text.index("ENGINE ") < text.index("pager ")


@pytest.mark.parametrize("width", [40, 80])
def test_no_line_is_wider_than_the_phone_except_a_command_to_copy(tmp_path: Path, width: int) -> None:
    results = [
        result(
            "engine.progress", "engine:chat", Status.CRITICAL, Verdict.WEDGED, "still for 12 s with 4 requests waiting"
        ),
        result("host.disk", "host", Status.WARNING, None, "/var/lib is 93 % full, and at this pace full in 4 hours"),
    ]
    run = Run(
        "01JD3Z5W8QABCDEFGHJKMNPQRT",
        "restart-engine",
        "engine:chat",
        "",
        EARLIER.wall,
        START.wall,
        Outcome.FAILED,
        "no token",
    )
    host = box(tmp_path, incidents=[WEDGED], results=results, runs=[run])
    lines = holdfast("status", host=host, width=width).out.splitlines()
    assert [line for line in lines if len(line) > width and line != WEDGED.command] == []
    assert any(line.endswith(WEDGED.command) for line in lines)


def test_with_the_daemon_down_it_says_so_and_how_old_everything_is(tmp_path: Path) -> None:
    host = box(tmp_path, replace(LIVING, at=START.wall - 3600))
    said = holdfast("status", host=host)
    assert said.code == 2
    assert "THE DAEMON IS DOWN" in said.out.splitlines()[0]
    assert "4 min ago" in said.out
    assert "sudo systemctl start holdfast" in said.out
    assert holdfast("status", "--json", host=host).json["errors"][0]["code"] == "daemon-unreachable"


def test_a_note_from_before_the_reboot_does_not_make_the_daemon_alive(tmp_path: Path) -> None:
    host = box(tmp_path, replace(LIVING, boot_id="boot-0"))
    assert "DAEMON IS DOWN" in holdfast("status", host=host).out


def test_a_daemon_that_was_stopped_cleanly_is_down_at_once(tmp_path: Path) -> None:
    host = box(tmp_path, replace(LIVING, stopped=True))
    assert "stopped, last news" in holdfast("status", host=host).out


def test_without_any_memory_it_says_that_the_daemon_never_ran() -> None:
    said = holdfast("status", host=FakeHost.build())
    assert said.code == 69
    assert "[never-ran]" in said.err


def test_a_warning_incident_is_a_warning_and_a_quiet_one_is_not(tmp_path: Path) -> None:
    for number, (urgency, code) in enumerate(((Urgency.WARNING, 1), (Urgency.INFO, 0), (Urgency.CRITICAL, 2))):
        host = box(tmp_path / str(number), incidents=[replace(WEDGED, urgency=urgency)])
        assert holdfast("status", host=host).code == code


def test_what_cannot_be_told_is_unknown_and_not_ok(tmp_path: Path) -> None:
    results = [result("driver.lock", "host", Status.UNKNOWN, None, "cannot tell")]
    assert holdfast("status", host=box(tmp_path, results=results)).code == 3


def test_a_mere_suspicion_is_not_shown(tmp_path: Path) -> None:
    said = holdfast("status", host=box(tmp_path, incidents=[replace(WEDGED, phase=Phase.PENDING)]))
    assert "engine-wedged" not in said.out


def test_the_last_proven_token_is_shown(tmp_path: Path) -> None:
    results = [result("engine.progress", "engine:chat", Status.OK, Verdict.BUSY, "4 in work")]
    said = holdfast("status", host=box(tmp_path, results=results, tokens={"chat": EARLIER.wall}))
    assert "BUSY" in said.out
    assert "last token 4 min ago" in said.out


def test_a_failing_receiver_and_what_waits_for_it_are_shown(tmp_path: Path) -> None:
    host = box(tmp_path)
    store = open_store(tmp_path / "var/lib/holdfast/holdfast.db", FakeClock())
    alert = Alert("a", "k", "trigger", Urgency.CRITICAL, "t", "b", "s", "engine:chat", "engine-dead", 1.0, 1.0)
    store.commit(enqueue=[("primary", alert)])
    store.begin(Dispatch(), START)
    store.record(store.outbox().rows[0].id, Delivery.retry("answered 503"), START)
    store.close()
    said = holdfast("status", host=host)
    assert "1 waiting; primary FAILING: answered 503" in said.out


def test_json_keeps_times_as_rfc3339_and_every_field(tmp_path: Path) -> None:
    data = holdfast("status", "--json", host=box(tmp_path, incidents=[WEDGED])).json["data"]
    assert data["status"] == "CRITICAL"
    assert data["incidents"][0]["since"] == "2027-01-15T07:56:00.000Z"
    assert data["driver"] == {"loaded": "580.178.04", "locked": "580.178.04", "problem": ""}
    assert (data["pause"], data["change"]) == (None, None)


def test_another_driver_than_the_locked_one_is_named(tmp_path: Path) -> None:
    host = box(tmp_path)
    (tmp_path / "etc/holdfast/driver.lock").write_text("550.54.15\n")
    assert "580.178.04 loaded, but the lock demands 550.54.15" in " ".join(holdfast("status", host=host).out.split())


@pytest.mark.parametrize(
    ("asked", "status", "pending", "words"),
    [
        (True, Status.OK, [{"name": "x"}], "holds 11 are held, as root asked; updates wait for 5 (holdfast hold "),
        (True, Status.OK, [], "holds 11 are held, as root asked (holdfast hold --explain)"),
        (True, Status.WARNING, [{"name": "x"}], ""),
        (False, Status.OK, None, ""),
    ],
)
def test_what_is_held_back_and_what_waits_for_it_is_said(
    tmp_path: Path, asked: bool, status: Status, pending: Any, words: str
) -> None:
    holds = (Observation("asked", asked),)
    waits = (Observation("pending", pending),)
    results = [
        CheckResult("driver.holds", "host", status, "11 are held, as root asked", holds, EARLIER, 0.1),
        CheckResult("driver.updates", "host", Status.OK, "updates wait for 5", waits, EARLIER, 0.1),
    ]
    said = " ".join(holdfast("status", host=box(tmp_path, results=results)).out.split())
    assert words in said
    assert ("(holdfast hold --explain)" in said) == bool(words)


def test_incidents_are_listed_shown_and_found_by_the_end_of_their_id(tmp_path: Path) -> None:
    steps = [Transition("t1", WEDGED.id, EARLIER.wall, "opened", "no token for 12 s")]
    host = box(tmp_path, incidents=[WEDGED], transitions=steps)
    assert WEDGED.id in holdfast("incident", "list", host=host).out
    for word in (None, WEDGED.id, "npqrs", "01JD3"):
        said = holdfast("incident", "show", *([word] if word else []), host=host)
        assert said.code == 0, said.err
        assert "07:56:00 opened: no token for 12 s" in " ".join(said.out.split())
    assert holdfast("incident", "show", "ZZZ", host=host).code == 64


def test_which_incident_is_meant_must_be_said_where_several_are_open(tmp_path: Path) -> None:
    other = replace(WEDGED, id="01JD3Z5W8QABCDEFGHJKMNPQRX", key="other", finding="engine-dead")
    host = box(tmp_path, incidents=[WEDGED, other])
    said = holdfast("incident", "show", host=host)
    assert said.code == 64
    assert "2 incidents are open" in said.err


def test_resolved_incidents_are_listed_only_with_all(tmp_path: Path) -> None:
    host = box(tmp_path, incidents=[replace(WEDGED, phase=Phase.RESOLVED)])
    assert holdfast("incident", "list", host=host).out == "no incident is open\n"
    assert "engine-wedged" in holdfast("incident", "list", "--all", host=host).out


def under_way(host: FakeHost, *said: tuple[str, dict[str, Any]]) -> None:
    """A run that a person began four minutes ago, with what it has said since."""
    ledger.prepare(host)
    attempt = {"runbook": "rebuild-llama-cpp", "subject": "engine:chat", "steps": 9, "total": 9}
    ledger.append(host, ledger.Kind.ATTEMPT, RUN, attempt)
    written = Transcript(host, RUN)
    for name, data in (("accepted", attempt), *said):
        written.write(name, **data)  # type: ignore[arg-type]


STARTED = ("step_started", {"step": 2, "name": "Build it", "use": "build.compile"})


def test_a_run_in_flight_is_shown_with_its_step_and_what_is_left(tmp_path: Path) -> None:
    host = box(tmp_path)
    far = {"step": 2, "text": "compiling", "percent": 42.0, "elapsed_s": 300.0, "remaining_s": 420.0}
    under_way(host, STARTED, ("progress", far))
    host.clock.sleep(60)
    said = holdfast("status", host=host, width=200)
    line = next(line for line in said.out.splitlines() if line.startswith("at work"))
    assert "rebuild-llama-cpp on engine:chat, step 3/9: Build it, compiling 42 %, for 1 min, about 6 min left" in line
    assert f"sudo holdfast run --follow {RUN}" in said.out
    (shown,) = holdfast("status", "--json", host=host).json["data"]["in_flight"]
    assert (shown["step"], shown["steps"], shown["percent"], shown["remaining_s"]) == (3, 9, 42.0, 360.0)


def test_what_a_step_said_does_not_outlive_it(tmp_path: Path) -> None:
    host = box(tmp_path)
    far = {"step": 2, "text": "compiling", "percent": 99.0, "elapsed_s": 300.0, "remaining_s": 5.0}
    next_step = ("step_started", {"step": 3, "name": "Prove it", "use": "build.prove"})
    under_way(host, STARTED, ("progress", far), ("step_ended", {"step": 2, "ok": True}), next_step)
    (shown,) = holdfast("status", "--json", host=host).json["data"]["in_flight"]
    assert (shown["name"], shown["text"], shown["percent"], shown["remaining_s"]) == ("Prove it", "", None, None)


def test_a_run_that_has_ended_is_not_in_flight(tmp_path: Path) -> None:
    host = box(tmp_path)
    under_way(host, STARTED, ("ended", {"outcome": "succeeded", "summary": "done"}))
    assert holdfast("status", "--json", host=host).json["data"]["in_flight"] == []
