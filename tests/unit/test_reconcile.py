"""The loop: results in, incidents moved, effects out; and what survives a restart of the daemon."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent import plugin
from agent.config import CheckSettings, Config
from agent.messages import (
    Acknowledged,
    Advice,
    CheckNow,
    ConfigurationChanged,
    Effect,
    Message,
    ResultArrived,
    RunGoesOn,
    RunReported,
    StartRun,
    Tick,
)
from agent.model import (
    Alert,
    CheckResult,
    Decision,
    Finding,
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
from agent.protocol import Request
from agent.reconcile import EXPLAIN_S, ON_DEMAND_S, SETTLE_S, Reconciler
from agent.store import Store, open_store

CHAT = "engine:chat"
ALLOWED = Decision(True, "nothing speaks against it", "allowed")


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.at = 0.0
        self.stepped_s = 0.0

    def now(self) -> Moment:
        return Moment(1_800_000_000.0 + self.at + self.stepped_s, 50.0 + self.at, "boot-1")

    def sleep(self, seconds: float) -> None:
        self.at += seconds


def configuration() -> Config:
    engine = plugin.engines()["llama.cpp"].settings(
        name="chat", kind="llama.cpp", url="http://127.0.0.1:8080", unit="llama-server.service"
    )
    checks = {check.id: CheckSettings(True, check.every_s, check.params()) for check in plugin.checks().values()}
    return Config(engines=(engine,), checks=checks)


class Scene:
    """A reconciler over a real store, with advice that a test sets and alerts that it can read."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self.clock = clock
        self.store = store
        self.decision = ALLOWED
        self.runbook: str | None = "restart-engine"
        self.disturbed: frozenset[str] = frozenset()
        self.told: list[tuple[str, str, Urgency]] = []
        self._ids = itertools.count(1)
        self.loop = self.fresh()

    def fresh(self, config: Config | None = None) -> Reconciler:
        """A reconciler as after a restart of the daemon."""
        return Reconciler(
            config or configuration(),
            self.store,
            advise=self._advise,
            enqueue=self._enqueue,
            prefix="holdfast/0123abcd",
            new_id=self._new_id,
            disturbed=lambda _: self.disturbed,
        )

    def _new_id(self) -> str:
        return f"01J{next(self._ids):023d}"

    def _advise(self, finding: Finding, now: Moment) -> Advice:
        return Advice(self.runbook, self.decision, "a person must act", "sudo holdfast run restart-engine")

    def _enqueue(self, incident: Incident, transition: Transition) -> list[tuple[str, Alert]]:
        self.told.append((incident.finding, transition.kind, incident.urgency))
        return []

    def send(self, message: Message, after: float = 0.0) -> list[Effect]:
        self.clock.at += after
        return self.loop.handle(message, self.clock.now())

    def result(self, check: str, verdict: Verdict, after: float = 0.0, **evidence: Any) -> list[Effect]:
        self.clock.at += after
        return self.send(ResultArrived(answer(self.clock.now(), check, verdict, evidence)))

    def explain(self) -> list[Effect]:
        """Every other check answers that all is well with it."""
        self.clock.at += 0.1
        effects = self.result("engine.progress", Verdict.DEAD)
        for check in ("driver.lock", "gpu.xid"):
            effects += self.send(ResultArrived(answer(self.clock.now(), check, Verdict.READY, {}, "host")))
        return effects + self.result("engine.unit", Verdict.DEAD, **{"unit.failure": "killed by SIGKILL"})

    def incident(self) -> Incident:
        return self.loop.incidents[("engine-dead", CHAT)]

    def kinds(self) -> list[str]:
        return [kind for finding, kind, _ in self.told if finding == "engine-dead"]


def answer(at: Moment, check: str, verdict: Verdict, evidence: Mapping[str, Any], subject: str = CHAT) -> CheckResult:
    observations = tuple(Observation(name, value) for name, value in evidence.items())
    return CheckResult(check, subject, verdict.status, str(verdict), observations, at, 0.0, verdict)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    clock = Clock()
    store = open_store(tmp_path / "holdfast.db", clock)
    yield Scene(store, clock)
    store.close()


