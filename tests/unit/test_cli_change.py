"""`holdfast change`: a planned change from its beginning to its end, through a runner's door on a fake host."""

from __future__ import annotations

from typing import Any

import pytest

from agent import plugin
from agent.cli.status import change_line
from agent.config import Config
from agent.errors import FileTrouble
from agent.host import changes
from agent.host.changes import Change
from agent.host.driver import read_lock
from agent.model import Moment
from agent.plugin import Target
from agent.steps import Performer
from agent.views.texts import change_words
from tests.support.cli import Said, holdfast
from tests.support.door import with_door
from tests.support.fake_host import FakeHost, Link, in_turn, journal, systemctl_show, unreachable
from tests.support.kernels import LIB, NEW, OLD, A, B, kernel, libraries, modinfo, module_path, running, tells

LOCK = "/etc/holdfast/driver.lock"
PLACE = "kernel/nvidia-550srv/nvidia.ko"
URL = "http://127.0.0.1:8080"
SERVING = {
    f"{URL}/health": {"status": "ok"},
    f"{URL}/props": {"total_slots": 1, "build_info": "b1-x", "is_sleeping": False},
    f"{URL}/v1/models": {"data": [{"id": "tiny"}]},
    f"{URL}/slots": [{"id": 0, "n_ctx": 512, "is_processing": False}],
    f"POST {URL}/completion": {"tokens_predicted": 1, "tokens_evaluated": 1, "stop_type": "limit"},
}
ENGINE = {"name": "chat", "kind": "llama.cpp", "url": URL, "unit": "chat.service"}


def box(release: str = OLD, version: str = A, **changed: Any) -> FakeHost:
    """A consistent host that is locked on 550.54.15; `changed` are files."""
    files = {
        **running(release, version), **libraries(version), **kernel(OLD, PLACE), **kernel(NEW, PLACE),
        LOCK: f"# by hand\n{A}\n", **changed,
    }  # fmt: skip
    answers = {module_path(each, PLACE): modinfo(version, each) for each in (OLD, NEW)}
    commands = {**tells(answers), ("apt-mark", "showmanual"): "", ("apt-cache", ...): ""}
    return FakeHost.build(files, commands=commands, http=SERVING, units={"chat.service": {}})


def config(**engine: Any) -> Config:
    kind = plugin.engines()["llama.cpp"]
    return Config(engines=(kind.settings.model_validate({**ENGINE, **engine}),))


def change(*words: str, on: FakeHost, settings: Config | None = None, **surroundings: Any) -> Said:
    """`holdfast change WORDS` on this host, with a runner behind its socket."""
    host, _ = with_door(on, settings, leave_out={"driver.save"})
    return holdfast("change", *words, host=host, width=100, **surroundings)


def begun(on: FakeHost, *words: str) -> FakeHost:
    said = change("begin", *(words or ("--to", B)), "--reason", "CVE-2026-1", on=on, environ={"SUDO_USER": "alice"})
    assert said.code == 0, said.err
    return on


def moved(host: FakeHost, version: str) -> None:
    """The driver was changed and the host rebooted."""
    kept = {path: entry for path, entry in host.files.entries.items() if not path.startswith(LIB)}
    host.files.entries = {**kept, **libraries(version), "/sys/module/nvidia/version": f"{version}\n"}
    for release in (OLD, NEW):
        host.run.answer(("modinfo", module_path(release, PLACE)), modinfo(version, release))
        host.files.entries |= kernel(release, PLACE, mtime=2000.0)
    host.clock.reboot()


# --- begin -------------------------------------------------------------------------------------------------------


def test_begin_writes_down_what_is_planned_and_shows_what_to_type_next() -> None:
    host = box()
    said = change(
        "begin", "--to", B, "--reason", "CVE-2026-1", "--window", "2h", on=host, environ={"SUDO_USER": "al\n"}
    )
    assert said.code == 0, said.err
    known = changes.read(host)
    assert known is not None
    assert (known.to, known.kernel, known.reason, known.window_s, known.by, known.locked) == (
        B, "", "CVE-2026-1", 7200.0, "al_", A,
    )  # fmt: skip
    assert known.since == host.clock.now()
    assert "SUCCEEDED" in said.out
    assert "✗ loaded module      550.54.15" in said.out
    assert read_lock(host).version == A


def test_begin_asks_the_runner_as_a_person_with_the_reason() -> None:
    host, door = with_door(box())
    holdfast("change", "begin", "--kernel", NEW, "--reason", "USN-1", "--force", host=host)
    asked = door.asked[0]
    assert (asked["runbook"], asked["subject"], asked["because"], asked["force"]) == (
        "begin-change", "host", "USN-1", True,
    )  # fmt: skip
    known = changes.read(host)
    assert known is not None
    assert (known.to, known.kernel, known.words) == (A, NEW, f"kernel {NEW} (USN-1)")


