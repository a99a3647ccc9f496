"""Holding and releasing against a stand-in for dpkg: whose holds are whose, whatever is cut off where."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from agent import plugin, steps
from agent.errors import FileTrouble
from agent.host import Completed, changes, drop_ins, holds, packages
from agent.model import Json, Moment
from agent.plugin import Action, Noop, Plan, Refuse, Target
from agent.steps import Performer, StepFailed, StepRefused
from tests.support.fake_host import Directory, FakeHost
from tests.support.kernels import OLD, A, B, kernel, libraries, modinfo, module_path, running, tells

HOLD, RELEASE, WAIT = (plugin.actions()[name] for name in ("packages.hold", "packages.release", "packages.wait_free"))
PLACE = "kernel/nvidia-550srv/nvidia.ko"
MODULES = f"linux-modules-nvidia-550-server-{OLD}"
LIBRARY = "libnvidia-compute-550-server"
UTILS = "nvidia-utils-550-server"
NEWER = "libnvidia-compute-580-server"
INSTALLED = {
    "dpkg": "dpkg",
    "bash": "bash",
    LIBRARY: "nvidia-graphics-drivers-550-server",
    UTILS: "nvidia-graphics-drivers-550-server",
    MODULES: "linux-restricted-modules",
    f"linux-image-{OLD}": "linux-signed",
    "linux-generic": "linux-meta",
}
ALL = tuple(f"{name}:amd64" for name in sorted({*INSTALLED} - {"dpkg", "bash"}))


class Dpkg:
    """What dpkg and apt-mark would do: names with their selections; locked, it refuses; deaf, it only pretends."""

    def __init__(self, held: Sequence[str] = ()) -> None:
        self.sources = dict(INSTALLED)
        self.held = {f"{name}:amd64" for name in held}
        self.busy_calls = 0
        self.deaf: set[str] = set()
        self.calls: list[tuple[str, ...]] = []

    def query(self, argv: Sequence[str]) -> str:
        lines = []
        for name, source in self.sources.items():
            state = "hi " if f"{name}:amd64" in self.held else "ii "
            version = f"{A}-0ubuntu2" if "nvidia-graphics" in source else "1.0"
            lines.append(f"{state}\t{name}\tamd64\t{source}\t{version}\twords")
        return "\n".join(lines) + "\n"

    def mark(self, argv: Sequence[str]) -> Any:
        self.calls.append(tuple(argv))
        if self.busy_calls:
            self.busy_calls -= 1
            return Completed(tuple(argv), 100, "", "dpkg: error: dpkg frontend lock was locked by pid 7\n", 0.0)
        for name in set(argv[2:]) - self.deaf:
            (self.held.add if argv[1] == "hold" else self.held.discard)(name)
        return ""


def box(dpkg: Dpkg, **files: Any) -> FakeHost:
    """A locked, consistent host with prebuilt modules."""
    return FakeHost.build(
        {
            **running(OLD, A), **libraries(A), **kernel(OLD, PLACE), "/etc/holdfast/driver.lock": f"{A}\n",
            packages.STATUS: "", "/proc/locks": "", "/etc/needrestart": Directory(),
            "/var/lib/holdfast-runner": Directory(), "/etc/apt/apt.conf.d": Directory(),
            "/etc/needrestart/conf.d": Directory(), **files,
        },
        commands={
            **tells({module_path(OLD, PLACE): modinfo(A, OLD)}),
            ("dpkg-query", ...): dpkg.query, ("apt-mark", ...): dpkg.mark,
        },
    )  # fmt: skip


def target(action: Action, **values: Json) -> Target:
    kind = plugin.engines()["llama.cpp"]
    told = {"name": "chat", "kind": "llama.cpp", "url": "http://127.0.0.1:8080", "unit": "chat.service"}
    engine = Target("engine:chat", None, 0.0, kind, kind.settings.model_validate(told))
    return Target("host", action.params.model_validate(values), 0.0, engines=(engine,))


def planned(action: Action, host: FakeHost, **values: Json) -> Plan:
    aim = target(action, **values)
    return action.plan(host, aim, aim.params)


def do(action: Action, host: FakeHost, **values: Json) -> str:
    return Performer(host).perform(planned(action, host, **values)).summary


def refusal(plan: Plan) -> str:
    return next((step.code for step in plan.steps if isinstance(step, Refuse)), "")


def ours(host: FakeHost) -> set[str]:
    record = holds.owned(host)
    return set() if record is None or record.suspended else set(record.packages)


CHANGE = changes.Change("01", B, "", "CVE", Moment(1.0, 1.0, "boot-1"), 3600.0, "anna", A)
OPEN = {changes.FILE: changes.text(CHANGE)}


# --- hold -------------------------------------------------------------------------------------------------------


def test_hold_holds_everything_and_says_so() -> None:
    dpkg = Dpkg()
    host = box(dpkg)
    assert do(HOLD, host, by="anna") == f"5 packages on hold for driver {A} and kernel {OLD}"
    assert dpkg.held == set(ALL) == ours(host)
    assert len(dpkg.calls) == 1, "one call"
    record = holds.owned(host)
    assert record is not None
    assert (record.driver, record.kernel, record.by) == (A, OLD, "anna")
    assert f'"{UTILS}$"' in host.files.read_text(drop_ins.UNATTENDED)
    assert "chat\\.service" in host.files.read_text(drop_ins.NEEDRESTART)
    assert host.files.entries[holds.FILE].mode == 0o640  # type: ignore[union-attr]


def test_a_second_hold_changes_nothing() -> None:
    dpkg = Dpkg()
    host = box(dpkg)
    do(HOLD, host)
    plan = planned(HOLD, host)
    assert [type(step) for step in plan.steps] == [Noop]


def test_what_somebody_else_holds_is_never_ours() -> None:
    dpkg = Dpkg(held=[UTILS, "bash"])
    host = box(dpkg)
    assert "1 more were held by somebody else" in do(HOLD, host)
    assert ours(host) == set(ALL) - {f"{UTILS}:amd64"}
    do(RELEASE, host)
    assert dpkg.held == {f"{UTILS}:amd64", "bash:amd64"}
    assert not host.files.exists(holds.FILE)
    assert not host.files.exists(drop_ins.UNATTENDED)
    assert not host.files.exists(drop_ins.NEEDRESTART)


def test_without_needrestart_nothing_is_told_to_it() -> None:
    host = box(Dpkg())
    del host.files.entries["/etc/needrestart"], host.files.entries["/etc/needrestart/conf.d"]
    do(HOLD, host)
    assert not host.files.exists(drop_ins.NEEDRESTART)


def test_after_a_change_new_names_are_held_and_what_is_gone_or_not_wanted_is_released() -> None:
    dpkg = Dpkg()
    host = box(dpkg)
    do(HOLD, host)
    del dpkg.sources[UTILS]
    dpkg.held.discard(f"{UTILS}:amd64")
    dpkg.sources[NEWER] = "nvidia-graphics-drivers-550-server"
    # Modules are built on the host from now on, so kernels are free again.
    del dpkg.sources[MODULES]
    dpkg.held.discard(f"{MODULES}:amd64")
    assert "2 no longer needed are released" in do(HOLD, host)
    assert dpkg.held == ours(host) == {f"{LIBRARY}:amd64", f"{NEWER}:amd64"}


@pytest.mark.parametrize(
    ("files", "code", "words"),
    [
        ({"/etc/holdfast/driver.lock": "# nothing\n"}, "lock-unusable", "sudo holdfast lock write"),
        ({"/etc/holdfast/driver.lock": f"{B}\n"}, "driver-drift", f"{A} is loaded"),
        (libraries(B), "driver-mismatch", "mend that first"),
        (OPEN, "change-open", "a planned change is open"),
        ({changes.FILE: "garbage"}, "change-open", "no planned change"),
    ],
)
def test_a_host_that_is_not_agreed_or_contradicts_itself_is_refused_with_the_way_out(
    files: Mapping[str, Any], code: str, words: str
) -> None:
    dpkg = Dpkg()
    plan = planned(HOLD, box(dpkg, **files))
    assert refusal(plan) == code
    assert words in "\n".join(steps.by_hand(plan))


def test_without_a_lock_the_way_out_is_named() -> None:
    host = box(Dpkg())
    del host.files.entries["/etc/holdfast/driver.lock"]
    plan = planned(HOLD, host)
    assert refusal(plan) == "no-lock"
    assert "sudo holdfast lock write" in "\n".join(steps.by_hand(plan))


def test_without_a_loaded_driver_there_is_nothing_to_hold_to() -> None:
    host = box(Dpkg())
    del host.files.entries["/sys/module/nvidia/version"]
    assert refusal(planned(HOLD, host)) == "driver-not-loaded"


def test_a_host_without_the_drivers_packages_is_refused() -> None:
    dpkg = Dpkg()
    dpkg.sources = {"dpkg": "dpkg", "bash": "bash"}
    assert refusal(planned(HOLD, box(dpkg))) == "no-driver-packages"


def test_a_host_without_dpkg_is_refused() -> None:
    host = box(Dpkg())
    del host.files.entries[packages.STATUS]
    assert refusal(planned(HOLD, host)) == "no-dpkg"


def test_what_apt_mark_says_is_no_proof() -> None:
    dpkg = Dpkg()
    dpkg.deaf = {f"{UTILS}:amd64"}
    with pytest.raises(StepFailed) as caught:
        do(HOLD, box(dpkg))
    assert caught.value.code == "holds-not-set"


def test_a_dpkg_that_was_locked_in_that_very_moment_is_asked_once_more() -> None:
    dpkg = Dpkg()
    dpkg.busy_calls = 1
    host = box(dpkg)
    do(HOLD, host)
    assert dpkg.held == set(ALL)
    assert len(dpkg.calls) == 2
    dpkg.busy_calls = 2
    with pytest.raises(StepFailed) as caught:
        do(RELEASE, host)
    assert caught.value.code == "command-failed"
    assert ours(host) == dpkg.held == set(ALL)


def test_a_record_that_cannot_be_read_is_not_overwritten_and_the_way_out_is_named() -> None:
    dpkg = Dpkg()
    host = box(dpkg, **{holds.FILE: "garbage"})
    for action in (HOLD, RELEASE):
        with pytest.raises(FileTrouble, match="apt-mark showhold"):
            planned(action, host)


# --- waiting ----------------------------------------------------------------------------------------------------


def busy(host: FakeHost) -> None:
    """Somebody holds dpkg's lock."""
    host.files.entries |= {packages.LOCKS[0]: "", "/proc/77/comm": "apt-get\n"}
    inode = host.files.stat(packages.LOCKS[0]).inode
    host.files.entries["/proc/locks"] = f"1: POSIX  ADVISORY  WRITE 77 fe:00:{inode} 0 EOF\n"


