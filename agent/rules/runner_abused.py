"""Somebody asked the root runner for what it must refuse: an unknown runbook, a forged approval, force.

The runner refused and recorded it. Only root and the daemon's user can reach its socket, so a program with one of these
identities misbehaves. What to do: `sudo holdfast audit show` names the user and what was asked.
"""

from __future__ import annotations

from agent.plugin import EVENT, Rule, as_judged

RULE = Rule(
    id="runner-abused",
    title="The runner was asked what it must refuse",
    reads=("holdfast.runner",),
    confirm=EVENT,
    diagnose=as_judged("runner-abused", "holdfast.runner"),
    manual=True,
)