def open_incident(scene: Scene) -> Request:
    """A dead engine, up to the moment a run is asked for."""
    scene.result("engine.unit", Verdict.DEAD, **{"unit.failure": "killed by SIGKILL"})
    (asked,) = [effect for effect in scene.explain() if isinstance(effect, StartRun)]
    return asked.request


def ended(request: Request, outcome: Outcome, summary: str = "") -> RunReported:
    run = Run(request.id, "restart-engine", CHAT, "", 0.0, 1.0, outcome, summary)
    return RunReported(request.id, run)


def test_the_checks_that_could_explain_it_are_asked_before_anything_opens(scene: Scene) -> None:
    effects = scene.result("engine.unit", Verdict.DEAD)
    asked = {(effect.check, effect.subject) for effect in effects if isinstance(effect, CheckNow)}
    assert asked == {("engine.unit", CHAT), ("engine.progress", CHAT), ("driver.lock", "host"), ("gpu.xid", "host")}
    assert scene.kinds() == []


def test_an_explanation_that_clears_it_up_leaves_no_trace(scene: Scene) -> None:
    scene.result("engine.unit", Verdict.DEAD)
    scene.result("engine.progress", Verdict.READY, after=0.1)
    scene.result("engine.unit", Verdict.READY, after=0.1)
    scene.send(Tick(), after=EXPLAIN_S)
    assert scene.kinds() == []
    assert scene.store.load_incidents(open_only=False) == []


def test_explanations_that_do_not_come_are_not_awaited_for_long(scene: Scene) -> None:
    scene.result("engine.unit", Verdict.DEAD)
    assert scene.send(Tick(), after=EXPLAIN_S - 0.1) == []
    scene.send(Tick(), after=0.2)
    assert scene.kinds() == ["opened", "acting"]
    assert scene.loop.results[("driver.lock", "host")].status is Status.UNKNOWN
    assert scene.loop.results[("engine.unit", CHAT)].verdict is Verdict.DEAD, "the evidence itself stands"


def test_a_run_is_asked_for_only_after_it_was_stored(scene: Scene) -> None:
    request = open_incident(scene)
    (stored,) = scene.store.load_incidents()
    assert stored.phase is Phase.ACTING
    assert stored.runs == (request.id,)
    assert scene.kinds() == ["opened", "acting"]


def test_a_successful_run_resolves_once_fresh_checks_agree(scene: Scene) -> None:
    request = open_incident(scene)
    effects = scene.send(ended(request, Outcome.SUCCEEDED, "1 token"), after=3)
    due = {effect.check for effect in effects if isinstance(effect, CheckNow)}
    assert {"engine.unit", "engine.progress", "engine.alive"} <= due
    for check in ("engine.unit", "engine.progress", "engine.alive"):
        scene.result(check, Verdict.READY, after=0.1)
    assert scene.kinds() == ["opened", "acting", "verified", "resolved"]
    assert scene.store.load_incidents() == []


def test_old_results_cannot_resolve_what_a_run_has_just_touched(scene: Scene) -> None:
    request = open_incident(scene)
    scene.send(ended(request, Outcome.SUCCEEDED), after=3)
    scene.result("engine.unit", Verdict.READY, after=0.1)
    assert "resolved" not in scene.kinds()


def test_an_engine_that_another_run_is_restarting_is_not_dead(scene: Scene) -> None:
    scene.disturbed = frozenset({CHAT})
    scene.result("engine.unit", Verdict.DEAD)
    scene.explain()
    scene.send(Tick(), after=EXPLAIN_S + 1)
    scene.result("engine.unit", Verdict.READY)
    scene.result("engine.unit", Verdict.DEAD)
    assert scene.kinds() == []
    scene.disturbed = frozenset()
    due = {effect.check for effect in scene.send(Tick(), after=1) if isinstance(effect, CheckNow)}
    assert {"engine.unit", "engine.progress", "engine.alive"} <= due
    for check in ("engine.unit", "engine.progress", "engine.alive"):
        scene.result(check, Verdict.READY, after=0.1)
    scene.send(Tick(), after=SETTLE_S + 1)
    assert scene.kinds() == []


