"""Reading systemd and its journal, from answers recorded on booted hosts (tests/host/test_host_api.py)."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.errors import CommandFailed, FileTrouble, InternalError
from agent.host import Completed, journal, systemd
from agent.host.journal import Signature
from agent.model import Moment
from tests.support.fake_host import FakeHost, in_turn, systemctl_show, timed_out
from tests.support.fake_host import journal as entries

DATA = Path(__file__).resolve().parents[1] / "data" / "host_systemd"
SUITES = ("bookworm", "trixie")
OOM = Signature("cuda-oom", r"CUDA error: out of memory", True, "The GPU has no memory left.", "test")
SECRET = "the-secret-words-of-a-prompt"


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize(
    ("case", "active", "result", "by_job"),
    [
        ("stopped", "inactive", "success", True),
        ("restarted", "active", "success", False),
        ("exit-zero", "inactive", "success", False),
        ("exit-127", "failed", "exit-code", False),
        ("auto-restart", "inactive", "exit-code", True),
        ("stubborn", "failed", "timeout", True),
        ("signalled", "inactive", "success", False),
        ("running", "active", "success", False),
    ],
)
def test_an_operators_stop_is_told_from_every_other_end(
    suite: str, case: str, active: str, result: str, by_job: bool
) -> None:
    host = FakeHost.load(DATA / f"{suite}-{case}")
    state = systemd.unit_state(host, f"{case}.service")
    assert (state.active_state, state.result, state.job, state.unit_file_state) == (active, result, False, "enabled")
    assert len(state.invocation_id) == 32
    stop = journal.stopped_by_job(host, state.unit, state.invocation_id)
    assert (stop is not None) == by_job
    if stop is not None:
        assert (stop.job_type, stop.job_result, stop.invocation_id) == ("stop", "done", state.invocation_id)
        assert stop.at > 1_700_000_000


@pytest.mark.parametrize("suite", SUITES)
def test_times_and_limits_are_seconds(suite: str) -> None:
    state = systemd.unit_state(FakeHost.load(DATA / f"{suite}-running"), "running.service")
    assert state.timeout_start_s == 90
    assert state.timeout_stop_s is None  # infinity
    assert state.restart_s == 0.1
    assert state.watchdog_s is None
    assert state.active_enter_boot_s is not None
    assert state.main_start_boot_s is not None
    assert state.active_enter_boot_s == pytest.approx(state.main_start_boot_s, abs=1)
    assert state.main_exit_boot_s is None
    assert state.settled


@pytest.mark.parametrize(
    ("printed", "seconds"),
    [("0", 0.0), ("infinity", None), ("", None), ("100ms", 0.1), ("1min 30s", 90.0), ("2h 5min", 7500.0),
     ("1d", 86400.0), ("1month 2d", 2802600.0), ("500us", 0.0005), ("1.5s", 1.5)],
)  # fmt: skip
def test_spans_are_read_as_systemctl_prints_them(printed: str, seconds: float | None) -> None:
    host = FakeHost.build(units={"a.service": {"TimeoutStopUSec": printed}})
    assert systemd.unit_state(host, "a.service").timeout_stop_s == pytest.approx(seconds)


def test_time_spent_suspended_is_added_to_systemds_stamps() -> None:
    host = FakeHost.build(units={"a.service": {"ActiveEnterTimestampMonotonic": "100000000"}})
    host.clock.suspended = 3600.0
    assert systemd.unit_state(host, "a.service").active_enter_boot_s == 3700.0


@pytest.mark.parametrize("sub_state", ["auto-restart", "auto-restart-queued", "start-pre"])
def test_a_unit_between_two_states_is_not_settled(sub_state: str) -> None:
    host = FakeHost.build(units={"a.service": {"ActiveState": "activating", "SubState": sub_state}})
    assert not systemd.unit_state(host, "a.service").settled


def test_a_queued_job_is_seen() -> None:
    assert systemd.unit_state(FakeHost.build(units={"a.service": {"Job": "123"}}), "a.service").job
    assert not systemd.unit_state(FakeHost.build(units={"a.service": {"Job": "0"}}), "a.service").job


def test_an_alias_is_known_by_its_real_name() -> None:
    host = FakeHost.build(commands={"systemctl show * -- alias.service": systemctl_show("real.service")})
    assert systemd.unit_state(host, "alias.service").unit == "real.service"


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "nonsense without a meaning",
        Completed((), 1, "", "System has not been booted with systemd as init system (PID 1). Can't operate.", 0),
        timed_out(),
    ],
)
def test_a_systemd_that_cannot_be_asked_is_no_state(answer: object) -> None:
    with pytest.raises(CommandFailed):
        systemd.unit_state(FakeHost.build(commands={"systemctl ...": answer}), "a.service")


def test_running_services_are_listed() -> None:
    listed = "cron.service  loaded active running Regular jobs\nllama@a\\x2db.service loaded active running x\n\n"
    host = FakeHost.build(commands={"systemctl list-units ...": listed})
    assert systemd.units(host) == ["cron.service", "llama@a\\x2db.service"]


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("0::/system.slice/llama-server.service\n", "llama-server.service"),
        ("0::/system.slice/system-vllm.slice/vllm@0.service/worker\n", "vllm@0.service"),
        ("1:name=systemd:/system.slice/a.service\n0::/\n", "a.service"),
        ("12:cpu:/x\n1:name=systemd:/\n0::/system.slice/b.service\n", "b.service"),
        ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/llama.service\n", None),
        ("0::/system.slice/docker-0123.scope\n", None),
        ("0::/user.slice/user-0.slice/session-3.scope\n", None),
        ("0::/\n", None),
        ("0::/../system.slice/c.service\n", "c.service"),
        ("", None),
        ("garbage\n", None),
    ],
)
def test_a_process_belongs_to_its_system_service_or_to_none(text: str, unit: str | None) -> None:
    assert systemd.unit_of_pid(FakeHost.build({"/proc/42/cgroup": text}), 42) == unit


def test_a_process_that_is_gone_has_no_unit_to_tell() -> None:
    with pytest.raises(FileTrouble) as trouble:
        systemd.unit_of_pid(FakeHost.build(), 42)
    assert trouble.value.kind == "missing"


# --- the journal ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("case", ["exit-zero", "exit-127"])
def test_only_the_known_words_of_a_line_are_kept(suite: str, case: str) -> None:
    host = FakeHost.load(DATA / f"{suite}-{case}")
    state = systemd.unit_state(host, f"{case}.service")
    found = journal.matches(host, state.unit, [OOM], invocation_id=state.invocation_id, since_wall=None)
    assert [(match.cause, match.text, match.curable) for match in found] == [
        ("cuda-oom", "CUDA error: out of memory", True)
    ]
    assert SECRET not in repr(found)
    assert any(SECRET in line for line in (DATA / f"{suite}-{case}" / "commands.yaml").read_text().splitlines())


def read(said: str, *signatures: Signature) -> list[tuple[str, str]]:
    host = FakeHost.build(commands={"journalctl ...": said})
    found = journal.matches(host, "a.service", signatures or [OOM], invocation_id=None, since_wall=None)
    return [(match.cause, match.text) for match in found]


def test_a_line_repeated_is_told_once_with_its_latest_time() -> None:
    line = "CUDA error: out of memory"
    said = entries(
        {"MESSAGE": line, "__REALTIME_TIMESTAMP": "1000000"},
        {"MESSAGE": "CUDA error: lost", "__REALTIME_TIMESTAMP": "2000000"},
        {"MESSAGE": line, "__REALTIME_TIMESTAMP": "3500000"},
    )
    lost = Signature("lost", "CUDA error: lost", False, "", "test")
    host = FakeHost.build(commands={"journalctl ...": said})
    found = journal.matches(host, "a.service", [OOM, lost], invocation_id=None, since_wall=None)
    assert [(match.cause, match.at) for match in found] == [("lost", 2.0), ("cuda-oom", 3.5)]


def test_a_message_that_is_not_plain_text_is_read_too() -> None:
    assert read(entries({"MESSAGE": list(b"\x1b[31mCUDA error: out of memory\xff")})) == [
        ("cuda-oom", "CUDA error: out of memory")
    ]


@pytest.mark.parametrize("message", [None, 5, ["two", "messages"], [300], {"a": 1}])
def test_a_message_of_another_form_matches_nothing(message: object) -> None:
    assert read(entries({"MESSAGE": message})) == []


def test_what_is_no_entry_is_passed_over() -> None:
    whole = entries({"MESSAGE": "CUDA error: out of memory"})
    assert read(f"-- No entries --\n[]\n{whole}{whole[:30]}") == [("cuda-oom", "CUDA error: out of memory")]


def test_a_match_is_bounded() -> None:
    long = Signature("long", "x+", False, "", "test")
    assert read(entries({"MESSAGE": "x" * 3000}), long) == [("long", "x" * 200)]


def test_the_first_signature_that_matches_wins() -> None:
    general = Signature("cuda", "CUDA error", False, "", "test")
    assert read(entries({"MESSAGE": "CUDA error: out of memory"}), OOM, general)[0][0] == "cuda-oom"


def test_only_the_units_own_lines_are_asked_for() -> None:
    host = FakeHost.build(commands={"journalctl ...": ""})
    journal.matches(host, "a.service", [OOM], invocation_id="ab", since_wall=12.5, limit=7)
    (asked,) = host.run.calls
    assert {"_SYSTEMD_UNIT=a.service", "_SYSTEMD_INVOCATION_ID=ab", "--since=@12.500000", "--lines=7"} <= set(asked)


@pytest.mark.parametrize(
    ("stderr", "code"),
    [
        ("Hint: You are currently not seeing messages from other users and the system.", "journal-denied"),
        ("No journal files were opened due to insufficient permissions.", "journal-denied"),
        ("Failed to add match 'x': Invalid argument", "journal-unknown"),
    ],
)
def test_a_journal_that_may_not_be_read_is_not_an_empty_one(stderr: str, code: str) -> None:
    host = FakeHost.build(commands={"journalctl ...": Completed((), 1, "", stderr, 0)})
    with pytest.raises(CommandFailed) as failed:
        journal.stopped_by_job(host, "a.service", "ab")
    assert failed.value.code == code


def test_a_host_without_a_journal_has_not_said_that_nobody_stopped_it() -> None:
    absent = Completed((), 0, "", "No journal files were found.\n-- No entries --\n", 0)
    host = FakeHost.build(commands={"journalctl ...": absent})
    with pytest.raises(CommandFailed) as failed:
        journal.stopped_by_job(host, "a.service", "ab")
    assert failed.value.code == "journal-absent"


def test_without_an_invocation_the_newest_of_started_and_stopped_decides() -> None:
    boot = Moment(1.8e9, 10.0, "0123-4567")
    stopped = {"MESSAGE_ID": journal.STOPPED, "JOB_TYPE": "stop", "JOB_RESULT": "done", "INVOCATION_ID": "ab"}
    answers = in_turn(entries(stopped), entries({"MESSAGE_ID": journal.STARTED, "JOB_TYPE": "start"}), "")
    host = FakeHost.build(commands={"journalctl ...": answers}, moments=[boot])
    assert journal.stopped_by_job(host, "a.service", None) is not None
    assert journal.stopped_by_job(host, "a.service", None) is None
    assert journal.stopped_by_job(host, "a.service", None) is None
    assert "_BOOT_ID=01234567" in host.run.calls[0]


def test_every_shipped_signature_file_loads() -> None:
    for path in (Path(journal.__file__).parents[1] / "data").glob("*.yaml"):
        document = path.read_text(encoding="utf-8")
        if "\nsignatures:" in f"\n{document}":
            assert journal.load_signatures(path.stem)


def test_a_missing_signature_file_is_our_mistake() -> None:
    with pytest.raises(InternalError, match="no_such_engine"):
        journal.load_signatures("no_such_engine")
