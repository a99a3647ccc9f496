"""Holdfast's own store cannot be read or written as it should.

Watching, repairing and paging go on from memory; what is not written is lost when the daemon stops. What to do: make
room on the disk, or look at the file that was moved aside.
"""

from __future__ import annotations

from agent.plugin import EVENT, Rule, as_judged

RULE = Rule(
    id="store-degraded",
    title="Holdfast's memory is degraded",
    reads=("holdfast.store",),
    confirm=EVENT,
    diagnose=as_judged("store-degraded", "holdfast.store"),
    manual=True,
)
