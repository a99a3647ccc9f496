from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent import ledger, runner, transcript
from agent.errors import FileTrouble, Unreachable
from agent.ledger import Kind
from agent.protocol import Event, line
from tests.support import lab
from tests.support.world import DAEMON_UID, OPERATOR_UID, READER_UID, UNIT, Connection, World, ended, refused, ulid


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, healthy=False)


def records(world: World, kind: Kind) -> list[ledger.Record]:
    contents = ledger.read(world.host())
    assert ledger.verify(contents) == ()
    return [record for record in contents.records if record.kind is kind]


def outcomes(world: World) -> list[str]:
    return [str(record.data["outcome"]) for record in records(world, Kind.OUTCOME)]


# --- a run -----------------------------------------------------------------------------------------------------


def test_a_wedged_engine_is_restarted_and_proven(world: World) -> None:
    events = world.ask(world.request())
    assert ended(events)["outcome"] == "succeeded"
    assert ended(events)["summary"].startswith("generated a token")
    assert world.systemd.state()["starts"] == 1
    assert outcomes(world) == ["succeeded"]


def test_the_attempt_is_on_disk_before_the_first_step(world: World) -> None:
    world.ask(world.request())
    written = [each for each in world.acts.seen if each.startswith("before ")]
    assert written[0] == f"before append {ledger.FILE}"
    assert "systemctl" not in " ".join(written[:2])


def test_an_engine_that_ignores_sigterm_is_killed_after_its_grace(world: World) -> None:
    world.systemd.set(ignores_sigterm=True)
    assert ended(world.ask(world.request()))["outcome"] == "succeeded"
    verbs = [call[1] for call in world.systemd.calls if call[0] == "systemctl" and call[1] != "show"]
    assert verbs == ["stop", "kill", "reset-failed", "start"]


def test_a_server_that_obeys_sigterm_is_not_killed(world: World) -> None:
    world.ask(world.request())
    assert not [call for call in world.systemd.calls if call[1] == "kill"]


def test_a_dead_engine_is_only_started(tmp_path: Path) -> None:
    world = World(tmp_path, active=False)
    assert ended(world.ask(world.request()))["outcome"] == "succeeded"
    verbs = [call[1] for call in world.systemd.calls if call[0] == "systemctl" and call[1] != "show"]
    assert verbs == ["reset-failed", "start"]


def test_an_engine_that_exited_with_zero_is_started_too(tmp_path: Path) -> None:
    world = World(tmp_path, active=False)
    world.systemd.set(ActiveState="inactive", SubState="dead", Result="success", ExecMainStatus=0)
    assert ended(world.ask(world.request()))["outcome"] == "succeeded"


def test_nothing_is_started_on_top_of_processes_that_survive_sigkill(world: World) -> None:
    world.systemd.set(ignores_sigterm=True, unkillable=True)
    data = ended(world.ask(world.request()))
    assert (data["outcome"], data["signature"]) == ("failed", "gpu-hung")
    assert world.systemd.state()["starts"] == 0


def test_daemon_reload_is_never_called(world: World) -> None:
    world.ask(world.request())
    assert not [call for call in world.systemd.calls if "daemon-reload" in call]


def test_our_own_stop_is_noted_for_the_checks(world: World) -> None:
    world.ask(world.request())
    note = json.loads((world.root / f"var/lib/holdfast-runner/stops/{UNIT}.json").read_text())
    assert note["invocation_id"] == f"{1:032x}"


def test_a_broken_engine_fails_with_the_line_that_says_why(world: World) -> None:
    world.systemd.set(
        broken=True, log=["ggml_cuda_init: failed to initialize CUDA: no CUDA-capable device is detected"]
    )
    data = ended(world.ask(world.request()))
    assert data["outcome"] == "failed"
    assert data["signature"]
    assert world.systemd.state()["starts"] == 1


def test_a_unit_that_fails_again_ends_the_verification_early(world: World) -> None:
    world.systemd.set(broken=True)
    before = world.clock.ahead_s
    data = ended(world.ask(world.request()))
    assert data["signature"] == "exit-code-127"
    assert world.clock.ahead_s - before < 60