@pytest.mark.parametrize("action", [HOLD, RELEASE], ids=lambda action: action.id)
def test_while_somebody_changes_packages_nothing_is_planned(action: Action) -> None:
    host = box(Dpkg())
    busy(host)
    assert refusal(planned(action, host)) == "packages-busy"


def test_the_wait_ends_when_dpkg_is_free_or_refuses_with_a_time() -> None:
    host = box(Dpkg())
    busy(host)
    plan = planned(WAIT, host, wait_s=40)
    told: list[str] = []
    with pytest.raises(StepRefused) as caught:
        Performer(host, progress=lambda seen: told.append(seen.words)).perform(plan)
    assert (caught.value.code, caught.value.not_before_s) == ("packages-busy", 20.0)
    assert told == ["waiting until dpkg is free: apt-get (pid 77) is changing packages"]
    host.files.entries["/proc/locks"] = ""
    assert do(WAIT, host, wait_s=40) == "nobody is changing packages"


def test_a_dpkg_that_was_interrupted_is_not_waited_for() -> None:
    host = box(Dpkg(), **{f"{packages.UPDATES}/0001": ""})
    plan = planned(WAIT, host)
    assert refusal(plan) == "packages-interrupted"
    assert "dpkg --configure -a" in "\n".join(steps.by_hand(plan))


