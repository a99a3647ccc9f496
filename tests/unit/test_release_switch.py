"""The release of an engine is switched and goes back: when the new one fails, for a person, and on a full disk."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from agent import plugin, steps
from agent.host import Reply, releases
from agent.plugin import Target
from tests.support.fake_host import FakeHost, in_turn, systemctl_show
from tests.support.release_box import (
    BINARY,
    COMMIT_A,
    COMMIT_B,
    CRASHES,
    CURRENT,
    GOOD,
    RELEASES,
    SILENT,
    STAGING,
    A,
    B,
    Box,
)
from tests.support.world import OPERATOR_UID, Killed


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(releases, "OWNER", OPERATOR_UID)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # nothing here outlives the process


def serves(box: Box) -> str:
    """What is in its place, which must be what runs."""
    assert box.in_place() == box.runs()
    return box.runs()


def names(box: Box) -> set[str]:
    """What lies in the folder of releases."""
    return {each.name for each in box.at(RELEASES).iterdir()}


def cut_off(box: Box, ask: Callable[[], object], name: str, times: int = 1) -> Box:
    """The world after the run died right after the act of this name, the first or a later time."""
    original, left = box.acts.around, [times]

    def around(words: str, act: Callable[[], object]) -> object:
        found = original(words, act)
        left[0] -= name in words
        if left[0] == 0:
            raise Killed
        return found

    box.acts.around = around  # type: ignore[method-assign]
    with contextlib.suppress(Killed):
        ask()
    again = box.restarted()
    assert isinstance(again, Box)
    return again


# --- forth and back -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("install", ["link", "copy"])
def test_after_a_rebuild_the_way_back_leads_to_what_served_before(tmp_path: Path, install: str) -> None:
    box = Box(tmp_path, install=install)
    assert box.rebuild()["outcome"] == "succeeded"
    assert serves(box) == "b good"
    assert box.rollback()["outcome"] == "succeeded"
    assert serves(box) == "a good"
    assert box.remembered()["switch"]["rollback"]
    assert box.at(B).exists()


def test_a_file_that_was_there_before_holdfast_is_kept_as_a_release(tmp_path: Path) -> None:
    box = Box(tmp_path, install="copy")
    box.at(BINARY).write_text("c good\n")
    box.start_from_place()
    assert box.rebuild()["outcome"] == "succeeded"
    assert serves(box) == "b good"
    kept = [name for name in names(box) if name.startswith("kept-")]
    assert len(kept) == 1
    assert box.rollback()["outcome"] == "succeeded"
    assert serves(box) == "c good"


def test_the_engine_is_stopped_once_and_started_once(tmp_path: Path) -> None:
    box = Box(tmp_path)
    box.rebuild()
    state = box.systemd.state()
    assert (state["starts"], len(state["stops"])) == (1, 1)


def test_without_an_earlier_proof_there_is_no_way_back(tmp_path: Path) -> None:
    box = Box(tmp_path)
    ended = box.rollback()
    assert (ended["outcome"], ended["code"]) == ("refused", "nothing-proven")
    assert serves(box) == "a good"


def test_a_release_that_did_not_generate_is_not_noted_as_proven(tmp_path: Path) -> None:
    box = Box(tmp_path, old=SILENT)
    box.systemd.set(healthy=False)
    assert box.rebuild()["outcome"] == "succeeded"
    assert set(box.remembered()["proven"]) == {B}
    assert not box.remembered()["switch"]["generated"]


def test_a_release_whose_proof_is_of_another_driver_is_nothing_to_go_back_to(tmp_path: Path) -> None:
    box = Box(tmp_path)
    box.rebuild()
    known = box.remembered()
    known["proven"][A]["driver"] = "550.1"
    box.write("var/lib/holdfast-runner/releases/chat.json", json.dumps(known))
    assert box.rollback()["code"] == "nothing-proven"
    box.write("sys/module/nvidia/version", "550.1\n")
    assert box.rollback()["outcome"] == "succeeded"


# --- the new one is no good ---------------------------------------------------------------------------------


@pytest.mark.parametrize("install", ["link", "copy"])
@pytest.mark.parametrize("new", [CRASHES, SILENT])
def test_a_new_release_that_fails_is_taken_back_in_the_same_run(tmp_path: Path, install: str, new: str) -> None:
    box = Box(tmp_path, install=install, new=new)
    assert box.rebuild()["outcome"] == "undone"
    assert serves(box) == "a good"
    assert not box.at(B).exists()
    assert box.remembered()["switch"] is None
    assert set(box.remembered()["proven"]) == {A}


def test_a_new_release_that_is_ready_and_silent_is_given_up_within_minutes(tmp_path: Path) -> None:
    box = Box(tmp_path, new=SILENT)
    box.rebuild()
    assert box.clock.ahead_s < 300


def test_a_way_back_that_is_cut_off_is_gone_to_its_end(tmp_path: Path) -> None:
    box = Box(tmp_path)
    box.rebuild()
    box.systemd.set(healthy=False)
    cut = cut_off(box, box.rollback, f"mv --force --no-target-directory -- /opt/llama.cpp/.current.new {CURRENT}")
    assert (cut.in_place(), cut.runs()) == ("a good", "b good")
    assert serves(cut.recovered()) == "a good"


def test_a_way_back_from_a_release_that_serves_is_undone_when_it_is_cut_off(tmp_path: Path) -> None:
    box = Box(tmp_path)
    box.rebuild()
    starts = box.systemd.state()["starts"]
    cut = cut_off(box, box.rollback, f"mv --force --no-target-directory -- /opt/llama.cpp/.current.new {CURRENT}")
    cut = cut.recovered()
    assert serves(cut) == "b good"
    assert cut.outcomes()[-1] == "undone"
    assert cut.systemd.state()["starts"] == starts


def test_a_run_that_is_cut_before_the_switch_is_no_success_although_the_engine_serves(tmp_path: Path) -> None:
    box = Box(tmp_path)
    cut = cut_off(box, box.rebuild, f"mv --no-clobber --no-target-directory -- {STAGING}").recovered()
    assert cut.outcomes() == ["undone"]
    assert serves(cut) == "a good"
    assert not cut.at(B).exists()


def test_what_a_cut_left_undone_of_a_success_is_done_by_recovery(tmp_path: Path) -> None:
    box = Box(tmp_path)
    box.write("var/cache/holdfast-build/chat/work/build/object.o", "")
    cut = cut_off(box, box.rebuild, "stops/chat.service.json", times=3)
    assert set(cut.remembered()["proven"]) == {A}
    cut = cut.recovered()
    assert serves(cut) == "b good"
    assert cut.outcomes() == ["succeeded"]
    assert set(cut.remembered()["proven"]) == {A, B}
    assert cut.remembered()["switch"]["settled"]
    assert not cut.at("/var/cache/holdfast-build/chat/work/build").exists()
    assert not os.path.lexists(cut.at("/opt/llama.cpp/.current.back"))


def test_tidying_that_fails_after_a_cut_takes_nothing_from_the_success(tmp_path: Path) -> None:
    box = Box(tmp_path)
    cut = cut_off(box, box.rebuild, "stops/chat.service.json", times=3)
    cut.at("/opt/llama.cpp/.current.back").unlink()
    cut.at("/opt/llama.cpp/.current.back").mkdir()
    cut = cut.recovered()
    assert cut.outcomes() == ["succeeded"]
    assert set(cut.remembered()["proven"]) == {A, B}


def test_after_a_power_cut_a_new_release_that_is_still_loading_is_waited_for(tmp_path: Path) -> None:
    box = Box(tmp_path)
    cut = cut_off(box, box.rebuild, f"mv --force --no-target-directory -- /opt/llama.cpp/.current.new {CURRENT}")
    cut.rebooted()
    cut.ready_at = cut.clock.now().wall + 200
    starts = cut.systemd.state()["starts"]
    cut = cut.recovered()
    assert serves(cut) == "b good"
    assert cut.outcomes() == ["succeeded"]
    assert cut.systemd.state()["starts"] == starts


def test_and_one_that_never_gets_ready_is_given_up(tmp_path: Path) -> None:
    box = Box(tmp_path)
    cut = cut_off(box, box.rebuild, f"mv --force --no-target-directory -- /opt/llama.cpp/.current.new {CURRENT}")
    cut.rebooted()
    cut.ready_at = cut.clock.now().wall + 1e6
    cut = cut.recovered()
    assert serves(cut) == "a good"
    assert cut.outcomes() == ["undone"]


# --- other hands --------------------------------------------------------------------------------------------


def test_a_link_that_somebody_moves_meanwhile_stays_where_it_is(tmp_path: Path) -> None:
    box = Box(tmp_path)
    cut = cut_off(box, box.rebuild, "systemctl stop")
    other = f"{RELEASES}/by-hand"
    cut.release(other, "c" * 40, GOOD)
    cut.at(CURRENT).unlink()
    cut.at(CURRENT).symlink_to("releases/by-hand")
    cut = cut.recovered()
    assert cut.in_place() == "c good"
    assert cut.outcomes() == ["stopped"]


def test_an_operator_who_stops_the_engine_meanwhile_wins_and_the_old_release_is_in_its_place(tmp_path: Path) -> None:
    box = Box(tmp_path)
    cut = cut_off(box, box.rebuild, f"mv --force --no-target-directory -- /opt/llama.cpp/.current.new {CURRENT}")
    state = cut.systemd.state()
    cut.systemd.set(ActiveState="inactive", SubState="dead", MainPID=0, stops=[state["InvocationID"]])
    cut = cut.recovered()
    assert cut.outcomes() == ["stopped"]
    assert cut.in_place() == "a good"
    assert cut.systemd.state()["starts"] == 0


def test_a_unit_that_systemd_keeps_starting_in_vain_is_switched_all_the_same(tmp_path: Path) -> None:
    box = Box(tmp_path, old=CRASHES)
    box.systemd.set(ActiveState="activating", SubState="auto-restart", MainPID=0, NRestarts=7, healthy=False)
    original = box.systemd._stop

    def stop() -> None:
        box.systemd.set(ActiveState="inactive", SubState="dead", NRestarts=0)
        original()

    box.systemd._stop = stop  # type: ignore[method-assign]
    assert box.rebuild()["outcome"] == "succeeded"
    assert serves(box) == "b good"


def test_folders_that_others_can_write_are_not_written_by_root(tmp_path: Path) -> None:
    box = Box(tmp_path)
    box.at(RELEASES).chmod(0o777)
    ended = box.rebuild()
    assert (ended["outcome"], ended["code"]) == ("refused", "unsafe-place")


# --- a full disk --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("install", ["link", "copy"])
@pytest.mark.parametrize("words", [".new", ".back"])
def test_a_disk_that_is_full_at_the_switch_leaves_the_old_release_serving(
    tmp_path: Path, install: str, words: str
) -> None:
    box = Box(tmp_path, install=install)
    box.full = lambda command: command.startswith(("ln", "install", "cp")) and command.endswith(words)
    assert box.rebuild()["outcome"] == "undone"
    assert serves(box) == "a good"
    assert box.systemd.state()["starts"] == 0


@pytest.mark.parametrize("install", ["link", "copy"])
def test_the_way_back_needs_no_room(tmp_path: Path, install: str) -> None:
    box = Box(tmp_path, install=install, new=CRASHES)
    switched = {"yet": False}

    def full(command: str) -> bool:
        if command.startswith("mv --force"):
            switched["yet"] = True
            return False
        return switched["yet"] and command.startswith(("ln", "install", "cp"))

    box.full = full
    assert box.rebuild()["outcome"] == "undone"
    assert serves(box) == "a good"


# --- keeping ------------------------------------------------------------------------------------------------


def test_old_releases_go_and_what_serves_or_was_proven_last_stays(tmp_path: Path) -> None:
    box = Box(tmp_path)
    for number in range(4):
        box.release(f"{RELEASES}/old-{number}", "d" * 40, GOOD, at=float(number) - 10)
    box.release(f"{RELEASES}/newest", "e" * 40, GOOD, at=2e9)
    (box.at(RELEASES) / "by-hand").mkdir()
    (box.at(RELEASES) / ".old-9.gone").mkdir()
    assert box.rebuild()["outcome"] == "succeeded"
    assert names(box) == {A.rpartition("/")[2], B.rpartition("/")[2], "by-hand", "newest"}


def test_a_release_that_another_engine_serves_from_is_not_pruned(tmp_path: Path) -> None:
    box = Box(tmp_path)
    for number in range(4):
        box.release(f"{RELEASES}/old-{number}", "d" * 40, GOOD, at=float(number) - 10)
    box.at("/opt/llama.cpp/other").symlink_to("releases/old-0")
    other = {"server": "/opt/llama.cpp/other/bin/llama-server", "proven": {}, "switch": None}
    box.write("var/lib/holdfast-runner/releases/embed.json", json.dumps(other))
    box.write("proc/77/exe", f"{RELEASES}/old-1/bin/llama-server")
    assert box.rebuild()["outcome"] == "succeeded"
    left = names(box)
    assert {"old-0", "old-1"} <= left
    assert not {"old-2", "old-3"} & left


def test_a_release_is_never_installed_over_another(tmp_path: Path) -> None:
    box = Box(tmp_path)
    box.release(B, COMMIT_B, "another", at=5.0)
    assert "no release is replaced" in box.rebuild()["summary"]
    assert serves(box) == "a good"
    assert "another" in box.at(f"{B}/bin/llama-server").read_text()


def test_a_state_that_is_not_understood_counts_as_none(tmp_path: Path) -> None:
    box = Box(tmp_path)
    box.write("var/lib/holdfast-runner/releases/chat.json", '{"proven": 3')
    assert releases.read(box.host(), "chat") == releases.State()
    assert box.rebuild()["outcome"] == "succeeded"


def test_the_commit_of_a_release_is_read_from_its_provenance(tmp_path: Path) -> None:
    box = Box(tmp_path)
    found = releases.releases(box.host(), box.recipe())
    assert [each.commit for each in found] == [COMMIT_A]


# --- proving ------------------------------------------------------------------------------------------------


def test_an_engine_that_systemd_starts_again_meanwhile_is_not_waited_for() -> None:
    shown = [systemctl_show("chat.service", NRestarts=number) for number in (3, 3, 3, 3, 4)]
    loading = Reply(503, b'{"error": {"message": "Loading model"}}')
    host = FakeHost.build(
        commands={("systemctl", "show", "*", "--", "chat.service"): in_turn(*shown)},
        http={"http://127.0.0.1:8080/props": loading},
    )
    kind, action = plugin.engines()["llama.cpp"], plugin.actions()["engine.prove"]
    told = {"name": "chat", "kind": "llama.cpp", "url": "http://127.0.0.1:8080", "unit": "chat.service"}
    target = Target("engine:chat", action.params(), 0.0, kind, kind.settings.model_validate(told))
    with pytest.raises(steps.StepFailed, match=r"chat\.service crashed, and systemd starts it again$"):
        steps.Performer(host).perform(action.plan(host, target, target.params))
