"""Rebuilds that are cut off or cannot succeed: the engine serves on, from the old release or from the new one.

What is built is a stand-in: a main of its own around the real llama-server's library, which compiles in a second and
serves like the real one (tests/host/bed/standin). Where a rebuild is cut, and what is done then, does not depend on how
long compiling takes; test_rebuild.py builds the real source. The tests print what was cut off where, what was left, and
what came of it (pytest -s).
"""

from __future__ import annotations

import os
import signal
import time

import pytest
from bed.builder import WORK
from cutting import outcomes
from rebuilding import (
    BUILDS,
    COMPILING,
    CURRENT,
    LINKING,
    PLACES,
    RELEASES,
    SOURCE,
    Boot,
    Box,
    Place,
    make_sure_that_nothing_is_in_between,
    prepare,
    standin,
    standing_at,
    what_is_left,
)


def told(where: str, left: str, then: str) -> None:
    """One row of the table."""
    print(f"\n| {where} | {left} | {then} |")


def at(name: str) -> Place:
    """The place of this name."""
    return next(place for place in PLACES if place.name == name)


def rebuild(box: Box) -> tuple[int, str]:
    """Rebuild by hand, whatever was tried before."""
    status, said, _ = box.holdfast("run", "rebuild-llama-cpp", "--engine", "chat", "--force")
    return status, said


def then(box: Box, run: str) -> str:
    """What became of a run, and who serves. run: its id, or what following it has printed."""
    end = box.outcome(run.split()[1].rstrip(":") if " " in run else run)
    return f"{end['outcome']}: {end['summary']}; serving {box.serving} ({box.release})"


def recovered(box: Box, run: str) -> str:
    """Wait until a cut run has its outcome, and look for anything in between; the tag that serves."""
    ended = lambda: any(record["run"] == run for record in box.scene.ledger("outcome"))  # noqa: E731
    box.host.wait_for(ended, 180, "the outcome", every=0.3)
    box.host.wait_for(lambda: box.serving, 60, "the engine")
    return make_sure_that_nothing_is_in_between(box)


def back_to_b1(box: Box) -> None:
    """Whichever was cut: start the next one from b1 again."""
    if box.serving != "b1":
        status, said, _ = box.holdfast("run", "rollback-llama-cpp", "--engine", "chat", "--force")
        assert (status, box.serving) == (0, "b1"), said


HALVES = {"before-the-switch": PLACES[:5], "from-the-switch-on": PLACES[5:]}


@pytest.mark.parametrize("places", HALVES.values(), ids=HALVES.keys())
def test_a_runner_killed_in_any_step_leaves_an_engine_that_serves_one_release(
    host: Boot, places: tuple[Place, ...]
) -> None:
    box = standin(host)
    prepare(box)
    for place in places:
        with standing_at(box, place) as (run, process):
            os.kill(process, signal.SIGKILL)
            left = what_is_left(box)
        serving = recovered(box, run)
        if place.nothing_is_switched:
            assert serving == "b1", place
        told(f"runner killed: {place.name}", left, then(box, run))
        back_to_b1(box)
    # Nothing of all that is in the way of the next one.
    status, said = rebuild(box)
    assert (status, make_sure_that_nothing_is_in_between(box)) == (0, "b2"), said
    assert set(outcomes(box.scene)) <= {"interrupted", "undone", "succeeded"}


def test_the_power_goes_in_the_middle_and_two_boots_later_one_release_serves(host: Boot) -> None:
    box = standin(host, writable=True)
    prepare(box)
    for name in ("compiling", "between switch and restart", "starting the new one"):
        with standing_at(box, at(name)) as (run, _):
            left = what_is_left(box)
            box.host.power_cut()
        box.host.boot_again()
        box.scene.inbox.start()
        serving = recovered(box, run)
        after = then(box, run)
        assert serving == "b1" or name != "compiling"
        releases = box.releases()
        box.host.boot_again()
        assert (make_sure_that_nothing_is_in_between(box), box.releases()) == (serving, releases)
        told(f"power cut: {name}", left, after)
        back_to_b1(box)
    outcomes(box.scene)