def test_an_engine_that_dies_while_it_loads_ends_the_verification_early(world: World) -> None:
    sleep = world.clock.sleep

    def dies_in_the_meantime(seconds: float) -> None:
        sleep(seconds)
        if seconds >= 1.0:
            world.systemd.set(ActiveState="failed", SubState="failed", Result="oom-kill", ExecMainStatus=9, MainPID=0)

    world.systemd.set(stays_sick=True)
    world.clock.sleep = dies_in_the_meantime  # type: ignore[method-assign]
    before = world.clock.ahead_s
    data = ended(world.ask(world.request()))
    assert (data["outcome"], data["code"], data["signature"]) == ("failed", "verify-failed", "oom-kill-9")
    assert world.clock.ahead_s - before < 60
    assert world.systemd.state()["starts"] == 1


def test_an_engine_that_never_generates_is_not_proven(world: World) -> None:
    world.systemd.set(stays_sick=True)
    data = ended(world.ask(world.request()))
    assert (data["outcome"], data["code"]) == ("failed", "verify-timeout")


def test_a_failed_start_is_not_tried_a_second_time_by_the_undo(world: World) -> None:
    world.systemd.set(broken=True)
    world.ask(world.request())
    assert world.systemd.state()["starts"] == 1


def test_the_same_failure_twice_ends_the_trying(world: World) -> None:
    world.systemd.set(broken=True)
    for _ in range(2):
        ended(world.ask(world.request()))
        world.later(600)
    assert refused(world.ask(world.request())) == "same-failure-twice"
    assert world.systemd.state()["starts"] == 2


def test_a_failure_that_a_restart_cannot_cure_is_not_tried_at_all(tmp_path: Path) -> None:
    world = World(tmp_path, active=False)
    world.systemd.set(log=["CUDA error: no kernel image is available for execution on the device"])
    assert refused(world.ask(world.request())) == "incurable"
    assert world.systemd.state()["starts"] == 0


def test_what_a_restart_cannot_cure_another_program_may_whatever_systemd_is_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, active=False)
    world.write("etc/holdfast/runbooks.d/rebuild-lab.yaml", lab.install(monkeypatch))
    (tmp_path / lab.PRODUCT[1:]).parent.mkdir(parents=True)
    world.systemd.set(
        ActiveState="activating", SubState="auto-restart", healthy=True,
        log=["CUDA error: no kernel image is available for execution on the device"],
    )  # fmt: skip
    assert refused(world.ask(world.request())) == "unit-busy"
    events = world.ask(world.request(runbook="rebuild-lab"))
    assert events[0].event == "accepted"
    world.systemd.set(ActiveState="failed", SubState="failed")
    assert refused(world.ask(world.request())) == "incurable"
    world.later(3600)
    assert world.ask(world.request(runbook="rebuild-lab"))[0].event == "accepted"


def test_another_program_is_not_built_where_an_operator_stopped_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, active=False)
    world.write("etc/holdfast/runbooks.d/rebuild-lab.yaml", lab.install(monkeypatch))
    world.systemd.set(ActiveState="inactive", SubState="dead", Result="success", stops=[f"{1:032x}"])
    assert refused(world.ask(world.request(runbook="rebuild-lab"))) == "operator-stopped"


def test_the_transcript_is_the_truth_and_the_stream_its_tail(world: World) -> None:
    request = world.request()
    events = world.ask(request)
    assert tuple(events) == transcript.events(world.host(), request.id)
    assert [event.seq for event in events] == list(range(len(events)))


def test_a_client_that_has_gone_changes_nothing(world: World) -> None:
    world.ask(world.request())
    assert outcomes(world) == ["succeeded"]


def test_a_repeated_id_is_answered_with_its_old_outcome(world: World) -> None:
    request = world.request()
    first = world.ask(request)
    assert world.ask(request) == first
    assert world.systemd.state()["starts"] == 1
    assert outcomes(world) == ["succeeded"]


