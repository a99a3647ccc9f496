"""A receiver has refused alerts for good, or has not taken any for long.

Told to the receivers that still work. What to do: `holdfast pager test` says what each one answers.
"""

from __future__ import annotations

from agent.plugin import EVENT, Rule, as_judged

RULE = Rule(
    id="pager-failing",
    title="A receiver does not take alerts",
    reads=("holdfast.pager",),
    confirm=EVENT,
    diagnose=as_judged("pager-failing", "holdfast.pager"),
    manual=True,
)
