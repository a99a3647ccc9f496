"""A GPU's memory loses data: uncorrectable ECC errors, or bad rows that cannot be replaced.

CRITICAL when data was lost and the card needs a reset, or has no spare rows left; WARNING when only one program was hit
(Xid 94). Results of the card may be wrong from the first message on. What to do: reset the card when it can be freed,
so that bad rows are replaced; look at `nvidia-smi -q -d ECC,ROW_REMAPPER`; where it comes back or a remapping has
failed, have the card replaced.
"""

from __future__ import annotations

from collections.abc import Iterable

from agent.model import Finding, Moment, Results
from agent.plugin import EVENT, Rule
from agent.rules._gpu import by_card, finding


def diagnose(results: Results, now: Moment) -> Iterable[Finding]:
    """One for each card."""
    for about, found in by_card(results, "gpu-memory-failing").items():
        yield finding("gpu-memory-failing", about, found, "has failing memory")


RULE = Rule(
    id="gpu-memory-failing",
    title="A GPU's memory is failing",
    reads=("gpu.xid",),
    confirm=EVENT,
    diagnose=diagnose,
    manual=True,
)
