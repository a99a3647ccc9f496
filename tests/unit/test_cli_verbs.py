"""check, explain, runbook, pager, audit and doctor."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent import ledger
from agent.cli.audit import words
from agent.host import Space
from agent.model import Moment
from agent.views.note import DaemonNote
from tests.support import lab
from tests.support.cli import RUN, absent, holdfast, tree
from tests.support.fake_files import Directory
from tests.support.fake_host import START, FakeHost, unreachable
from tests.unit.test_cli_run import BOOK, CONFIG, CONTROL, FILES, Daemon
from tests.unit.test_cli_status import LIVING, box

RECEIVER = """
[[receiver]]
name = "hook"
kind = "webhook"
url = "https://hook.example/x"
"""
BAD = """
[autonomy]
mode = "yolo"
[[engine]]
name = "chat"
kind = "llama.cp"
url = "http://127.0.0.1:8080"
[[receiver]]
name = "x"
kind = "webhook"
urll = "https://hook.example"
[chek]
"""
ROOMY = Space(100 << 30, 90 << 30, 1000, 900, read_only=False)


def host(files: Mapping[str, Any] | None = None, **parts: Any) -> FakeHost:
    return FakeHost.build(files or {}, spaces={"/": ROOMY, "/var/lib/holdfast": ROOMY}, **parts)


# --- check ----------------------------------------------------------------------------------------------------


def test_one_check_prints_one_nagios_line() -> None:
    files = {"/sys/module/nvidia/version": "580.178.04\n", "/etc/holdfast/driver.lock": "580.178.04\n"}
    said = holdfast("check", "driver.lock", host=host(files))
    assert said.code == 0
    assert said.out.startswith("driver.lock OK - ")
    assert said.out.count("\n") == 1
    assert "| duration=" in said.out


def test_several_checks_print_a_table_and_the_worst_decides() -> None:
    files = {"/sys/module/nvidia/version": "580.178.04\n", "/etc/holdfast/driver.lock": "550.54.15\n"}
    said = holdfast("check", "driver.lock", "host.disk", host=host(files))
    assert said.out.startswith("STATUS")
    assert said.code == 2
    data = holdfast("check", "driver.lock", "--json", host=host(files)).json["data"]
    assert data["results"][0]["status"] == "CRITICAL"


def test_an_unknown_check_names_the_near_one() -> None:
    said = holdfast("check", "driver.lok", host=host())
    assert said.code == 64
    assert "did you mean 'driver.lock'?" in said.err


def test_a_check_that_applies_nowhere_is_unknown() -> None:
    said = holdfast("check", "engine.alive", host=host())
    assert said.code == 3
    assert "UNKNOWN - nothing here that this applies to; no engine is configured" in said.out


def test_an_unknown_engine_is_a_usage_error() -> None:
    assert holdfast("check", "--engine", "chatt", host=host({"/etc/holdfast/holdfast.toml": CONFIG})).code == 64


def test_an_engine_that_refuses_connections_is_not_ok() -> None:
    known = host({"/etc/holdfast/holdfast.toml": CONFIG}, http={"http://127.0.0.1:8080/*": unreachable("refused")})
    said = holdfast("check", "engine.alive", host=known)
    assert said.code != 0
    assert said.out.startswith("engine.alive engine:chat ")


def test_every_mistake_in_configuration_and_runbooks_is_told_at_once() -> None:
    files = {"/etc/holdfast/holdfast.toml": BAD, "/etc/holdfast/runbooks.d/x.yaml": "id: x\nsteps: []\n"}
    said = holdfast("check", "--config", "--json", host=host(files))
    assert said.code == 78
    places = [each["where"] for each in said.json["errors"]]
    for place in ("autonomy.mode", "engine[0].kind", "receiver[0].urll", "chek"):
        assert f"/etc/holdfast/holdfast.toml: {place}" in places
    assert any(place.startswith("/etc/holdfast/runbooks.d/x.yaml") for place in places)
    text = holdfast("check", "--config", host=host(files))
    assert text.err.count("[configuration]") == len(places)


def test_a_valid_configuration_is_counted() -> None:
    said = holdfast("check", "--config", host=host(FILES))
    assert (said.code, said.out) == (0, "OK - no mistake in 1 engines, 0 receivers, 1 runbooks\n")


def test_root_only_checks_say_how_to_ask() -> None:
    from agent import plugin  # noqa: PLC0415

    known = [check.id for check in plugin.checks().values() if check.as_root]
    rebuilt = f'{CONFIG}[engine.rebuild]\nsource = "/src"\ncommit = "{"a" * 40}"\n'  # so that every check applies
    for identifier in known:
        said = holdfast("check", identifier, host=host({"/etc/holdfast/holdfast.toml": rebuilt}), uid=1000)
        assert said.code == 3
        assert f"sudo holdfast check {identifier}" in said.out


# --- explain, runbook -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("engine-wedged", "cause", "restart-engine"),
        ("driver.lock", "check", "every"),
        ("engine.restart", "action", "requests in flight may be lost"),
        ("restart-engine", "runbook", "300 s apart"),
        ("llama.cpp", "engine", "load_timeout_s"),
        ("pagerduty", "receiver", "routing_key"),
    ],
)
def test_anything_with_a_name_is_explained(name: str, kind: str, words: str) -> None:
    said = holdfast("explain", name, host=host(FILES))
    assert said.code == 0, said.err
    assert said.out.startswith(f"{name} ({kind}): ")
    assert words in said.out
    assert holdfast("explain", name, "--json", host=host(FILES)).json["data"]["kind"] == kind


def test_every_name_is_explained_and_fits_the_width() -> None:
    from agent.cli._catalogue import entries  # noqa: PLC0415
    from agent.runbook import load  # noqa: PLC0415

    books = load(host(FILES).files).by_id
    for entry in entries(books):
        assert entry.title, entry.id
        said = holdfast("explain", entry.id, host=host(FILES), width=60)
        assert said.code == 0, said.err
        assert [
            line for line in said.out.splitlines() if len(line) > 60 and not line.startswith(("holdfast", "sudo"))
        ] == []


def test_an_unknown_name_is_64() -> None:
    said = holdfast("explain", "engine-wedge", host=host())
    assert said.code == 64
    assert "did you mean 'engine-wedged'?" in said.err


def test_runbooks_are_listed_and_shown() -> None:
    assert "restart-engine  service" in holdfast("runbook", "list", host=host(FILES), width=120).out
    said = holdfast("runbook", "show", "restart-engine", host=host(FILES))
    assert said.code == 0
    assert "proof    engine.generates" in said.out
    data = holdfast("runbook", "show", "restart-engine", "--json", host=host(FILES)).json["data"]
    assert data["for"] == ["engine-wedged", "engine-dead"]


def test_a_broken_runbook_is_a_configuration_error() -> None:
    files = {**FILES, "/etc/holdfast/runbooks.d/x.yaml": BOOK.replace("engine.restart", "engine.restrt")}
    said = holdfast("runbook", "list", host=host(files))
    assert said.code == 78
    assert "engine.restrt" in said.err


# --- pager ----------------------------------------------------------------------------------------------------


def test_without_a_receiver_the_pager_cannot_be_tested() -> None:
    said = holdfast("pager", "test", host=host())
    assert said.code == 64
    assert "nobody is paged" in said.err


def test_the_daemon_sends_the_test_and_each_answer_is_shown() -> None:
    daemon = Daemon(())
    daemon.answer = json.dumps({"receivers": [{"name": "hook", "state": "sent", "reason": "200"}]}).encode()
    said = holdfast("pager", "test", host=host({"/etc/holdfast/holdfast.toml": RECEIVER}, ipc={CONTROL: daemon}))
    assert said.code == 0
    assert "taken: 200" in said.out
    assert daemon.asked[0]["do"] == "pager-test"


def test_without_the_daemon_the_test_is_sent_from_here_and_that_is_said() -> None:
    known = host(
        {"/etc/holdfast/holdfast.toml": RECEIVER, "/etc/machine-id": "0123456789abcdef\n"},
        ipc={CONTROL: absent},
        http={"POST https://hook.example/x": 200},
    )
    said = holdfast("pager", "test", host=known)
    assert said.code == 0, said.err
    assert "hook" in said.out
    assert "sent from here" in said.err
    assert len(known.http.calls) == 1


def test_a_receiver_that_refuses_is_critical() -> None:
    known = host(
        {"/etc/holdfast/holdfast.toml": RECEIVER},
        ipc={CONTROL: absent},
        http={"POST https://hook.example/x": 404},
    )
    said = holdfast("pager", "test", "hook", host=known)
    assert said.code == 2
    assert "CRITICAL" in said.out


def test_an_unknown_receiver_is_64() -> None:
    said = holdfast("pager", "test", "hok", host=host({"/etc/holdfast/holdfast.toml": RECEIVER}))
    assert said.code == 64
    assert "did you mean 'hook'?" in said.err


# --- audit ----------------------------------------------------------------------------------------------------


def recorded(*records: tuple[ledger.Kind, str, dict[str, Any]], at: Moment = START) -> str:
    lines, previous = [], ledger.FIRST
    for seq, (kind, run, data) in enumerate(records):
        bare = ledger.Record(seq, at, kind, run, data, previous, "")
        previous = ledger._hash(bare)
        lines.append(json.dumps({**ledger._fields(bare), "hash": previous}))
    return "\n".join(lines) + "\n"


DONE = (
    (ledger.Kind.ATTEMPT, RUN, {"runbook": "restart-engine", "subject": "engine:chat", "uid": 0}),
    (ledger.Kind.OUTCOME, RUN, {"outcome": "succeeded", "summary": "1 token"}),
    (ledger.Kind.PAUSE, "", {"for_s": 3600.0, "uid": 0, "reason": "driver change"}),
)


def test_the_record_is_shown_and_verified() -> None:
    known = host({ledger.FILE: recorded(*DONE)})
    said = holdfast("audit", "show", host=known)
    assert said.code == 0
    assert "restart-engine, engine:chat, by uid 0" in " ".join(said.out.split())
    assert holdfast("audit", "verify", host=known).out == "OK - 3 records, the chain is whole\n"


def test_the_record_says_who_asked_for_what_with_which_inputs() -> None:
    inputs = {"to": "580.178.04", "kernel": "", "force": False, "by": "alice", "reason": "CVE"}
    data = {"runbook": "begin-change", "subject": "host", "because": "CVE", "uid": 0, "inputs": inputs}
    record = ledger.Record(1, Moment(0.0, 0.0, "b"), ledger.Kind.ATTEMPT, RUN, data, "", "")
    assert words(record) == "begin-change, host, CVE, to 580.178.04, by alice"
    assert words(replace(record, data={**data, "inputs": {}})).endswith("by uid 0")


def test_a_changed_record_is_critical() -> None:
    text = recorded(*DONE).replace("succeeded", "failed")
    said = holdfast("audit", "verify", "--json", host=host({ledger.FILE: text}))
    assert said.code == 2
    assert said.json["data"]["whole"] is False


def test_a_run_is_shown_with_everything_it_did() -> None:
    event = {
        "v": 1,
        "id": RUN,
        "seq": 0,
        "at": START.wall,
        "event": "step_ended",
        "data": {"name": "Restart", "ok": True, "summary": "done", "duration_s": 1.5},
    }
    known = host({f"{ledger.DIRECTORY}/runs/{RUN}.jsonl": json.dumps(event) + "\n"})
    assert "Restart: OK, done, 1.5 s" in holdfast("audit", "show", RUN.lower(), host=known).out
    assert holdfast("audit", "show", "x/../../etc/passwd", host=known).code == 64
    assert holdfast("audit", "show", RUN[:-1] + "1", host=known).code == 64


# --- doctor ---------------------------------------------------------------------------------------------------

SOUND = {
    "holdfast-runner.socket": {"ActiveState": "active", "SubState": "listening"},
    "holdfast-inspect.socket": {"ActiveState": "active", "SubState": "listening"},
    "holdfast-recover.service": {"ActiveState": "inactive", "SubState": "dead"},
    "chat.service": {"Restart": "on-failure", "TimeoutStopUSec": "30s"},
}
HEARTBEAT = '[heartbeat]\nurl = "https://hc.example/1"\n[autonomy]\nmode = "act"\n'


def patient(
    tmp_path: Path,
    *,
    note: DaemonNote = LIVING,
    config: str = "",
    units: Any = None,
    files: Any = None,
    **commands: Any,
) -> FakeHost:
    toml = CONFIG + RECEIVER + HEARTBEAT + config
    known = box(tmp_path, replace(note, receivers=("hook",)))
    tree(
        tmp_path, {"/etc/holdfast/holdfast.toml": toml, "/var/log/journal/x": "", "/proc/net/tcp": "", **(files or {})}
    )
    rest = FakeHost.build(
        units={**SOUND, **(units or {})},
        commands={
            "systemctl show --property=NRefused --value holdfast-runner.socket": commands.get("refused", "0\n"),
            "systemctl show --property=NRefused --value holdfast-inspect.socket": "0\n",
            "timedatectl show --property=NTPSynchronized --value": commands.get("clock", "yes\n"),
        },
    )
    return replace(known, run=rest.run)


def ailments(known: FakeHost) -> dict[str, str]:
    said = holdfast("doctor", "--json", host=known, uid=1000)
    return {each["id"]: each["status"] for each in said.json["data"]["findings"]}


def test_a_sound_host_has_only_the_receiver_to_test_and_its_driver_to_save(tmp_path: Path) -> None:
    assert ailments(patient(tmp_path)) == {"receiver-untested": "WARNING", "way-back": "WARNING"}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"note": replace(LIVING, stopped=True)}, ("daemon", "CRITICAL")),
        ({"note": replace(LIVING, problem="the new configuration is wrong")}, ("daemon-problem", "WARNING")),
        ({"units": {"holdfast-runner.socket": {"ActiveState": "failed"}}}, ("holdfast-runner.socket", "CRITICAL")),
        ({"units": {"holdfast-inspect.socket": {"LoadState": "not-found"}}}, ("holdfast-inspect.socket", "CRITICAL")),
        ({"units": {"holdfast-recover.service": {"ActiveState": "failed"}}}, ("recover", "CRITICAL")),
        ({"units": {"chat.service": {"Restart": "no", "TimeoutStopUSec": "30s"}}}, ("engine-restart", "OK")),
        ({"units": {"chat.service": {"TimeoutStopUSec": "1min 30s"}}}, ("engine-stop", "OK")),
        ({"units": {"chat.service": {"LoadState": "not-found"}}}, ("engine-unit", "CRITICAL")),
        ({"refused": "400\n"}, ("holdfast-runner.socket-refused", "WARNING")),
        ({"clock": "no\n"}, ("clock", "WARNING")),
        (
            {"config": '[[engine]]\nname = "b"\nkind = "llama.cpp"\nurl = "http://127.0.0.1:1"\n'},
            ("engine-without-unit", "WARNING"),
        ),
        ({"config": "[chek]\n"}, ("configuration", "CRITICAL")),
        ({"files": {"/etc/holdfast/driver.lock": "550.54.15\n"}}, ("driver", "CRITICAL")),
        ({"files": {ledger.FILE: recorded(*DONE)}}, ("paused", "WARNING")),
        ({"files": {ledger.FILE: recorded(*DONE).replace("succeeded", "failed")}}, ("ledger", "CRITICAL")),
        (
            {
                "files": {
                    ledger.FILE: recorded((ledger.Kind.REFUSED, "", {"uid": 990, "code": "operators-only", "count": 3}))
                }
            },
            ("refused-requests", "WARNING"),
        ),
    ],
)
def test_each_ailment_is_found(tmp_path: Path, changes: dict[str, Any], expected: tuple[str, str]) -> None:
    assert expected in ailments(patient(tmp_path, **changes)).items()


def test_a_secret_that_everyone_can_read_is_critical(tmp_path: Path) -> None:
    known = patient(tmp_path, files={"/etc/holdfast/secrets/pd": "k"})
    (tmp_path / "etc/holdfast/secrets/pd").chmod(0o644)
    assert ailments(known)["secret-mode"] == "CRITICAL"
    (tmp_path / "etc/holdfast/secrets/pd").chmod(0o640)
    assert "secret-mode" not in ailments(known)


def rehearsable(tmp_path: Path, *records: tuple[ledger.Kind, str, dict[str, Any]]) -> FakeHost:
    known = patient(
        tmp_path,
        config='[[engine]]\nname = "bare"\nkind = "llama.cpp"\nurl = "http://127.0.0.1:1"\nunit = "chat2.service"\n',
        units={"chat2.service": SOUND["chat.service"]},
        files={ledger.FILE: recorded(*records)},
    )
    place = tmp_path / "usr/share/holdfast/runbooks"
    place.mkdir(parents=True, exist_ok=True)
    (place / "rebuild-lab.yaml").write_text(lab.BOOK)
    return known


def test_what_an_emergency_needs_is_told_with_when_it_was_last_proven(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.install(monkeypatch)
    about = {"runbook": "rebuild-lab", "subject": "engine:chat"}
    done = (
        (ledger.Kind.REHEARSAL, RUN, about),
        (ledger.Kind.REHEARSED, RUN, {**about, "outcome": "succeeded", "took_s": 702.0}),
    )
    said = holdfast("doctor", host=rehearsable(tmp_path, *done), uid=1000, width=200).out
    assert "note     a rebuild of chat takes 11 min 42 s, last proven " in said
    assert "note     nothing is configured to build" in said


def test_what_was_never_rehearsed_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.install(monkeypatch)
    known = rehearsable(tmp_path)
    assert ailments(known)["rehearsal"] == "WARNING"
    said = holdfast("doctor", host=known, uid=1000, width=200).out
    assert "  fix    sudo holdfast rehearse rebuild-lab --subject engine:chat" in said


def test_root_is_told_what_is_missing_today_and_nothing_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lab, "ACTIONS", {**lab.ACTIONS, "lab.build": lab.refusing("no compiler")})
    lab.install(monkeypatch)
    said = holdfast("doctor", host=rehearsable(tmp_path), uid=0, width=200).out
    assert "WARNING  a rebuild of chat would not work today: no compiler" in said
    assert not (tmp_path / lab.PRODUCT[1:]).exists()


def test_an_engine_that_nobody_watches_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from agent.cli import _discover  # noqa: PLC0415

    engine = _discover.FoundEngine("b", "llama.cpp", "http://127.0.0.1:9999", 7, "b.service", {})
    monkeypatch.setattr(_discover, "discover", lambda _host: _discover.Discovery(engines=(engine,)))
    assert ailments(patient(tmp_path))["unwatched-engine"] == "WARNING"


def test_each_thing_found_comes_with_its_fix(tmp_path: Path) -> None:
    said = holdfast("doctor", host=patient(tmp_path, note=replace(LIVING, stopped=True)), uid=1000)
    assert said.code == 2
    assert said.out.startswith("CRITICAL the daemon is down")
    assert said.out.count("  fix ") == 3


def test_without_systemd_what_cannot_be_told_is_unknown_and_the_rest_is_told(tmp_path: Path) -> None:
    known = patient(tmp_path)
    known.run.answer("systemctl ...", 1)
    known.run.answer("timedatectl ...", 1)
    known.run._answers = [each for each in known.run._answers if each[0][-1] is ...]
    found = ailments(known)
    assert found["units"] == "UNKNOWN"
    assert found["receiver-untested"] == "WARNING"


def test_a_host_that_was_never_set_up_is_told_everything() -> None:
    bare = FakeHost.build({"/proc/net/tcp": ""}, units=SOUND, commands={"systemctl ...": "", "timedatectl ...": "yes"})
    bare.files.entries["/proc/1/stat"] = ""
    found = ailments(bare)
    assert {"daemon", "no-receiver", "no-engine", "autonomy", "no-heartbeat", "journal"} <= set(found)


def test_root_does_not_run_the_daemon_over_the_store_of_its_user() -> None:
    owned = FakeHost.build({"/var/lib/holdfast": Directory(uid=990), "/etc/holdfast/holdfast.toml": CONFIG})
    said = holdfast("daemon", host=owned)
    assert said.code == 77
    assert "belongs to the daemon's user" in said.err
