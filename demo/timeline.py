"""Prints what really happened, each line with its seconds since the fault; colours only on a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from agent.model import Transition
from agent.protocol import Event

STYLES = {
    "wedge": "bold red",
    "users": "yellow",
    "cause": "bold yellow",
    "evidence": "yellow",
    "restart": "cyan",
    "tokens": "bold green",
    "page": "magenta",
    "resolved": "bold green",
}


class Timeline:
    """`began` is when the fault was made, Unix seconds; before that, lines carry no time."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
        self.began: float | None = None

    def say(self, text: str = "", style: str = "") -> None:
        """A line of its own."""
        self._console.print(Text(text, style=style))

    def at(self, when: float, what: str, text: str) -> None:
        """One thing that happened at this time (Unix seconds)."""
        clock = f"{when - self.began:5.1f} s" if self.began is not None else " " * 7
        self._console.print(Text.assemble(f"{clock}  ", (f"{what:<10}", STYLES.get(what, "")), text))


def of_page(event: dict[str, Any]) -> str:
    """One event that reached the pager, in a line."""
    if event["event_action"] != "trigger":
        return f"{event['event_action']}  {event['dedup_key']}"
    payload = event["payload"]
    return f"{payload['severity']}  {payload['summary']}"


def of_transition(transition: Transition) -> tuple[str, str] | None:
    """One stored transition: what it is about, and a line; None for what another source tells better."""
    if transition.kind == "opened":
        return "cause", transition.text
    if transition.kind == "resolved":
        return "resolved", transition.text
    if transition.kind in ("escalated", "raised", "needs-approval"):
        return "cause", f"{transition.kind}: {transition.text}"
    return None


def of_event(event: Event) -> tuple[str, str] | None:
    """One event of a run's transcript: what it is about, and a line; None for what needs no line."""
    data = event.data
    if event.event == "accepted":
        return "restart", f"the runner has counted the attempt and begins {data.get('runbook')}"
    if event.event == "step_ended":
        how = "" if data.get("ok") else "FAILED: "
        return "restart", f"{data.get('name')}: {how}{data.get('summary')} ({data.get('duration_s'):.1f} s)"
    if event.event == "progress":
        return "restart", f"  {data.get('text')}"
    if event.event == "refused":
        return "restart", f"refused: {data.get('reason')}"
    if event.event == "verified":
        return "tokens", f"proven by the runner: {data.get('summary')}"
    if event.event == "ended" and data.get("outcome") != "succeeded":
        return "restart", f"ended: {data.get('outcome')}: {data.get('summary')}"
    return None