def test_a_stop_that_is_asked_for_ends_in_an_engine_that_runs(world: World) -> None:
    asked = iter([False] * 12)
    data = ended(world.ask(world.request(), stopping=lambda: next(asked, True)))
    assert data["outcome"] == "stopped"
    assert world.systemd.state()["ActiveState"] == "active"


def test_evidence_that_cannot_be_read_does_not_stop_the_repair(world: World) -> None:
    (world.root / "proc/meminfo").unlink()
    assert ended(world.ask(world.request()))["outcome"] == "succeeded"


def test_no_log_line_and_no_secret_gets_into_the_transcript(world: World) -> None:
    world.systemd.set(log=["prompt: CANARY-7 tell me a story"])
    request = world.request()
    world.ask(request)
    kept = (world.root / f"var/lib/holdfast-runner/runs/{request.id}.jsonl").read_text()
    assert "CANARY-7" not in kept
    assert "secret" not in kept


# --- what decides -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hand", [{"UnitFileState": "disabled"}, {"LoadState": "masked", "UnitFileState": "masked"}])
def test_a_unit_taken_out_of_service_between_our_stop_and_our_start_stays_down(
    world: World, hand: dict[str, str]
) -> None:
    world.acts.die_at = stop_of_the_unit(world)
    world.acts.die = lambda: world.systemd.set(**hand)
    data = ended(world.ask(world.request()))
    assert data["outcome"] == "stopped"
    assert str(data["code"]).startswith("operator-")
    assert world.systemd.state()["starts"] == 0
    assert world.systemd.state()["ActiveState"] == "inactive"


def test_an_operators_stop_during_the_proof_is_no_failure_and_the_unit_stays_down(world: World) -> None:
    def stopped_by_hand() -> bool:
        known = world.systemd.state()
        if known["starts"] and known["ActiveState"] == "active":
            stops = [*known["stops"], known["InvocationID"]]
            world.systemd.set(ActiveState="inactive", SubState="dead", MainPID=0, healthy=False, stops=stops)
        return False

    world.systemd.set(healthy=False)
    data = ended(world.ask(world.request(), stopping=stopped_by_hand))
    assert (data["outcome"], data["code"]) == ("stopped", "operator-stopped")
    assert world.systemd.state()["starts"] == 1
    assert world.systemd.state()["ActiveState"] == "inactive"


def stop_of_the_unit(world: World) -> int:
    """The number of the act after the stop."""
    other = World(world.root / "other", healthy=False)
    other.ask(other.request())
    return other.acts.seen.index(f"after systemctl stop --no-block {UNIT}") + 1


def test_a_unit_that_an_operator_stopped_is_never_started(tmp_path: Path) -> None:
    world = World(tmp_path, active=False)
    world.systemd.set(ActiveState="inactive", SubState="dead", Result="success", stops=[f"{1:032x}"])
    assert refused(world.ask(world.request())) == "operator-stopped"
    forced = world.request(force=True)
    assert refused(world.ask(forced, uid=OPERATOR_UID)) == "operator-stopped"
    assert world.systemd.state()["starts"] == 0


def test_a_unit_that_systemd_has_forgotten_is_looked_up_in_the_journal(tmp_path: Path) -> None:
    """Neither enabled nor failed, and its process ended with 0: systemd knows nothing of it any more."""
    world = World(tmp_path, active=False)
    gone = {"ActiveState": "inactive", "SubState": "dead", "Result": "success", "UnitFileState": "static"}
    world.systemd.set(**gone, InvocationID="")
    world.systemd.set(started=False)
    assert refused(world.ask(world.request())) == "cannot-tell"
    world.systemd.set(started=True, stops=[f"{1:032x}"])
    assert refused(world.ask(world.request())) == "operator-stopped"
    world.systemd.set(stops=[])
    assert ended(world.ask(world.request()))["outcome"] == "succeeded"


