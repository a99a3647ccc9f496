"""The host cannot reach a GPU any more: it has fallen off the bus, and everything on it is lost.

The kernel's log says so: Xid 79, Xid 167, or the driver's message without a code. Nothing is stopped for it: engines
on other cards go on, and one on this card is told as dead or wedged. What to do: reboot the host (check first that the
next boot is good: `holdfast lock show`); where the card stays away or it happens again, power the host off and look at
the card, its slot, its power cables and its cooling.
"""

from __future__ import annotations

from collections.abc import Iterable

from agent.model import Finding, Moment, Results
from agent.plugin import EVENT, Rule
from agent.rules._gpu import by_card, finding


def diagnose(results: Results, now: Moment) -> Iterable[Finding]:
    """One for each card."""
    for about, found in by_card(results, "gpu-lost").items():
        yield finding("gpu-lost", about, found, "is lost")


RULE = Rule(id="gpu-lost", title="A GPU is lost", reads=("gpu.xid",), confirm=EVENT, diagnose=diagnose, manual=True)