# --- reassert ---------------------------------------------------------------------------------------------------


def test_reassert_sets_again_what_is_on_record_and_what_of_the_driver_came_since() -> None:
    dpkg = Dpkg(held=[UTILS])
    host = box(dpkg)
    do(HOLD, host)
    dpkg.held = {"linux-generic:amd64"}
    dpkg.sources[NEWER] = "nvidia-graphics-drivers-580-server"
    assert do(HOLD, host, purpose="reassert") == "5 packages on hold again"
    assert dpkg.held == ours(host) == {*ALL, f"{NEWER}:amd64"}
    assert all(f'"{name}$"' in host.files.read_text(drop_ins.UNATTENDED) for name in (NEWER, UTILS))


def test_reassert_writes_the_files_again_that_a_reinstallation_of_the_package_had_taken_away() -> None:
    host = box(Dpkg())
    do(HOLD, host)
    before = host.files.read_text(drop_ins.UNATTENDED)
    host.files.remove(drop_ins.UNATTENDED)
    do(HOLD, host, purpose="reassert")
    assert host.files.read_text(drop_ins.UNATTENDED) == before


def test_reassert_has_nothing_to_do_where_all_is_well() -> None:
    host = box(Dpkg())
    do(HOLD, host)
    assert do(HOLD, host, purpose="reassert") == "everything that must be on hold is"