@pytest.mark.parametrize(
    ("host", "words", "code"),
    [
        (box(**{LOCK: Link("/nowhere")}), ("--to", B), "no-lock"),
        (box(**{LOCK: "garbage\n"}), ("--to", B), "no-lock"),
        (box(**libraries(B)), ("--to", B), "driver-inconsistent"),
        (box(), ("--to", A), "no-change"),
        (box(), ("--to", A, "--kernel", OLD), "no-change"),
        (box(**{changes.FILE: "{"}), ("--to", B), "change-unreadable"),
    ],
)
def test_begin_refuses_and_says_why(host: FakeHost, words: tuple[str, ...], code: str) -> None:
    said = change("begin", *words, "--reason", "x", on=host)
    assert (said.code, f"[{code}]" in said.err) == (77, True), said.err


def test_a_machine_that_contradicts_itself_is_changed_only_by_force() -> None:
    host = box(**libraries(B))
    assert change("begin", "--to", B, "--reason", "x", "--force", on=host).code == 0
    assert changes.read(host) is not None


def test_one_change_at_a_time() -> None:
    host = begun(box())
    said = change("begin", "--to", "595.10", "--reason", "y", on=host)
    assert (said.code, "[change-open]" in said.err) == (77, True)
    assert f"driver {B} (CVE-2026-1), begun by alice" in " ".join(said.err.split())


def test_a_change_without_a_goal_or_with_a_strange_one_is_not_asked_for() -> None:
    host = box()
    assert change("begin", "--reason", "x", on=host).code == 64
    assert change("begin", "--to", B, on=host).code == 64
    assert change("begin", "--to", B, "--reason", "x", "--window", "soon", on=host).code == 64
    assert change("begin", "--to", B, "--reason", "x", on=host, uid=1000).code == 77
    assert not host.files.exists(changes.FILE)


def test_undo_of_begin_closes_its_own_change_and_no_other() -> None:
    host = box()
    action = plugin.actions()["change.open"]
    params = action.params.model_validate({"to": B, "reason": "x", "window_s": 60, "by": "alice"})
    target = Target("host", params, 0.0)
    plan = action.plan(host, target, params)
    assert action.undo is not None
    assert plan.before is not None
    Performer(host).perform(action.undo(host, target, params, plan.before))
    Performer(host).perform(plan)
    Performer(host).perform(action.undo(host, target, params, plan.before))
    assert changes.read(host) is None
    other = Change("2", "595.10", "", "y", Moment(0, 0, "boot-1"), 60.0, "bob", A)
    host.files.write_atomic(changes.FILE, changes.text(other))
    Performer(host).perform(action.undo(host, target, params, plan.before))
    assert changes.read(host) == other


# --- status ------------------------------------------------------------------------------------------------------


def test_status_without_a_change_says_so_to_everybody() -> None:
    said = holdfast("change", "status", host=box(), uid=1000)
    assert (said.code, said.out) == (0, "no planned change is open\n")


def test_status_shows_each_truth_and_the_next_command_and_survives_a_reboot() -> None:
    host = begun(box())
    page = change("status", on=host).out
    assert f"change   driver {B} (CVE-2026-1)" in page
    assert "by alice; 4 h left" in page
    assert page.count("✗") == 3
    moved(host, B)
    host.clock.advance(3600)
    said = change("status", "--json", on=host)
    data = said.json["data"]
    assert (data["complete"], data["next"]["command"]) == (True, "sudo holdfast change finish")
    assert data["change"]["left_s"] == pytest.approx(4 * 3600 - 3600 - 30)


def test_an_overdue_change_is_a_warning_and_so_is_a_broken_record() -> None:
    host = begun(box())
    host.clock.advance(5 * 3600)
    said = change("status", on=host)
    assert (said.code, "OVERDUE for 1 h" in said.out) == (1, True)
    said = holdfast("change", "status", host=box(**{changes.FILE: "nonsense"}))
    assert (said.code, "sudo holdfast change abort" in said.out) == (1, True)


def test_the_status_page_of_the_host_shows_the_open_change() -> None:
    host = begun(box())
    line = change_line(host, host.clock.now())
    assert line is not None
    assert change_words(line) == f"OPEN, 4 h left: driver {B} (CVE-2026-1), begun by alice (holdfast change status)"
    host.clock.advance(5 * 3600)
    late = change_line(host, host.clock.now())
    assert late is not None
    assert change_words(late).startswith("OPEN, OVERDUE for 1 h: ")
    broken = change_line(box(**{changes.FILE: "x"}), host.clock.now())
    assert broken is not None
    assert "its record is broken" in change_words(broken)


# --- finish ------------------------------------------------------------------------------------------------------


def test_finish_too_early_lists_everything_that_is_missing_and_changes_nothing() -> None:
    host = begun(box())
    said = change("finish", on=host, settings=config())
    assert (said.code, "[change-incomplete]" in said.err) == (77, True)
    for name in ("libraries: libnvidia-ml is", "module, next boot: 550.54.15", "loaded module: 550.54.15"):
        assert name in " ".join(said.err.split())
    assert changes.read(host) is not None
    assert read_lock(host).version == A


def test_finish_proves_tokens_writes_the_lock_and_closes() -> None:
    host = begun(box())
    moved(host, B)
    said = change("finish", on=host, settings=config(), environ={"SUDO_USER": "bob"})
    assert said.code == 0, said.err
    assert "tokens from chat" in said.out
    assert read_lock(host).version == B
    assert "by bob" in host.files.read_text(LOCK)
    assert changes.read(host) is None


