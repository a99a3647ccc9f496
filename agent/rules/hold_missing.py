"""A package that `holdfast hold` has held is not held any more, so the next upgrade moves the driver.

A script or a person released it with apt-mark, or `dpkg -i` put another version in its place, which clears a hold.
What to do: Holdfast holds it again, in every autonomy mode, because a person has asked for it; not while it is paused
or a planned change is open. By hand: `sudo holdfast hold`, or `sudo holdfast unhold` if the release was meant.
"""

from __future__ import annotations

from agent.plugin import Confirm, Rule, as_judged

RULE = Rule(
    id="hold-missing",
    title="A hold is missing",
    reads=("driver.holds",),
    # The record and dpkg's selections are two files: while our own runs change both they differ for a moment.
    confirm=Confirm(for_s=2.0),
    explainers=("driver.holds",),
    diagnose=as_judged("hold-missing", "driver.holds"),
    expected_in_change=True,
)
