"""An engine that does not fit its machine while systemd starts it for ever: one cause, one page, one rebuild."""

from __future__ import annotations

from bed import kill
from rebuilding import RELEASES, Boot, make_sure_that_nothing_is_in_between, standin

LINE = "CUDA error: no kernel image is available for execution on the device"
OF_ANOTHER_CARD = f'#!/bin/sh\necho "{LINE}" >&2\nkill -ABRT $$\n'


def test_a_crash_loop_that_systemd_never_ends_is_rebuilt_and_told_in_one_page(host: Boot) -> None:
    box = standin(host, "b1", restart="always", service_lines=["RestartSec=3"])
    since = len(box.scene.pages())
    box.host.write(f"{RELEASES}/{box.release}/bin/llama-server", OF_ANOTHER_CARD, 0o755)
    kill(box.host, box.scene.engine.pid)
    page = box.scene.triggered("engine-incompatible", 60)
    over = box.scene.resolved("engine-incompatible", 180)
    assert LINE in " ".join(f"{page.summary} {page.message}".split()), page
    assert make_sure_that_nothing_is_in_between(box) == "b1"

    attempts = [record["data"]["runbook"] for record in box.scene.ledger("attempt")]
    assert attempts == ["rebuild-llama-cpp"], "no restart was tried that could not help"
    rang = [each for each in box.scene.pages()[since:] if each.action == "trigger" and each.severity != "info"]
    assert {each.finding for each in rang} == {"engine-incompatible"}, rang
    assert len({each.key for each in rang}) == 1, rang
    print(f"\nresolved {over.at - page.at:.0f} s after the page: {page.summary} | {over.summary}")
    for each in box.scene.pages()[since:]:
        print(f"  {each.action} {each.severity} {each.key.partition('/')[2]} {each.summary} | {each.message[:200]!r}")
