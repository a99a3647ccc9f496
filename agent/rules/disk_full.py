"""A file system that Holdfast or the engines need is full, nearly full, or has become read-only.

A full disk loses logs and stops builds; a read-only one is usually a failing disk. What to do: make room, or look at
the kernel log for disk errors.
"""

from __future__ import annotations

from agent.plugin import Confirm, Rule, as_judged

RULE = Rule(
    id="disk-full",
    title="A disk is full or read-only",
    reads=("host.disk",),
    confirm=Confirm(for_s=30.0, samples=2, clear_s=60.0),
    diagnose=as_judged("disk-full", "host.disk"),
    manual=True,
)