def test_reassert_is_refused_where_nobody_asked_and_during_a_change() -> None:
    dpkg = Dpkg()
    assert refusal(planned(HOLD, box(dpkg), purpose="reassert")) == "no-holds"
    host = box(dpkg)
    do(HOLD, host)
    host.files.entries |= OPEN
    assert refusal(planned(HOLD, host, purpose="reassert")) == "change-open"


def test_reassert_needs_no_consistent_host() -> None:
    dpkg = Dpkg()
    host = box(dpkg)
    do(HOLD, host)
    dpkg.held.clear()
    host.files.entries |= libraries(B)
    do(HOLD, host, purpose="reassert")
    assert dpkg.held == set(ALL)


# --- a planned change -------------------------------------------------------------------------------------------


def test_a_planned_change_suspends_our_holds_and_its_end_works_them_out_anew() -> None:
    dpkg = Dpkg(held=[UTILS])
    host = box(dpkg)
    do(HOLD, host, by="anna")
    host.files.entries |= OPEN
    assert refusal(planned(RELEASE, host)) == "change-open"
    assert do(RELEASE, host, keep_record=True) == "4 packages released until the planned change ends"
    assert dpkg.held == {f"{UTILS}:amd64"}
    assert host.files.exists(drop_ins.UNATTENDED), "unattended-upgrades has no business in a change"
    assert do(RELEASE, host, keep_record=True) == "our holds are suspended already"

    # Somebody holds one of them by hand meanwhile, and the change brings another package.
    dpkg.held.add("linux-generic:amd64")
    dpkg.sources[NEWER] = "nvidia-graphics-drivers-550-server"
    do(HOLD, host, purpose="restore")
    record = holds.owned(host)
    assert record is not None
    assert (record.suspended, record.by) == (False, "anna")
    assert dpkg.held == {*ALL, f"{NEWER}:amd64"}
    assert ours(host) == dpkg.held - {f"{UTILS}:amd64", "linux-generic:amd64"}
    assert f'"{NEWER}$"' in host.files.read_text(drop_ins.UNATTENDED)


def test_restore_does_nothing_where_nobody_had_asked_for_holds() -> None:
    dpkg = Dpkg()
    host = box(dpkg, **OPEN)
    assert do(HOLD, host, purpose="restore") == "nobody has asked for holds here"
    assert not dpkg.held
    assert do(RELEASE, host, keep_record=True) == "nothing here is held by Holdfast"


def test_a_change_that_was_aborted_half_way_is_held_as_it_is() -> None:
    dpkg = Dpkg()
    host = box(dpkg)
    do(HOLD, host)
    do(RELEASE, host, keep_record=True)
    host.files.entries |= libraries(B)
    do(HOLD, host, purpose="restore")
    assert dpkg.held == set(ALL)


def test_holds_that_stay_suspended_after_a_change_are_set_again() -> None:
    dpkg = Dpkg()
    host = box(dpkg)
    do(HOLD, host)
    do(RELEASE, host, keep_record=True)
    dpkg.held.add(f"{UTILS}:amd64")
    do(HOLD, host, purpose="reassert")
    assert dpkg.held == set(ALL)
    assert ours(host) == set(ALL) - {f"{UTILS}:amd64"}, "it was not ours while ours were suspended"


# --- cut off ----------------------------------------------------------------------------------------------------


class _CutError(Exception):
    """The runner was killed."""