def test_an_engine_that_another_run_has_left_dead_is_told_once_that_is_over(scene: Scene) -> None:
    scene.disturbed = frozenset({CHAT})
    scene.result("engine.unit", Verdict.DEAD)
    scene.disturbed = frozenset()
    scene.send(Tick(), after=1)
    for check in ("engine.progress", "engine.alive", "engine.unit"):
        scene.result(check, Verdict.DEAD, after=0.1)
    scene.send(Tick(), after=SETTLE_S + 1)
    scene.explain()
    assert scene.kinds() == ["opened", "acting"]


def test_a_spent_budget_hands_over_to_a_person_once(scene: Scene) -> None:
    request = open_incident(scene)
    scene.decision = Decision(False, "3 of 3 runs are spent", "budget", not_before=scene.clock.now().wall + 9999)
    scene.send(ended(request, Outcome.FAILED, "exit 127"), after=3)
    for _ in range(5):
        scene.explain()
        scene.send(Tick(), after=20)
    assert scene.kinds() == ["opened", "acting", "raised", "escalated"]
    assert scene.incident().urgency is Urgency.CRITICAL
    assert scene.incident().command == "sudo holdfast run restart-engine"


def test_what_nobody_may_cure_is_critical_and_rings_once_as_the_call_for_a_person(scene: Scene) -> None:
    scene.decision = Decision(False, "a restart cannot cure this", "incurable")
    scene.result("engine.unit", Verdict.DEAD)
    scene.explain()
    assert scene.told == [("engine-dead", "escalated", Urgency.CRITICAL)]
    assert [each.kind for each in scene.store.transitions(scene.incident().id)] == ["opened", "escalated"]


def test_observing_says_what_would_be_done_and_starts_nothing(scene: Scene) -> None:
    scene.decision = Decision(False, "autonomy is observe", "autonomy-observe", needs_approval=True)
    scene.result("engine.unit", Verdict.DEAD)
    effects = scene.explain()
    assert not [effect for effect in effects if isinstance(effect, StartRun)]
    assert scene.told == [("engine-dead", "opened", Urgency.CRITICAL)]
    assert scene.incident().command == "sudo holdfast run restart-engine"


def test_asking_pages_the_command_that_approves(scene: Scene) -> None:
    scene.decision = Decision(False, "autonomy is ask", "needs-approval", needs_approval=True)
    scene.result("engine.unit", Verdict.DEAD)
    scene.explain()
    assert scene.kinds() == ["needs-approval"]
    assert scene.incident().command == f"sudo holdfast incident approve {scene.incident().id}"
    scene.decision = ALLOWED
    (asked,) = [effect for effect in scene.send(Tick(), after=1) if isinstance(effect, StartRun)]
    assert asked.request.args == {"incident": scene.incident().id}


def test_while_paused_it_is_told_quietly_and_acted_upon_afterwards(scene: Scene) -> None:
    scene.decision = Decision(False, "paused", "paused", not_before=scene.clock.now().wall + 60)
    scene.result("engine.unit", Verdict.DEAD)
    scene.explain()
    assert scene.told == [("engine-dead", "opened", Urgency.INFO)]
    scene.decision = ALLOWED
    effects = scene.send(Tick(), after=61)
    assert [type(effect) for effect in effects] == [StartRun]


def test_what_a_planned_change_goes_through_is_quiet_while_it_is_open_and_loud_if_it_stays(scene: Scene) -> None:
    scene.runbook = None
    scene.decision = Decision(False, "a planned change is open", "change-open")
    scene.result("engine.unit", Verdict.DEAD)
    scene.explain()
    scene.send(Tick(), after=7200)
    assert scene.told == [("engine-dead", "opened", Urgency.INFO)]
    scene.decision = Decision(False, "a person must act", "manual")
    scene.send(Tick(), after=1)
    assert scene.told[-1] == ("engine-dead", "escalated", Urgency.CRITICAL)


def test_resuming_counts_at_once_and_not_when_the_pause_would_have_ended(scene: Scene) -> None:
    scene.decision = Decision(False, "paused", "paused", not_before=scene.clock.now().wall + 7200)
    scene.result("engine.unit", Verdict.DEAD)
    scene.explain()
    scene.decision = ALLOWED
    assert [type(effect) for effect in scene.send(Tick(), after=1)] == [StartRun]