def test_a_disk_that_gets_full_while_it_is_linked_and_a_home_that_cannot_be_written(host: Boot) -> None:
    box = standin(host)
    machine = box.host
    machine.sh(f"mkdir -p {BUILDS}; mount -t tmpfs -o size=16g none {BUILDS}")
    machine.write(LINKING, "")
    asked = machine.popen("holdfast", "run", "rebuild-llama-cpp", "--engine", "chat", "--force")
    machine.wait_for(lambda: machine.run("pgrep", "-f", "^sh .*wait[.]sh linking$", check=False).stdout, 60, "linking")
    machine.sh(f"mount -o remount,size=$(( $(df --output=used -k {BUILDS} | tail -n 1) + 8 ))k none {BUILDS}")
    left = f"{what_is_left(box)}; no byte is free"
    machine.sh(f"rm {LINKING}")
    said, _ = asked.communicate(timeout=120)
    assert (asked.returncode, "No space left on device" in said) == (2, True), said
    assert make_sure_that_nothing_is_in_between(box) == "b1"
    told("disk full while linking", left, then(box, said))
    machine.sh(f"umount {BUILDS}")

    machine.sh(f"mkdir -p {WORK}/home; mount --bind {WORK} {WORK}; mount -o remount,bind,ro {WORK}")
    status, said = rebuild(box)
    assert status in (2, 77), said
    assert "Read-only file system" in said or "read-only" in said, said
    machine.sh(f"umount {WORK}")
    assert make_sure_that_nothing_is_in_between(box) == "b1"
    told("the build user's home cannot be written", "nothing was begun", then(box, said))
    status, said = rebuild(box)
    assert (status, box.serving) == (0, "b2"), said


def test_what_is_missing_is_said_at_once_and_nothing_is_touched(host: Boot) -> None:
    box = standin(host)
    before = box.host.sh(f"ls -lAR {RELEASES} {CURRENT}")

    def refused(where: str, *words: str) -> None:
        status, said = rebuild(box)
        assert (status, [word for word in words if word not in said]) == (77, []), said
        assert box.host.sh(f"ls -lAR {RELEASES} {CURRENT}") == before
        assert not box.host.exists(f"{WORK}/src")
        assert box.serving == "b1"
        told(where, "nothing was begun", then(box, said))

    absent = "0123456789abcdef0123456789abcdef01234567"
    box.wants(absent)
    refused("commit missing", absent, "is not in")
    box.wants("b2")
    tree = box.host.sh(f"git -C {SOURCE} rev-parse b2:main.cpp").strip()
    box.host.sh(
        f"cd {SOURCE}; mv .git/objects/pack/*.pack .git/x.pack; git unpack-objects -q <.git/x.pack; rm .git/x.pack"
    )
    box.host.sh(f"mv {SOURCE}/.git/objects/{tree[:2]}/{tree[2:]} /root/object")
    box.host.sh("mv /usr/bin/x86_64-linux-gnu-g++-12 /root/compiler; mv /usr/bin/cmake /root/cmake")
    refused("compiler, cmake and an object of the commit missing", "cmake", "c++", "1 of its objects")
    box.host.sh(f"mv /root/object {SOURCE}/.git/objects/{tree[:2]}/{tree[2:]}")
    box.host.sh("mv /root/compiler /usr/bin/x86_64-linux-gnu-g++-12; mv /root/cmake /usr/bin/cmake")
    box.host.sh(
        "mv /etc/systemd/system/llama-server.service /root/unit; "
        f"sed s,{CURRENT},{RELEASES}/{box.release}, /root/unit >/etc/systemd/system/llama-server.service; "
        "systemctl daemon-reload"
    )
    refused("the unit runs another file than current", "llama-server.service", f"{CURRENT}/bin/llama-server")
    box.host.sh("mv /root/unit /etc/systemd/system/llama-server.service; systemctl daemon-reload")
    status, said = rebuild(box)
    assert (status, box.serving) == (0, "b2"), said


def test_a_dirty_tree_a_moved_tag_and_hooks_change_nothing_of_what_is_built(host: Boot) -> None:
    box = standin(host)
    box.wants("b2", 'tag = "b2"\n')
    box.host.sh(
        f"cd {SOURCE}; echo 'this does not compile' >>main.cpp; echo 'message(FATAL_ERROR no)' >>CMakeLists.txt; "
        "echo '*.cpp filter=evil export-ignore' >.gitattributes; git tag -f b2 b4; "
        "git config core.fsmonitor 'touch /tmp/ran-fsmonitor'; git config filter.evil.smudge 'touch /tmp/ran-filter'; "
        "git config core.hooksPath /opt/hooks; mkdir /opt/hooks; "
        "for hook in post-checkout pre-commit reference-transaction post-index-change; do "
        "printf '#!/bin/sh\\ntouch /tmp/ran-hook\\n' >/opt/hooks/$hook; chmod +x /opt/hooks/$hook; done; "
        "rm -f /tmp/ran-*"
    )
    status, said = rebuild(box)
    assert (status, box.serving) == (0, "b2"), said
    assert box.host.sh("ls /tmp/ran-* 2>/dev/null || true") == ""
    assert "b2" in said
    assert box.commits["b4"][:12] in said, said
    make_sure_that_nothing_is_in_between(box)
    told("source tree dirty, hooks, tag moved to another commit", "the commit counts", then(box, said))


