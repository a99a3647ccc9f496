"""A rehearsal on a booted host: by itself in a quiet hour, with what it says; and killed in the middle of it."""

from __future__ import annotations

import json
from typing import Any

from rebuilding import COMPILING, Boot, Box, make_sure_that_nothing_is_in_between, standin

ALWAYS_QUIET = '[rehearsal]\nquiet = "00:00-24:00"\n'


def rehearsed(box: Box) -> list[dict[str, Any]]:
    """How every rehearsal so far has ended."""
    return [record["data"] for record in box.scene.ledger("rehearsed")]


def test_it_is_rehearsed_by_itself_in_a_quiet_hour_in_every_mode_and_not_while_a_person_has_paused(host: Boot) -> None:
    box = standin(host, mode="observe")
    pages = len(box.scene.pages())
    box.host.run("holdfast", "pause", "1h", "--reason", "the auditors are here")
    box.scene.configure(more=ALWAYS_QUIET)

    def status() -> str:
        return " ".join(box.holdfast("status")[1].split())

    left_out = "a rebuild of chat has never been proven by a rehearsal; not rehearsed"
    box.host.wait_for(lambda: left_out in status(), 150, "what was left out", every=2)
    assert "a person paused all acting" in status()
    assert rehearsed(box) == []

    box.host.run("holdfast", "resume")
    with box.scene.engine.client.timeline(every=0.1) as probes:
        box.host.wait_for(lambda: rehearsed(box), 150, "the rehearsal")
        gap = probes.longest_gap(probes.successes()[0], probes.successes()[-1])
    assert gap < 2.0, "whatever serves is not disturbed"
    (end,) = rehearsed(box)
    assert (end["outcome"], end["runbook"], end["rehearsal"]) == ("succeeded", "rebuild-llama-cpp", True)
    assert box.scene.ledger("attempt") == []
    assert make_sure_that_nothing_is_in_between(box) == "b1"
    assert len(box.releases()) == 1
    assert len(box.scene.pages()) == pages, "nobody is told of it"

    doctor = " ".join(box.holdfast("doctor")[1].split())
    assert "note a rebuild of chat takes" in doctor, doctor
    assert "would not work today" not in doctor, doctor
    box.host.wait_for(lambda: "a rebuild of chat takes" in status(), 90, "the line in status", every=2)
    print(f"\n{next(line for line in box.holdfast('status')[1].splitlines() if line.startswith('rehearse'))}")


def test_after_a_power_cut_nothing_is_left_of_a_rehearsal(host: Boot) -> None:
    box = standin(host, writable=True)
    box.host.write(COMPILING, "")
    asked = box.host.popen("holdfast", "rehearse", "rebuild-llama-cpp", "--engine", "chat")
    waits = ("pgrep", "-f", "^sh .*wait[.]sh compiling$")
    box.host.wait_for(lambda: box.host.run(*waits, check=False).stdout, 60, "the compiler")
    box.host.power_cut()
    asked.communicate(timeout=60)
    box.host.boot_again()
    box.scene.inbox.start()
    box.host.wait_for(lambda: rehearsed(box), 120, "the end of the rehearsal")
    assert [end["outcome"] for end in rehearsed(box)] == ["interrupted"]
    assert make_sure_that_nothing_is_in_between(box) == "b1"
    assert box.scene.ledger("attempt") == []


def test_a_rehearsal_that_is_killed_is_cleared_up_and_judged_as_nothing(host: Boot) -> None:
    box = standin(host)
    box.host.write(COMPILING, "")
    asked = box.host.popen("holdfast", "rehearse", "rebuild-llama-cpp", "--engine", "chat")
    waits = ("pgrep", "-f", "^sh .*wait[.]sh compiling$")
    box.host.wait_for(lambda: box.host.run(*waits, check=False).stdout, 60, "the compiler")
    assert "rehearsal of rebuild-llama-cpp on engine:chat" in " ".join(box.holdfast("status")[1].split())
    holder = json.loads(box.host.read("/var/lib/holdfast-runner/locks/engine-chat"))
    box.host.run("kill", "-KILL", str(holder["pid"]))
    box.host.wait_for(lambda: rehearsed(box), 60, "the end of the rehearsal")
    asked.communicate(timeout=60)
    assert [end["outcome"] for end in rehearsed(box)] == ["interrupted"]
    assert make_sure_that_nothing_is_in_between(box) == "b1"
    assert box.scene.ledger("attempt") == []

    box.host.run("rm", COMPILING)
    status, said, took = box.holdfast("rehearse", "rebuild-llama-cpp", "--engine", "chat")
    assert status == 0, said
    assert "REHEARSED in " in said
    assert make_sure_that_nothing_is_in_between(box) == "b1"
    print(f"\na rehearsal that was killed, then one that was not: {took:.1f} s; {said.splitlines()[-1]}")