def test_a_wait_that_the_runner_asked_for_is_obeyed(scene: Scene) -> None:
    request = open_incident(scene)
    refused_for_100_s(scene, request)
    assert scene.send(Tick(), after=50) == []
    assert [type(effect) for effect in scene.send(Tick(), after=60)] == [StartRun]


def test_a_wall_clock_that_was_set_back_does_not_stretch_a_wait(scene: Scene) -> None:
    refused_for_100_s(scene, open_incident(scene))
    scene.clock.stepped_s = -86400.0
    assert [type(effect) for effect in scene.send(Tick(), after=110)] == [StartRun]


def refused_for_100_s(scene: Scene, request: Request) -> None:
    no = Decision(False, "busy", "unit-busy", not_before=scene.clock.now().wall + 100)
    run = Run(request.id, "restart-engine", CHAT, "", 0.0, 1.0, Outcome.REFUSED, "busy")
    scene.send(RunReported(request.id, run, no))
    for check in ("engine.alive", "engine.progress", "engine.unit"):
        scene.result(check, Verdict.DEAD, after=0.1)


def test_a_look_that_cannot_tell_resolves_nothing(scene: Scene) -> None:
    scene.decision = Decision(False, "autonomy is observe", "autonomy-observe")
    scene.result("engine.unit", Verdict.DEAD)
    scene.explain()
    scene.result("engine.progress", Verdict.UNKNOWN, after=5)
    scene.result("engine.unit", Verdict.UNKNOWN, after=5)
    scene.send(Tick(), after=60)
    assert "resolved" not in scene.kinds(), "cannot tell is never OK"
    scene.result("engine.progress", Verdict.READY, after=5)
    assert "resolved" not in scene.kinds()
    scene.result("engine.unit", Verdict.READY, after=5)
    assert scene.kinds()[-1] == "resolved"


def test_an_engine_that_loads_is_not_over_its_death(scene: Scene) -> None:
    scene.runbook = None
    scene.result("engine.unit", Verdict.DEAD)
    scene.explain()
    assert scene.kinds() == ["escalated"]
    for verdict in (Verdict.LOADING, Verdict.DEAD, Verdict.LOADING):
        scene.result("engine.progress", verdict, after=5)
        scene.result("engine.unit", verdict, after=5)
        scene.send(Tick(), after=60)
    assert scene.kinds() == ["escalated"], "a start that may fail again ends nothing, and calls nobody twice"
    scene.result("engine.progress", Verdict.READY, after=5)
    scene.result("engine.unit", Verdict.READY, after=5)
    assert scene.kinds()[-1] == "resolved"


def test_what_was_seen_before_a_restart_is_not_acted_upon(scene: Scene) -> None:
    scene.decision = Decision(False, "autonomy is observe", "autonomy-observe")
    scene.result("engine.unit", Verdict.DEAD)
    scene.explain()
    scene.loop = scene.fresh()
    scene.decision = ALLOWED
    assert scene.send(Tick(), after=3600) == []
    for check in ("engine.alive", "engine.progress"):
        assert scene.result(check, Verdict.READY, after=0.1) == []
    assert "resolved" not in scene.kinds()
    assert scene.result("engine.unit", Verdict.READY, after=0.1) == []
    assert scene.kinds()[-1] == "resolved"


def test_a_check_that_is_silent_after_a_restart_counts_as_unknown(scene: Scene) -> None:
    scene.decision = Decision(False, "autonomy is observe", "autonomy-observe")
    scene.result("engine.unit", Verdict.DEAD)
    scene.explain()
    scene.loop = scene.fresh()
    scene.decision = ALLOWED
    scene.send(Tick(), after=3600)
    assert scene.send(Tick(), after=60) == []
    assert scene.loop.results[("engine.unit", CHAT)].status is Status.UNKNOWN
    assert "resolved" not in scene.kinds()


def test_an_engine_that_is_no_longer_configured_leaves_nothing_open(scene: Scene) -> None:
    scene.decision = Decision(False, "autonomy is observe", "autonomy-observe")
    scene.result("engine.unit", Verdict.DEAD)
    scene.explain()
    scene.send(ConfigurationChanged(replace(scene.loop.config, engines=())), after=1)
    assert scene.kinds()[-1] == "resolved"
    assert scene.store.transitions(scene.incident().id)[-1].text == "it is not watched any more"