def test_finish_of_a_kernel_change_keeps_the_lock() -> None:
    host = begun(box(), "--kernel", NEW)
    host.files.entries["/proc/sys/kernel/osrelease"] = f"{NEW}\n"
    host.clock.reboot()
    assert change("finish", on=host, settings=config()).code == 0
    assert host.files.read_text(LOCK) == f"# by hand\n{A}\n"
    assert changes.read(host) is None


def test_finish_names_the_engine_that_is_down_and_what_to_type() -> None:
    host = begun(box())
    moved(host, B)
    host.run.answer(
        ("systemctl", "show", "*", "--", "chat.service"), systemctl_show("chat.service", ActiveState="failed")
    )
    host.run.answer(("journalctl", ...), journal())
    said = change("finish", on=host, settings=config())
    assert (said.code, "[engine-down]" in said.err) == (77, True)
    assert "chat does not run: chat.service is failed; sudo systemctl restart chat.service" in " ".join(
        said.err.split()
    )
    assert changes.read(host) is not None
    assert read_lock(host).version == A


def test_finish_fails_with_the_name_of_an_engine_that_stays_silent() -> None:
    host = begun(box())
    moved(host, B)
    host.http.answer(f"POST {URL}/completion", unreachable("timeout"))
    said = change("finish", on=host, settings=config())
    assert said.code == 2
    assert "chat is ready, and generated no token for 120 s" in " ".join(said.out.split())
    assert changes.read(host) is not None
    assert read_lock(host).version == A


def test_finish_leaves_out_an_engine_that_an_operator_stopped_and_names_it() -> None:
    host = begun(box())
    moved(host, B)
    stopped = systemctl_show("chat.service", ActiveState="inactive", UnitFileState="disabled")
    host.run.answer(("systemctl", "show", "*", "--", "chat.service"), stopped)
    said = change("finish", on=host, settings=config())
    assert said.code == 0, said.err
    assert "not asked: chat is disabled by an operator" in " ".join(said.out.split())


def test_finish_waits_for_an_engine_that_still_loads_or_has_no_free_slot() -> None:
    host = begun(box())
    moved(host, B)
    busy = [{"id": 0, "n_ctx": 512, "is_processing": True}]
    free = [{"id": 0, "n_ctx": 512, "is_processing": False}]
    host.http.answer(f"{URL}/slots", in_turn(busy, busy, busy, free))
    assert change("finish", on=host, settings=config()).code == 0
    assert 1.0 in host.clock.slept


def test_an_engine_without_a_unit_is_asked_and_a_host_without_engines_needs_no_proof() -> None:
    for settings, words in ((config(unit=None), "tokens from chat"), (Config(), "no engine is configured")):
        host = begun(box())
        moved(host, B)
        said = change("finish", on=host, settings=settings)
        assert (said.code, words in said.out) == (0, True)


def test_finish_and_abort_without_a_change_are_refused() -> None:
    for verb in ("finish", "abort"):
        said = change(verb, on=box())
        assert (said.code, "[no-change]" in said.err) == (77, True)


# --- abort -------------------------------------------------------------------------------------------------------


def test_abort_closes_the_change_and_says_whether_the_machine_is_what_the_lock_says() -> None:
    host = begun(box())
    said = change("abort", on=host)
    assert (said.code, changes.read(host)) == (0, None)
    assert f"this machine is what the lock says, driver {A}" in said.out
    host = begun(box())
    moved(host, B)
    said = change("abort", on=host)
    assert (said.code, changes.read(host)) == (0, None)
    assert f"no longer is what the lock says ({A}): driver {B} is loaded" in " ".join(said.out.split())
    assert read_lock(host).version == A


def test_abort_clears_a_record_that_nobody_can_read() -> None:
    host = box(**{changes.FILE: "{"})
    assert change("abort", on=host).code == 0
    assert not host.files.exists(changes.FILE)


def test_a_failure_after_the_change_was_closed_opens_it_again() -> None:
    host = begun(box())
    text = host.files.read_text(changes.FILE)
    action = plugin.actions()["change.close"]
    target = Target("host", action.params(), 0.0)
    plan = action.plan(host, target, target.params)
    assert action.undo is not None
    assert plan.before is not None
    Performer(host).perform(plan)
    assert changes.read(host) is None
    Performer(host).perform(action.undo(host, target, target.params, plan.before))
    assert host.files.read_text(changes.FILE) == text
    again = action.undo(host, target, target.params, plan.before)
    assert Performer(host).perform(again).changed is False


def test_a_finish_that_fails_late_has_undone_the_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    host = begun(box())
    moved(host, B)

    def remove(path: str) -> None:
        raise FileTrouble(f"{path}: Read-only file system", kind="other", where=path)

    monkeypatch.setattr(host.files, "remove", remove)
    said = change("finish", on=host, settings=config())
    assert said.code == 2
    assert read_lock(host).version == A
    assert changes.read(host) is not None
