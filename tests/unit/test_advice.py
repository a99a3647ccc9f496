"""The daemon's advice: the same rules as the runner's law, from what the daemon may read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent import ledger, runbook, transcript
from agent.advice import JUST_OVER_S, SILENT_S, Adviser
from agent.config import AutonomySettings, Config
from agent.errors import FileTrouble
from agent.host import changes
from agent.host.files import RealFiles
from agent.model import Autonomy, CheckResult, Finding, Moment, Observation, Status, Verdict
from agent.plugin import engines
from agent.runbook import Runbooks
from tests.support import lab
from tests.support.cli import tree
from tests.support.fake_host import FakeHost

REPOSITORY = Path(__file__).resolve().parents[2]
CHAT = "engine:chat"
DEAD = Finding("engine-dead", CHAT, Status.CRITICAL, "chat is dead")
DRIFT = Finding("driver-drift", "host", Status.CRITICAL, "another driver runs")


def adviser(
    mode: Autonomy = Autonomy.ACT, unit: dict[str, object] | None = None, records: list[dict[str, object]] | None = None
) -> tuple[Adviser, Moment]:
    host = FakeHost.build(
        files={ledger.FILE: "".join(json.dumps(each) + "\n" for each in records)} if records is not None else {}
    )
    engine = engines()["llama.cpp"].settings(
        name="chat", kind="llama.cpp", url="http://127.0.0.1:8080", unit="llama-server.service"
    )
    config = Config(autonomy=AutonomySettings(mode=mode), engines=(engine,))
    books = runbook.load(RealFiles(), directories=(str(REPOSITORY / "runbooks"),))
    now = host.clock.now()
    seen = tuple(Observation(name, value) for name, value in (unit or {"unit.active": "failed"}).items())
    results = {
        ("engine.unit", CHAT): CheckResult("engine.unit", CHAT, Status.CRITICAL, "", seen, now, 0.0, Verdict.DEAD)
    }
    return Adviser(host, config, books, lambda: results), now


def test_a_dead_engine_may_be_restarted() -> None:
    advise, now = adviser()
    advice = advise(DEAD, now)
    assert advice.runbook == "restart-engine"
    assert advice.decision.allow


def test_what_no_runbook_cures_is_a_persons_with_the_page_that_explains_it() -> None:
    advise, now = adviser()
    advice = advise(DRIFT, now)
    assert advice.runbook is None
    assert advice.command == "holdfast explain driver-drift"


@pytest.mark.parametrize(
    ("unit", "code"),
    [
        ({"unit.active": "inactive", "unit.operator": True}, "operator-stopped"),
        ({"unit.active": "failed", "unit.operator": None}, "cannot-tell"),
        ({"unit.active": "activating"}, "unit-busy"),
        ({"unit.active": "failed", "unit.pending": True}, "unit-busy"),
    ],
)
def test_an_operators_hand_and_systemds_own_work_come_first(unit: dict[str, object], code: str) -> None:
    advise, now = adviser(unit=unit)
    assert advise(DEAD, now).decision.code == code


def test_observing_only_says_what_a_person_would_type() -> None:
    advise, now = adviser(Autonomy.OBSERVE)
    advice = advise(DEAD, now)
    assert advice.decision.code == "autonomy-observe"
    assert advice.command == "sudo holdfast run restart-engine --subject engine:chat"


def test_an_incurable_failure_is_not_tried_and_force_is_named() -> None:
    advise, now = adviser()
    broken = Finding("engine-dead", CHAT, Status.CRITICAL, "no kernel image", incurable=True)
    advice = advise(broken, now)
    assert advice.decision.code == "incurable"
    assert advice.command.endswith(" --force")


def test_what_a_restart_cannot_cure_is_left_to_the_runbook_that_brings_another_program(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    advise, now = adviser(unit={"unit.active": "activating", "unit.pending": True})
    text = lab.install(monkeypatch, ("engine-incompatible",))
    book = runbook.parse(text, "rebuild-lab.yaml", runbook.catalogue(), [])
    assert book is not None
    advise.runbooks = Runbooks({book.id: book})
    unfit = Finding("engine-incompatible", CHAT, Status.CRITICAL, "chat does not fit this machine", incurable=True)
    assert advise(unfit, now).decision.allow, "building disturbs nobody, whatever systemd is at"
    advise.config = replace(advise.config, engines=(advise.config.engines[0].model_copy(update={"name": "bare"}),))
    advice = advise(replace(unfit, subject="engine:bare"), now)
    assert (advice.runbook, advice.decision.code, advice.left) == (None, "manual", "nothing is configured to build")
    assert advice.command == "holdfast explain engine-incompatible"


def test_a_page_says_what_is_missing_where_no_rebuild_is_configured() -> None:
    advise, now = adviser()
    advice = advise(Finding("engine-incompatible", CHAT, Status.CRITICAL, "chat does not fit this machine"), now)
    assert advice.runbook is None
    assert advice.decision.code == "manual", "a person is called at once"
    assert advice.left == "chat cannot be rebuilt here: it has no [engine.rebuild]"
    rebuild = {"source": "/opt/llama.cpp/src", "commit": "a" * 40}
    settings = engines()["llama.cpp"].settings.model_validate(
        {**advise.config.engines[0].model_dump(), "rebuild": rebuild}
    )
    advise.config = replace(advise.config, engines=(settings,))
    advice = advise(Finding("engine-incompatible", CHAT, Status.CRITICAL, "chat does not fit this machine"), now)
    assert (advice.runbook, advice.decision.allow) == ("rebuild-llama-cpp", True)


def test_a_ledger_that_cannot_be_read_is_said_and_blinds_nobody() -> None:
    advise, now = adviser(records=[])
    files: Any = advise._host.files
    files.entries[ledger.FILE] = FileTrouble("ledger.jsonl: Permission denied", kind="denied")
    assert advise(DEAD, now).decision.allow, "the runner is the law and reads it itself"
    assert advise.unreadable == "ledger.jsonl: Permission denied"


def test_a_ledger_that_was_never_written_is_no_trouble() -> None:
    advise, _ = adviser()
    assert advise.records() == ()
    assert advise.unreadable == ""


def test_a_runbook_for_the_host_is_not_mistaken_for_one_of_an_engine_called_host() -> None:
    advise, now = adviser()
    engine = advise.config.engines[0].model_copy(update={"name": "host"})
    for_host = replace(advise.runbooks.by_id["restart-engine"], findings=("driver-drift",), steps=())
    advise.config = replace(advise.config, engines=(engine,))
    advise.runbooks = Runbooks({for_host.id: replace(for_host, engines=("llama.cpp",))})
    assert advise(DRIFT, now).runbook is None
    advise.runbooks = Runbooks({for_host.id: for_host})
    assert advise(DRIFT, now).decision.allow


def change_opens(advise: Adviser) -> None:
    files: Any = advise._host.files
    change = changes.Change("1", "580.178.04", "", "CVE", Moment(0.0, 0.0, "boot-1"), 3600.0, "alice", "550.54.15")
    files.entries[changes.FILE] = changes.text(change)


def test_what_a_planned_change_goes_through_is_left_to_whoever_is_at_it() -> None:
    advise, now = adviser()
    assert advise(DRIFT, now).decision.code == "manual"
    change_opens(advise)
    for finding in (DRIFT, DEAD):
        advice = advise(finding, now)
        assert (advice.decision.code, advice.decision.reason) == (
            "change-open", "a planned change is open: driver 580.178.04 (CVE)",
        )  # fmt: skip
    assert advise(DRIFT, now).command == "holdfast change status"


def test_what_was_never_planned_stays_loud_during_a_change() -> None:
    advise, now = adviser()
    change_opens(advise)
    for_trap = replace(advise.runbooks.by_id["restart-engine"], findings=("next-boot-no-driver",), steps=())
    trap = Finding("next-boot-no-driver", "host", Status.CRITICAL, "no driver")
    assert advise(trap, now).decision.code == "manual"
    advise.runbooks = Runbooks({for_trap.id: for_trap})
    assert advise(trap, now).decision.code == "manual", "a runbook of its own does not make it quieter"
    armed = Finding("reboot-will-break", "host", Status.CRITICAL, "reboots in 5 h", never_planned=True)
    assert advise(armed, now).decision.code == "manual"
    assert advise(replace(armed, never_planned=False), now).decision.code == "change-open"


RUN = "01JD3Z5W8Q0000000000000000"


def with_a_run(root: Path, subject: str = CHAT) -> tuple[Adviser, Any]:
    """An adviser on a host whose ledger, in a folder, has the attempt of a run; and that host."""
    advise, _ = adviser()
    for name in ("locks", "runs"):
        (root / ledger.DIRECTORY.lstrip("/") / name).mkdir(parents=True)
    host = tree(root)
    advise._host = host
    about = {"runbook": "rebuild-llama-cpp", "subject": subject, "risk": "service"}
    ledger.append(host, ledger.Kind.ATTEMPT, RUN, about)
    return advise, host


def disturbed_after(
    root: Path, *events: tuple[str, dict[str, object]], silent_s: float = 0.0, subject: str = CHAT
) -> bool:
    """Whether the engine counts as being taken down when a run's transcript says this, and nothing for some seconds."""
    advise, host = with_a_run(root, subject)
    told = transcript.Transcript(host, RUN, lambda _: None)
    for name, data in events:
        told.write(name, **data)
    host.clock.advance(silent_s)
    return CHAT in advise.disturbed(host.clock.now())