def test_a_look_that_ends_after_its_engine_was_removed_is_not_heard(scene: Scene) -> None:
    scene.send(ConfigurationChanged(replace(scene.loop.config, engines=())))
    scene.result("engine.unit", Verdict.DEAD)
    scene.send(Tick(), after=60)
    assert scene.told == []


def test_an_engine_that_was_removed_while_the_daemon_was_down_leaves_nothing_open(scene: Scene) -> None:
    scene.decision = Decision(False, "autonomy is observe", "autonomy-observe")
    scene.result("engine.unit", Verdict.DEAD)
    scene.explain()
    scene.loop = scene.fresh(replace(scene.loop.config, engines=()))
    scene.send(Tick(), after=60)
    assert scene.kinds()[-1] == "resolved"
    assert not [subject for _, subject in scene.store.load_results() if subject == CHAT]


def test_a_memory_that_was_started_anew_is_told_what_is_open(scene: Scene) -> None:
    scene.decision = Decision(False, "autonomy is observe", "autonomy-observe")
    scene.result("engine.unit", Verdict.DEAD)
    scene.explain()
    scene.loop.recommit(scene.clock.now())
    assert scene.kinds() == ["opened", "updated"], "pages that waited in the lost memory are told again"


def test_a_daemon_that_was_killed_during_a_run_asks_for_its_outcome_and_starts_nothing_twice(scene: Scene) -> None:
    request = open_incident(scene)
    scene.loop = scene.fresh()
    effects = scene.send(Tick(), after=1)
    assert effects == [StartRun(Request(do="follow", id=request.id))]
    assert scene.send(Tick(), after=1) == []
    scene.send(ended(request, Outcome.SUCCEEDED), after=1)
    assert scene.kinds() == ["opened", "acting", "verified"]


def test_a_run_that_waits_for_a_reboot_calls_for_the_person_who_makes_it(scene: Scene) -> None:
    request = open_incident(scene)
    waits = Run(request.id, "restore-driver", CHAT, "", 0.0, None, None, "550.54.15 is on disk again")
    assert scene.send(RunReported(request.id, waits), after=1) == []
    assert (scene.incident().phase, scene.incident().command) == (Phase.ESCALATED, "sudo systemctl reboot")
    assert scene.kinds()[-1] == "escalated"
    assert [each for each in scene.send(Tick(), after=600) if isinstance(each, StartRun)] == []


def test_a_run_that_takes_long_is_told_once_with_how_long_and_again_only_as_its_end(scene: Scene) -> None:
    request = open_incident(scene)
    scene.send(RunGoesOn("01J" + "9" * 23, "compiling", 5.0, 700.0), after=1)
    scene.send(RunGoesOn(request.id, "unpacking", 5.0, 20.0), after=1)
    assert scene.kinds() == ["opened", "acting"]
    for second in range(3):
        scene.send(RunGoesOn(request.id, "compiling", 5.0 + second, 715.0 - second), after=1)
    assert scene.kinds() == ["opened", "acting", "progress"]
    assert scene.incident().left == "the run in progress, about 12 min, then its proof"
    assert [each.text for each in scene.store.transitions(scene.incident().id)][-1] == "compiling, about 12 min"
    again = scene.loop = scene.fresh()
    scene.send(RunGoesOn(request.id, "compiling", 300.0, 415.0), after=1)
    assert again.incidents[("engine-dead", CHAT)].left.startswith("the run in progress")
    assert scene.kinds() == ["opened", "acting", "progress"]
    scene.send(ended(request, Outcome.SUCCEEDED), after=1)
    assert (scene.kinds()[-1], scene.incident().left) == ("verified", "")


def test_a_run_that_the_runner_never_heard_of_is_decided_again_later(scene: Scene) -> None:
    request = open_incident(scene)
    assert scene.send(RunReported(request.id, None), after=1) == []
    assert scene.incident().phase is Phase.OPEN
    effects = scene.send(Tick(), after=20)
    (again,) = [effect for effect in effects if isinstance(effect, StartRun)]
    assert again.request.id != request.id


