"""What several causes read from gpu.xid: events by card, and those that hit an engine. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from typing import Any

from agent.model import CheckResult, Finding, Moment, Observation, Results, Status, Verdict

CHECK = "gpu.xid"
RECENT_S = 600.0
"""An event this long before an engine died may be why."""
ILL = (Verdict.DEAD, Verdict.WEDGED)

Event = Mapping[str, Any]


def events(results: Results) -> tuple[Event, ...]:
    """Everything that is remembered, oldest first."""
    return tuple(event for result in results.of(CHECK) for event in result.value("events") or ())


def by_card(results: Results, cause: str) -> dict[str, list[Event]]:
    """The events that lead to this cause, by subject."""
    found: dict[str, list[Event]] = {}
    for event in events(results):
        if event["cause"] == cause:
            found.setdefault(subject(event), []).append(event)
    return found


def subject(event: Event) -> str:
    """The card as a subject: by its UUID where the driver named it, else by its address; the host without either."""
    name = str(event["uuid"] or str(event["gpu"]).replace(":", "-"))
    return f"gpu:{name}" if name else "host"


def title(event: Event) -> str:
    """Say "Xid 79 (GPU has fallen off the bus)", "SXid 20034 (NVSwitch error)", "Killed for lack of memory"."""
    kind = {"xid": "Xid", "sxid": "SXid"}.get(event["kind"])
    return f"{kind} {event['code']} ({event['name']})" if kind else str(event["name"])


def titles(found: Iterable[Event]) -> str:
    """Several of them, the first three."""
    names = list(dict.fromkeys(title(event) for event in found))
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def card(found: Iterable[Event]) -> str:
    """Say "GPU 0000:18:00"."""
    return next((f"GPU {event['gpu']}" for event in found if event["gpu"]), "a GPU")


def finding(identifier: str, about: str, found: list[Event], says: str) -> Finding:
    """A cause that rests on these events of one card. says: what it is, before the messages are named."""
    first = min(float(event["first"]) for event in found)
    worst = max(found, key=lambda event: event["severity"] == "critical")
    status = Status.CRITICAL if worst["severity"] == "critical" else Status.WARNING
    times = sum(int(event["count"]) for event in found)
    seen = f"{times} messages since {clock(first)}" if times > 1 else f"at {clock(first)}"
    return Finding(
        id=identifier,
        subject=about,
        status=status,
        summary=f"{card(found)} {says}: {titles(found)}",
        evidence=(Observation("evidence", f"{seen}. {worst['do']}"),),
        results=((CHECK, "host"),),
        since=first,
        signature=" ".join(sorted({str(event["key"]) for event in found})),
    )


def of_engine(results: Results, engine: str) -> tuple[Event, ...]:
    """The events that name a process of this engine's unit; what only follows another is left out."""
    unit = results.one("engine.unit", engine)
    name = unit.value("unit.name") if unit is not None else None
    if not name:
        return ()
    return tuple(each for each in events(results) if each.get("unit") == name and each["key"] != "45")


def last_words(results: Results, engine: str, now: Moment, died_at: float | None = None) -> str:
    """What the kernel said of an engine shortly before it died, as the end of a sentence; "" when nothing.

    died_at: Unix seconds; without it, shortly before now, or at any time of a process that lives. A card that is lost
    needs to name no process.
    """
    end = now.wall if died_at is None else died_at
    own = [each for each in of_engine(results, engine) if _near(each, end) or (died_at is None and each.get("alive"))]
    lost = [each for each in events(results) if each["cause"] == "gpu-lost" and _near(each, end)]
    found = own or lost
    return f"; the kernel reported {titles(found)}" if found else ""


def _near(event: Event, end: float) -> bool:
    return -30.0 <= end - float(event["last"]) < RECENT_S or 0.0 <= end - float(event["first"]) < RECENT_S


def ill(results: Results, engine: str) -> bool:
    """Whether the engine is dead or wedged: then that is told, and names the event."""
    checks = ("engine.unit", "engine.progress", "engine.generates")
    seen: list[CheckResult | None] = [results.one(check, engine) for check in checks]
    return any(each is not None and each.verdict in ILL for each in seen)


def clock(at: float) -> str:
    """Unix seconds as "07:42 UTC"."""
    return f"{datetime.fromtimestamp(at, timezone.utc):%H:%M} UTC"
