"""What would be done in an emergency did not work when it was rehearsed: it would not work on the night it is needed.

Nothing is wrong with what serves. Told once, and over with the next rehearsal that succeeds. What to do: the page
quotes the reason; put that right in daylight, and rehearse it again: `sudo holdfast rehearse RUNBOOK --engine NAME`.
What it did is in `holdfast audit show`, and the whole log of a build lies in /var/lib/holdfast-runner/builds/.
"""

from __future__ import annotations

from agent.plugin import EVENT, Rule, as_judged

RULE = Rule(
    id="rehearsal-failing",
    title="A rehearsal did not work",
    reads=("holdfast.rehearsal",),
    confirm=EVENT,
    diagnose=as_judged("rehearsal-failing", "holdfast.rehearsal"),
    manual=True,
)