BUILDING: tuple[str, dict[str, object]] = ("step_started", {"step": 2, "name": "Build", "use": "build.compile"})
RESTARTING: tuple[str, dict[str, object]] = ("step_started", {"step": 6, "name": "Restart", "use": "engine.restart"})
DONE: tuple[str, dict[str, object]] = ("step_ended", {"step": 6, "name": "Restart", "ok": True})
FAILED: tuple[str, dict[str, object]] = ("step_ended", {"step": 6, "name": "Restart", "ok": False})


@pytest.mark.parametrize(
    ("events", "disturbed"),
    [
        ((RESTARTING,), True),
        ((BUILDING, RESTARTING), True),
        ((RESTARTING, FAILED), True),  # its undo follows
        ((BUILDING,), False),  # what is built beside it does not hide that it dies
        ((RESTARTING, DONE), False),
        ((), False),
    ],
)
def test_an_engine_is_disturbed_while_a_run_restarts_it_or_undoes_that(
    tmp_path: Path, events: tuple[tuple[str, dict[str, object]], ...], disturbed: bool
) -> None:
    assert disturbed_after(tmp_path, *events) is disturbed


def test_a_run_that_was_cut_off_and_never_finished_blinds_nobody_for_long(tmp_path: Path) -> None:
    assert not disturbed_after(tmp_path, RESTARTING, silent_s=SILENT_S + 1)


def test_the_host_is_watched_whatever_runs_on_it(tmp_path: Path) -> None:
    assert not disturbed_after(tmp_path, RESTARTING, subject="host")


def test_a_look_from_during_a_run_may_arrive_just_after_it(tmp_path: Path) -> None:
    advise, host = with_a_run(tmp_path)
    ledger.append(host, ledger.Kind.OUTCOME, RUN, {"outcome": "succeeded", "subject": CHAT, "signature": ""})
    assert advise.disturbed(host.clock.now()) == {CHAT}
    host.clock.advance(JUST_OVER_S + 0.1)
    assert advise.disturbed(host.clock.now()) == frozenset()