def test_a_build_that_writes_elsewhere_does_not(host: Boot) -> None:
    box = standin(host, "b5")
    outside = (
        "/etc/own.conf /etc/holdfast/runbooks.d/own.yaml /usr/bin/own /var/lib/holdfast-runner/own /home/own /root/own"
    )
    status, said = rebuild(box)
    assert status == 2, said
    assert "/etc/own.conf" in said, said
    assert make_sure_that_nothing_is_in_between(box) == "b1"
    told("CMakeLists.txt writes outside its directory", "the build fails", then(box, said))
    box.wants("b6")
    status, said = rebuild(box)
    assert (status, make_sure_that_nothing_is_in_between(box)) == (0, "b6"), said
    assert box.host.sh(f"ls {outside} 2>/dev/null || true") == ""
    told("CMakeLists.txt tries to, and goes on", "nothing was written", then(box, said))


def test_what_does_not_compile_or_does_not_take_the_units_flags_is_never_switched_to(host: Boot) -> None:
    box = standin(host, "b4")
    with box.scene.engine.client.timeline(every=0.1) as probes:
        began = time.time()
        status, said = rebuild(box)
        assert (status, "was not declared in this scope" in said, "another_name" in said) == (2, True, True), said
        assert make_sure_that_nothing_is_in_between(box) == "b1"
        told("does not compile", "the first error is quoted", then(box, said))
        box.wants("b3")
        status, said = rebuild(box)
        assert (status, "does not know the argument --slots" in said) == (2, True), said
        assert make_sure_that_nothing_is_in_between(box) == "b1"
        told("the new binary refuses the unit's flags", "found before the switch", then(box, said))
        assert {record.status for record in probes.records() if record.at > began} == {200}


def test_what_dies_only_in_the_unit_is_undone_and_what_dies_later_is_rolled_back_by_itself(host: Boot) -> None:
    box = standin(host, "b7", restart="always")
    status, said = rebuild(box)
    assert status == 2, said
    assert make_sure_that_nothing_is_in_between(box) == "b1"
    told("the new release dies as soon as the unit runs it", "found after the switch", then(box, said))

    box.wants("b8")
    status, said = rebuild(box)
    assert (status, make_sure_that_nothing_is_in_between(box)) == (0, "b8"), said
    since = len(box.scene.pages())
    box.host.write("/run/bed-dies", "")
    box.host.wait_for(lambda: box.serving == "b1", 180, "the way back")
    last = box.host.wait_for(
        lambda: next((r for r in box.scene.ledger("outcome") if _runbook(box, r["run"]) == "rollback-llama-cpp"), None),
        60,
        "the outcome",
    )
    assert last["data"]["outcome"] == "succeeded", last
    assert make_sure_that_nothing_is_in_between(box) == "b1"
    told("the new release crash-loops after it was kept", "release-failing", then(box, last["run"]))
    paged = [page for page in box.scene.pages()[since:] if page.finding == "release-failing"]
    assert paged, [page.finding for page in box.scene.pages()[since:]]


def test_a_repair_takes_the_place_of_a_rehearsal(host: Boot) -> None:
    box = standin(host)
    box.host.write(COMPILING, "")
    asked = box.host.popen("holdfast", "rehearse", "rebuild-llama-cpp", "--engine", "chat")
    waits = ("pgrep", "-f", "^sh .*wait[.]sh compiling$")
    box.host.wait_for(lambda: box.host.run(*waits, check=False).stdout, 60, "the compiler")
    box.host.run("kill", "-KILL", str(box.scene.engine.pid))
    box.scene.resolved("engine-dead", 120)
    said, _ = asked.communicate(timeout=60)
    assert asked.returncode == 1, said
    assert make_sure_that_nothing_is_in_between(box) == "b1"
    told("a repair needs the place of a rehearsal", said.strip().splitlines()[-1], "the engine was repaired")


def _runbook(box: Box, run: str) -> str:
    return next(str(r["data"]["runbook"]) for r in box.scene.ledger("attempt") if r["run"] == run)
