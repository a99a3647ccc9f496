"""The driver reported something about a GPU that is worth knowing and needs nothing done at once.

Told once and quietly: rows remapped, many corrected ECC errors, NVLink or PCIe trouble, wear, a loose power cable.
What to do: `holdfast explain xid CODE` says what it means; where it comes back often, ask the vendor's support.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from agent.model import Finding, Moment, Results
from agent.plugin import EVENT, Rule
from agent.rules._gpu import Event, events, finding, subject

FRESH_S = 3600.0
"""An event that began longer ago is history: a daemon that was down for long does not tell it any more."""


def diagnose(results: Results, now: Moment) -> Iterable[Finding]:
    """One for each card, told again only when something new began."""
    noted: dict[str, list[Event]] = {}
    for event in events(results):
        if event["severity"] == "warning" and not event["cause"] and 0 <= now.wall - float(event["first"]) < FRESH_S:
            noted.setdefault(subject(event), []).append(event)
    for about, found in noted.items():
        newest = max(found, key=lambda event: float(event["first"]))
        yield replace(
            finding("gpu-xid-noted", about, found, "reported"),
            signature=f"{newest['key']} {float(newest['first']):.0f}",
            quiet=True,
            over=True,
        )


RULE = Rule(
    id="gpu-xid-noted",
    title="The driver reported something about a GPU",
    reads=("gpu.xid",),
    confirm=EVENT,
    diagnose=diagnose,
    manual=True,
)
