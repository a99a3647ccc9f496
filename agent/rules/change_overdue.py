"""A planned change is open beyond its window, or its record cannot be read: somebody may have forgotten it.

While it is open the driver may move, our holds are suspended and no engine is restarted. It is never closed by itself:
whoever began it knows whether it is done. What to do: `holdfast change status` says what is missing; then
`sudo holdfast change finish`, or `sudo holdfast change abort`, which also clears a broken record.
"""

from __future__ import annotations

from agent.plugin import EVENT, Rule, as_judged

RULE = Rule(
    id="change-overdue",
    title="A planned change is overdue",
    reads=("driver.change",),
    confirm=EVENT,
    diagnose=as_judged("change-overdue", "driver.change"),
    manual=True,
)