@pytest.mark.parametrize(("state", "code"), [("disabled", "operator-disabled"), ("masked", "operator-masked")])
def test_a_disabled_or_masked_unit_is_never_started(tmp_path: Path, state: str, code: str) -> None:
    world = World(tmp_path, active=False)
    world.systemd.set(UnitFileState=state)
    assert refused(world.ask(world.request())) == code


def test_a_running_unit_that_is_not_enabled_is_repaired(world: World) -> None:
    world.systemd.set(UnitFileState="disabled")
    assert ended(world.ask(world.request()))["outcome"] == "succeeded"


@pytest.mark.parametrize(
    "changes",
    [{"Job": "77"}, {"ActiveState": "activating", "SubState": "auto-restart"}, {"ActiveState": "deactivating"}],
)
def test_a_unit_that_systemd_is_working_on_is_left_alone(world: World, changes: dict[str, str]) -> None:
    world.systemd.set(**changes)
    assert refused(world.ask(world.request())) == "unit-busy"


def test_a_pause_stops_all_acting_until_it_is_over_or_taken_back(world: World) -> None:
    pause = world.request("pause", args={"for_s": 3600}, because="maintenance")
    assert world.ask(pause, uid=OPERATOR_UID)[0].event == "paused"
    assert refused(world.ask(world.request())) == "paused"
    assert world.ask(world.request("resume"), uid=OPERATOR_UID)[0].event == "resumed"
    assert ended(world.ask(world.request()))["outcome"] == "succeeded"


def test_a_refusal_says_when_to_ask_again(world: World) -> None:
    world.ask(world.request())
    event = world.ask(world.request())[0]
    assert event.data["code"] == "cooldown"
    assert 200 < event.data["not_before"] - event.at <= 300


def test_the_budget_is_spent_after_three_runs(world: World) -> None:
    for _ in range(3):
        ended(world.ask(world.request()))
        world.later(400)
    assert refused(world.ask(world.request())) == "budget"
    assert ended(world.ask(world.request(force=True), uid=OPERATOR_UID))["outcome"] == "succeeded"


def test_observing_only_refuses_the_daemon_and_serves_the_operator(tmp_path: Path) -> None:
    world = World(tmp_path, autonomy="observe", healthy=False)
    assert refused(world.ask(world.request())) == "autonomy-observe"
    assert ended(world.ask(world.request(), uid=OPERATOR_UID))["outcome"] == "succeeded"


def planned(world: World) -> Event:
    event = world.ask(world.request("plan"), uid=OPERATOR_UID)[0]
    assert event.event == "planned"
    return event


def test_an_approved_run_is_run_once(tmp_path: Path) -> None:
    world = World(tmp_path, autonomy="ask", healthy=False)
    refusal = world.ask(world.request(args={"incident": "i1"}))[0]
    assert (refusal.data["code"], refusal.data["needs_approval"]) == ("needs-approval", True)
    approve = world.request("approve", args={"incident": "i1", "plan": planned(world).data["plan"]})
    assert world.ask(approve, uid=OPERATOR_UID)[0].event == "approved"
    assert refused(world.ask(world.request(args={"incident": "another"}))) == "needs-approval"
    assert ended(world.ask(world.request(args={"incident": "i1"})))["outcome"] == "succeeded"
    world.later(400)
    assert refused(world.ask(world.request(args={"incident": "i1"}))) == "needs-approval"


def test_an_approval_expires(tmp_path: Path) -> None:
    world = World(tmp_path, autonomy="ask", healthy=False)
    approve = world.request("approve", args={"incident": "i1", "plan": planned(world).data["plan"]})
    world.ask(approve, uid=OPERATOR_UID)
    world.later(901)
    assert refused(world.ask(world.request(args={"incident": "i1"}))) == "needs-approval"


def test_an_approval_is_void_when_the_plan_has_become_another(tmp_path: Path) -> None:
    world = World(tmp_path, autonomy="ask", healthy=False)
    approve = world.request("approve", args={"incident": "i1", "plan": planned(world).data["plan"]})
    world.ask(approve, uid=OPERATOR_UID)
    world.systemd.set(ActiveState="failed", SubState="failed", Result="signal")
    assert refused(world.ask(world.request(args={"incident": "i1"}))) == "needs-approval"


