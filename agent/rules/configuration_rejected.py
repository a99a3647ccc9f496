"""The configuration on disk has mistakes: the daemon goes on with the one before.

What to do: `holdfast check --config` lists every mistake; correct them and `systemctl reload holdfast`.
"""

from __future__ import annotations

from agent.plugin import EVENT, Rule, as_judged

RULE = Rule(
    id="configuration-rejected",
    title="A new configuration is wrong",
    reads=("holdfast.configuration",),
    confirm=EVENT,
    diagnose=as_judged("configuration-rejected", "holdfast.configuration"),
    manual=True,
)
