"""A GPU, or the driver's part for it, does not work again before it is reset.

Either the card asks for it by itself (Xid 154, which wins over every table), or NVIDIA's catalogue says so of the code
that was logged. Nothing is stopped for it: engines that still serve go on. What to do: stop everything that uses the
card (engines, exporters, nvidia-persistenced), `nvidia-smi --gpu-reset -i GPU`, start again; reboot where that is
refused or does not help. `holdfast explain xid CODE` says more about the code.
"""

from __future__ import annotations

from collections.abc import Iterable

from agent.model import Finding, Moment, Results
from agent.plugin import EVENT, Rule
from agent.rules._gpu import by_card, finding

ASKED = "154"


def diagnose(results: Results, now: Moment) -> Iterable[Finding]:
    """One for each card. What the card asks for because it is lost, or its memory fails, is told there."""
    told = {**by_card(results, "gpu-lost"), **by_card(results, "gpu-memory-failing")}
    for about, found in by_card(results, "gpu-reset-required").items():
        if about not in told or any(event["key"] != ASKED for event in found):
            yield finding("gpu-reset-required", about, found, "must be reset")


RULE = Rule(
    id="gpu-reset-required",
    title="A GPU must be reset",
    reads=("gpu.xid",),
    confirm=EVENT,
    diagnose=diagnose,
    manual=True,
)