def test_an_approval_for_a_plan_that_nobody_saw_is_refused(tmp_path: Path) -> None:
    world = World(tmp_path, autonomy="ask", healthy=False)
    approve = world.request("approve", args={"incident": "i1", "plan": "0" * 64})
    assert refused(world.ask(approve, uid=OPERATOR_UID)) == "plan-changed"


# --- who may ask ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("do", ["approve", "resume"])
def test_the_daemon_cannot_permit_itself_anything(world: World, do: str) -> None:
    assert refused(world.ask(world.request(do))) == "operators-only"


def test_the_daemon_cannot_force(world: World) -> None:
    assert refused(world.ask(world.request(force=True))) == "operators-only"
    assert [record.data["uid"] for record in records(world, Kind.REFUSED)] == [DAEMON_UID]


@pytest.mark.parametrize("do", ["run", "plan", "pause", "stop", "recover", "approve"])
def test_members_of_the_group_only_read(world: World, do: str) -> None:
    assert refused(world.ask(world.request(do), uid=READER_UID)) == "permission"


def test_members_of_the_group_may_follow_a_run(world: World) -> None:
    request = world.request()
    events = world.ask(request)
    follow = world.request("follow", id=request.id)
    assert world.ask(follow, uid=READER_UID) == events


def test_following_a_run_that_never_was_is_refused(world: World) -> None:
    assert refused(world.ask(world.request("follow"))) == "unknown-run"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"runbook": "rm-rf"}, "unknown-runbook"),
        ({"runbook": None}, "unknown-runbook"),
        ({"subject": "engine:other"}, "unknown-subject"),
        ({"subject": "host"}, "unknown-subject"),
        ({"subject": None}, "unknown-subject"),
        ({"args": {"unit": "ssh.service"}}, "wrong-inputs"),
    ],
)
def test_unknown_names_are_refused_and_recorded(world: World, changes: dict[str, object], code: str) -> None:
    assert refused(world.ask(world.request(**changes))) == code
    assert [record.data["code"] for record in records(world, Kind.REFUSED)] == [code]


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (b"", "request-invalid"),
        (None, "request-invalid"),
        (b"\xff\xfe", "request-invalid"),
        (b'{"do":"run"}', "request-invalid"),
        (b'{"v":1,"do":"shell","id":"01000000000000000000000001"}', "request-invalid"),
        (b'{"v":1,"do":"run","id":"../../etc/passwd"}', "request-invalid"),
        (b'{"v":1,"do":"run","id":"01000000000000000000000001","argv":["sh"]}', "request-invalid"),
        (Unreachable("slow", kind="timeout"), "no-request"),
        (Unreachable("long", kind="too-large"), "request-too-large"),
    ],
)
def test_what_is_no_request_is_refused(world: World, said: bytes | Exception | None, code: str) -> None:
    assert refused(world.ask(said)) == code


def test_a_flood_of_refusals_becomes_one_record_with_a_count(world: World) -> None:
    for _ in range(400):
        world.ask(world.request(force=True))
    world.later(11)
    world.ask(world.request(force=True))
    assert [record.data["count"] for record in records(world, Kind.REFUSED)] == [1, 400]
    assert ended(world.ask(world.request()))["outcome"] == "succeeded"


def test_a_runbook_that_others_can_write_is_refused(world: World) -> None:
    (world.root / "usr/share/holdfast/runbooks/restart-engine.yaml").chmod(0o666)
    assert refused(world.ask(world.request())) == "configuration"
    assert world.systemd.state()["starts"] == 0


def test_a_configuration_that_others_can_write_is_refused(world: World) -> None:
    (world.root / "etc/holdfast/holdfast.toml").chmod(0o666)
    assert refused(world.ask(world.request())) == "configuration"