def test_a_refusal_by_the_runner_makes_it_loud_and_is_not_asked_again_at_once(scene: Scene) -> None:
    request = open_incident(scene)
    effects = scene.send(ended(request, Outcome.REFUSED, "driver and libraries disagree"), after=1)
    assert not [effect for effect in effects if isinstance(effect, StartRun)]
    assert scene.told[-1] == ("engine-dead", "raised", Urgency.CRITICAL)
    assert "driver and libraries disagree" in scene.incident().tried[-1]


def test_tokens_not_proven_within_a_minute_make_it_loud(scene: Scene) -> None:
    open_incident(scene)
    scene.send(Tick(), after=59)
    assert "raised" not in scene.kinds()
    scene.send(Tick(), after=2)
    assert scene.told[-1] == ("engine-dead", "raised", Urgency.CRITICAL)


def test_an_acknowledgement_is_told_and_stays_over_a_restart(scene: Scene) -> None:
    open_incident(scene)
    scene.send(Acknowledged(scene.incident().id, "operator"))
    assert scene.kinds()[-1] == "acknowledged"
    assert scene.fresh().incidents[("engine-dead", CHAT)].acknowledged_by == "operator"


def test_looks_that_say_nothing_new_are_not_written(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    open_incident(scene)
    commits: list[Any] = []
    monkeypatch.setattr(scene.store, "commit", lambda *args, **kwargs: commits.append(args))
    for _ in range(10):
        scene.result("engine.unit", Verdict.DEAD, after=1, **{"unit.failure": "killed by SIGKILL"})
    assert commits == []


def test_how_long_unknown_may_last_is_configured(scene: Scene) -> None:
    patience = scene.loop.config.pager.model_copy(update={"unknown_after_s": 30.0})
    scene.loop = scene.fresh(replace(scene.loop.config, pager=patience))
    scene.result("engine.alive", Verdict.UNKNOWN)
    scene.send(Tick(), after=29)
    assert scene.told == []
    scene.send(Tick(), after=2)
    assert scene.told == [("check-unknown", "opened", Urgency.INFO)]


def test_the_answer_of_a_canary_that_is_only_asked_on_demand_is_soon_old(scene: Scene) -> None:
    scene.result("engine.generates", Verdict.WEDGED)
    scene.send(Tick(), after=ON_DEMAND_S + 1)
    assert ("engine.generates", CHAT) not in scene.loop.results


def test_the_answer_of_a_canary_that_is_asked_regularly_stands_until_the_next(scene: Scene) -> None:
    engine = scene.loop.config.engines[0].model_copy(update={"idle_canary_s": 600.0})
    scene.loop = scene.fresh(replace(scene.loop.config, engines=(engine,)))
    scene.result("engine.generates", Verdict.WEDGED)
    scene.send(Tick(), after=ON_DEMAND_S + 1)
    assert scene.loop.results[("engine.generates", CHAT)].verdict is Verdict.WEDGED


def test_a_lost_card_is_not_over_because_the_kernels_log_cannot_be_read(scene: Scene) -> None:
    event = {
        "key": "79", "kind": "xid", "code": 79, "name": "GPU has fallen off the bus", "gpu": "0000:18:00", "uuid": "",
        "severity": "critical", "cause": "gpu-lost", "do": "Reboot.", "first": 1.0, "last": 1.0, "count": 1,
    }  # fmt: skip

    def look(verdict: Verdict, **evidence: Any) -> None:
        scene.clock.at += 10
        scene.send(ResultArrived(answer(scene.clock.now(), "gpu.xid", verdict, evidence, "host")))

    scene.runbook, scene.decision = None, Decision(False, "a person must act", "manual")
    look(Verdict.DEAD, events=[event])
    lost = scene.loop.incidents[("gpu-lost", "gpu:0000-18-00")]
    assert lost.phase is Phase.ESCALATED
    look(Verdict.UNKNOWN)
    assert scene.loop.incidents[("gpu-lost", "gpu:0000-18-00")].phase is Phase.ESCALATED
    look(Verdict.READY, events=[])
    assert scene.loop.incidents[("gpu-lost", "gpu:0000-18-00")].phase is Phase.RESOLVED
