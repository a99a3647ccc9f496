"""How far the runs in flight are: from the runner's ledger and transcripts, so with the daemon up or down.

What a step said last is carried on to now: it has taken longer since, and less is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from agent import ledger, transcript
from agent.errors import FileTrouble
from agent.host import Host
from agent.ledger import Record
from agent.model import Json, Moment
from agent.protocol import Event
from agent.views.texts import InFlightLine


def in_flight(host: Host, records: Sequence[Record], now: Moment) -> tuple[InFlightLine, ...]:
    """Every run and rehearsal that has no end yet, as far as the caller may read its transcript. Never raises."""
    found = []
    for attempt in ledger.open_attempts(records, now):
        try:
            events = transcript.events(host, attempt.run)
        except FileTrouble:
            events = ()
        if transcript.ended(events) is None:
            line = InFlightLine(attempt.run, attempt.runbook, attempt.subject, attempt.at.wall)
            found.append(replace(standing(line, events, now), rehearsal=attempt.rehearsal))
    return tuple(found)


def standing(run: InFlightLine, events: Sequence[Event], now: Moment) -> InFlightLine:
    """Where a run stands after these events."""
    step, steps, name, began_at = 0, 0, "", run.started_at
    said: Event | None = None
    for event in events:
        data = event.data
        if event.event == "accepted":
            steps = int(_number(data.get("total")) or 0)
        elif event.event == "step_started":
            step, name, began_at, said = int(data.get("step", 0)) + 1, str(data.get("name", "")), event.at, None
        elif event.event == "progress" and not data.get("changes"):
            said = event
        elif event.event == "verifying":
            step, name, began_at, said = steps, f"proof: {data.get('check', '')}", event.at, None
        elif event.event == "undone":
            name, began_at, said = "undo", event.at, None
    elapsed_s = max(0.0, now.wall - began_at)
    text, percent, remaining_s = "", None, None
    if said is not None:
        text, percent = str(said.data.get("text", "")), _number(said.data.get("percent"))
        left = _number(said.data.get("remaining_s"))
        remaining_s = None if left is None else max(0.0, left - max(0.0, now.wall - said.at))
    return InFlightLine(
        run.id, run.runbook, run.subject, run.started_at, step, steps, name, text, percent, elapsed_s, remaining_s
    )


def _number(value: Json) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