def test_without_a_ledger_there_is_no_run(world: World) -> None:
    (world.root / "var/lib/holdfast-runner/ledger.jsonl").mkdir(parents=True)
    assert refused(world.ask(world.request())) in ("no-ledger", "file")
    assert world.systemd.state()["starts"] == 0


def test_only_a_run_without_its_outcome_makes_the_runner_fail_so_that_recovery_follows(world: World) -> None:
    assert answered(world, b"garbage") == 0
    assert answered(world, line(world.request(force=True))) == 0
    assert answered(world, Unreachable("nothing came", kind="timeout")) == 0
    assert answered(world, line(world.request(runbook="no-such"))) == 0

    def disk_full() -> None:
        world.acts.die_at = world.acts.count + 1
        raise FileTrouble("no space left on device", kind="other", where="/var")

    world.acts.die_at, world.acts.die = world.acts.count + 12, disk_full
    assert answered(world, line(world.request())) == 70
    assert len(records(world, Kind.ATTEMPT)) == 1
    assert outcomes(world) == []


def answered(world: World, said: bytes | Exception) -> int:
    """The runner's exit code."""
    return runner.answer(world.host(), Connection(said, DAEMON_UID), lambda: False)  # type: ignore[arg-type]


def test_a_ledger_that_was_changed_afterwards_stops_all_runs(world: World) -> None:
    world.ask(world.request())
    path = world.root / "var/lib/holdfast-runner/ledger.jsonl"
    path.write_text(path.read_text().replace('"risk":"service"', '"risk":"none"'))
    world.later(400)
    assert refused(world.ask(world.request())) == "ledger-broken"


# --- the other verbs ----------------------------------------------------------------------------------------------


def test_a_dry_run_shows_real_values_and_leaves_no_trace(world: World) -> None:
    event = planned(world)
    lines = [text for step in event.data["steps"] for text in step["lines"]]
    assert "systemctl stop --no-block chat.service" in lines
    assert ledger.read(world.host()).records == ()
    assert world.systemd.state()["starts"] == 0


def test_the_same_plan_has_the_same_hash(world: World) -> None:
    first = planned(world)
    world.later(5)
    assert planned(world).data["plan"] == first.data["plan"]


def test_a_rehearsal_is_refused_in_words(world: World) -> None:
    assert refused(world.ask(world.request("rehearse"))) == "no-rehearsal"


@pytest.mark.parametrize("for_s", [0, -1, "long", True, 1e9, None])
def test_a_pause_needs_a_sensible_time(world: World, for_s: object) -> None:
    assert refused(world.ask(world.request("pause", args={"for_s": for_s}), uid=OPERATOR_UID)) == "request-invalid"


def test_stopping_a_run_that_is_not_in_flight_is_refused(world: World) -> None:
    assert refused(world.ask(world.request("stop", id=ulid(9)), uid=OPERATOR_UID)) == "unknown-run"


# --- what comes next ----------------------------------------------------------------------------------------------

LAST_RESORT = """
id: last-resort
title: The last resort
explain: Tried when a restart did not help.
steps:
  - {name: Restart once more, use: engine.restart, with: {engine: "{{ engine.name }}"}}
verify: {check: engine.generates, within: "1m"}
"""


def test_the_next_runbook_is_a_run_of_its_own(world: World) -> None:
    shipped = world.root / "usr/share/holdfast/runbooks/restart-engine.yaml"
    world.write("etc/holdfast/runbooks.d/last-resort.yaml", LAST_RESORT)
    world.write(
        "etc/holdfast/runbooks.d/restart-engine.yaml",
        shipped.read_text().replace("on_failure: escalate", "on_failure: {run: last-resort}"),
    )
    world.systemd.set(broken=True)
    request = world.request()
    events = world.ask(request)
    assert [event.data["runbook"] for event in events if event.event == "accepted"] == ["restart-engine", "last-resort"]
    assert outcomes(world) == ["failed", "failed"]
    assert len({event.id for event in events}) == 2
    world.ask(request)
    assert len(records(world, Kind.ATTEMPT)) == 2
