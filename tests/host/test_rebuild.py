"""The real llama.cpp, rebuilt on a booted host from a known commit: by hand, by itself, rehearsed, and from paper.

The source, the compiler, the engine and systemd are real; it is a build for the CPU, because there is no card. Compiled
objects come from a ccache that was filled once on this machine (bed/builder.py), so a build takes seconds here. The
tests print what each part took (pytest -s).
"""

from __future__ import annotations

import json
import time

from bed import kill
from cutting import outcomes
from rebuilding import (
    RELEASES,
    RUNS,
    Boot,
    Box,
    make_sure_that_nothing_is_in_between,
    real,
    what_is_left,
)

NO_KERNEL_IMAGE = """\
#!/bin/sh
# What a build for another card does on this one: the words of ggml-cuda.cu, and an abort.
echo "ggml_cuda_compute_forward: MUL_MAT failed" >&2
echo "CUDA error: no kernel image is available for execution on the device" >&2
echo "  current device: 0, in function ggml_cuda_compute_forward at ggml-cuda.cu:2368" >&2
echo "ggml-cuda.cu:78: CUDA error" >&2
kill -ABRT $$
"""


def told(box: Box, what: str, took: float, gap: float) -> None:
    """What a run took, step by step, and for how long nobody was served."""
    parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in box.steps().items())
    print(f"\n{what}: {took:.1f} s ({parts}); without service {gap:.1f} s")


def test_from_one_commit_to_another_and_back_with_no_more_downtime_than_a_restart(host: Boot) -> None:
    box = real(host)
    client = box.scene.engine.client
    with client.timeline(every=0.1) as probes:

        def timed(*argv: str) -> tuple[str, float]:
            box.host.wait_for(lambda: len(probes.successes()) > 10, 30, "answers")
            began = probes.successes()[-1]
            status, said, took = box.holdfast(*argv, "--engine", "chat")
            assert status == 0, said
            box.host.wait_for(lambda: probes.successes()[-1] > began + took, 60, "answers")
            gap = probes.longest_gap(began, probes.successes()[-1])
            told(box, argv[1], took, gap)
            return said, gap

        _, restart = timed("run", "restart-engine", "--force")
        said, rehearsal = timed("rehearse", "rebuild-llama-cpp")
        assert (box.serving, len(box.releases())) == ("b1", 1), said
        doctor = box.host.run("holdfast", "doctor", check=False).stdout
        assert "a rebuild of chat takes" in doctor, doctor
        print(next(line for line in doctor.splitlines() if "a rebuild of chat takes" in line))

        _, rebuild = timed("run", "rebuild-llama-cpp")
        assert make_sure_that_nothing_is_in_between(box) == "b2"
        release = box.release
        _, rollback = timed("run", "rollback-llama-cpp")
        assert make_sure_that_nothing_is_in_between(box) == "b1"
    assert rehearsal < 2.0, "a rehearsal disturbs nobody"
    compiled, cached = box.compiled()
    print(f"\n{compiled} objects were compiled, {cached} came from ccache")
    assert compiled < 20 < cached, "the bed compiles with the words with which Holdfast does"
    for gap in (rebuild, rollback):
        assert gap < 2 * restart + 1.0, (restart, rebuild, rollback)

    provenance = json.loads(box.host.read(f"{RELEASES}/{release}/provenance.json"))
    assert provenance["commit"] == box.commits["b2"]
    sums = "\n".join(f"{digest}  {RELEASES}/{release}/{name}" for name, digest in provenance["sha256"].items())
    box.host.run("sha256sum", "--check", "--quiet", "-", input=sums)
    assert "[$ORIGIN]" in box.host.run("readelf", "-d", f"{RELEASES}/{release}/bin/llama-server").stdout
    percents = [
        event["data"].get("percent")
        for run in box.host.run("ls", RUNS).stdout.split()
        for event in box.transcript(run.removesuffix(".jsonl"))
        if event["event"] == "progress"
    ]
    assert any(0 < percent < 100 for percent in percents if percent), percents
    outcomes(box.scene)


def test_a_binary_for_another_card_is_detected_named_rebuilt_and_served_without_a_hand(host: Boot) -> None:
    box = real(host, "b1", restart="on-failure", service_lines=["RestartSec=1"])
    old = box.release
    box.host.write(f"{RELEASES}/{old}/bin/llama-server", NO_KERNEL_IMAGE, 0o755)
    began = time.time()
    kill(box.host, box.scene.engine.pid)
    page = box.scene.triggered("engine-incompatible", 90)
    assert "no kernel image" in page.message, page
    box.host.wait_for(box.scene.engine.generates, 300, "a token")
    over = box.scene.resolved("engine-incompatible", 120)
    assert (make_sure_that_nothing_is_in_between(box), box.release) == ("b1", f"{old}.2")
    print(f"\npaged after {page.at - began:.0f} s, resolved after {over.at - began:.0f} s; {page.summary}")
    (attempt,) = [r for r in box.scene.ledger("attempt") if r["data"]["runbook"] == "rebuild-llama-cpp"]
    assert box.outcome(attempt["run"])["outcome"] == "succeeded"
    told_of_it = [each for each in box.scene.pages() if "rebuild" in each.message or "rebuild" in each.summary]
    assert told_of_it, box.scene.pages()
    for each in box.scene.pages():
        print(f"  {each.action} {each.severity} {each.summary} | {each.message[:300]!r}")


def test_the_power_goes_while_the_real_source_is_compiled(host: Boot) -> None:
    box = real(host, writable=True)
    asked = box.host.popen("holdfast", "run", "rebuild-llama-cpp", "--engine", "chat")

    def compiling() -> bool:
        run = box.newest()
        events = box.transcript(run) if run else []
        return any((event["data"].get("percent") or 0) >= 10 for event in events if event["event"] == "progress")

    box.host.wait_for(compiling, 120, "a tenth of the build", every=0.05)
    run, left = box.newest(), what_is_left(box)
    box.host.power_cut()
    asked.communicate(timeout=60)
    box.host.boot_again()
    box.scene.inbox.start()
    box.host.wait_for(lambda: any(r["run"] == run for r in box.scene.ledger("outcome")), 120, "the outcome")
    assert make_sure_that_nothing_is_in_between(box) == "b1"
    end = box.outcome(run)
    print(f"\n| power cut: compiling the real source | {left} | {end['outcome']}: {end['summary']} |")
    status, said, _ = box.holdfast("run", "rebuild-llama-cpp", "--engine", "chat", "--force")
    assert (status, make_sure_that_nothing_is_in_between(box)) == (0, "b2"), said
    outcomes(box.scene)