def cut(host: FakeHost, plan: Plan, acts: int) -> bool:
    """Perform the plan and die before its act number `acts`; whether it came that far."""
    done = 0

    def count() -> None:
        nonlocal done
        if done == acts:
            raise _CutError
        done += 1

    try:
        Performer(host, touch=count).perform(plan)
    except _CutError:
        return True
    return False


def everything(dpkg: Dpkg, host: FakeHost) -> tuple[set[str], dict[str, str]]:
    files = (holds.FILE, drop_ins.UNATTENDED, drop_ins.NEEDRESTART)
    return set(dpkg.held), {path: host.files.read_text(path) for path in files if host.files.exists(path)}


def first_hold(host: FakeHost, dpkg: Dpkg) -> Plan:
    return planned(HOLD, host)


def second_hold(host: FakeHost, dpkg: Dpkg) -> Plan:
    do(HOLD, host)
    dpkg.sources[NEWER] = "nvidia-graphics-drivers-550-server"
    del dpkg.sources[MODULES]
    dpkg.held.discard(f"{MODULES}:amd64")
    return planned(HOLD, host)


def release(host: FakeHost, dpkg: Dpkg) -> Plan:
    do(HOLD, host)
    return planned(RELEASE, host)


def suspension(host: FakeHost, dpkg: Dpkg) -> Plan:
    do(HOLD, host)
    return planned(RELEASE, host, keep_record=True)


def restoration(host: FakeHost, dpkg: Dpkg) -> Plan:
    do(HOLD, host)
    do(RELEASE, host, keep_record=True)
    return planned(HOLD, host, purpose="restore")


SCENES: list[tuple[Callable[[FakeHost, Dpkg], Plan], Action, dict[str, Json]]] = [
    (first_hold, HOLD, {}),
    (second_hold, HOLD, {}),
    (release, RELEASE, {}),
    (suspension, RELEASE, {"keep_record": True}),
    (restoration, HOLD, {"purpose": "restore"}),
]


@pytest.mark.parametrize("acts", range(8))
@pytest.mark.parametrize(("scene", "action", "values"), SCENES, ids=lambda value: getattr(value, "__name__", ""))
def test_whatever_is_cut_off_every_hold_has_an_owner_and_undo_puts_all_back(
    scene: Callable[[FakeHost, Dpkg], Plan], action: Action, values: dict[str, Json], acts: int
) -> None:
    others = {f"{UTILS}:amd64", "bash:amd64"}
    dpkg = Dpkg(held=[UTILS, "bash"])
    host = box(dpkg)
    plan = scene(host, dpkg)
    before = everything(dpkg, host)
    came = cut(host, plan, acts)
    assert dpkg.held - others <= ours(host), "no hold without an owner"
    assert not others & ours(host), "nobody else's is ours"
    if not came:
        return
    aim = target(action, **values)
    assert action.undo is not None
    assert plan.before is not None
    undone = action.undo(host, aim, aim.params, json.loads(json.dumps(plan.before)))
    Performer(host).perform(undone)
    assert everything(dpkg, host) == before
    if acts == 0:
        assert any(isinstance(step, Noop) and step.untouched for step in undone.steps)


def test_an_undo_never_releases_what_the_run_had_not_set_itself() -> None:
    dpkg = Dpkg()
    host = box(dpkg)
    plan = planned(HOLD, host)
    # Killed before its first act; somebody else holds one of them before the undo.
    dpkg.held.add(f"{UTILS}:amd64")
    aim = target(HOLD)
    assert HOLD.undo is not None
    assert plan.before is not None
    Performer(host).perform(HOLD.undo(host, aim, aim.params, plan.before))
    assert dpkg.held == {f"{UTILS}:amd64"}


# --- the record ---------------------------------------------------------------------------------------------------


def test_the_packages_removal_can_read_the_names_line_by_line() -> None:
    record = holds.Owned(("a:amd64", "libstdc++6:i386"), A, OLD, 1.0, "anna")
    lines = holds.text(record).splitlines()
    assert [line.strip(' ",') for line in lines if line.startswith('  "')] == list(record.packages)
    assert ' "suspended": false' in lines
    host = FakeHost.build({holds.FILE: holds.text(replace(record, suspended=True))})
    assert holds.owned(host) == replace(record, suspended=True)
