"""The driver reported an Xid code that is not in Holdfast's catalogue: a newer driver, or a newer card.

Told once, with the beginning of what the driver said; forgotten after an hour. What to do: look the code up in NVIDIA's
catalogue (docs.nvidia.com/deploy/xid-errors), and update Holdfast.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from agent.model import Finding, Moment, Observation, Results
from agent.plugin import EVENT, Rule
from agent.rules._gpu import by_card, card, finding


def diagnose(results: Results, now: Moment) -> Iterable[Finding]:
    """One for each card."""
    for about, found in by_card(results, "gpu-xid-unknown").items():
        codes = ", ".join(sorted({f"Xid {event['code']}" for event in found}))
        said = "; ".join(f'Xid {event["code"]}: "{event["tail"]}"' for event in found[:3])
        words = f"{card(found)} reported {codes}, which nobody here knows"
        yield replace(
            finding("gpu-xid-unknown", about, found, ""), summary=words, evidence=(Observation("evidence", said),)
        )


RULE = Rule(
    id="gpu-xid-unknown",
    title="The driver reported an unknown Xid code",
    reads=("gpu.xid",),
    confirm=EVENT,
    diagnose=diagnose,
    manual=True,
)
