"""The driver reported a fault of the engine's own process on the GPU, and that process still runs.

Its CUDA context is mostly lost then: what it is asked next fails or hangs. An engine that dies or wedges of it is told
as that, with the Xid in the same page, and restarted as usual; this is told when neither has happened within seconds.
What to do: try the engine; restart it when convenient. The same fault again and again is a bug of the engine or a bad
card: `holdfast explain xid CODE`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from agent.model import Finding, Moment, Results, Status
from agent.plugin import Confirm, Rule
from agent.rules._gpu import finding, ill, of_engine, titles

DIES_S = 15.0
"""Most programs end within seconds of such a fault."""


def diagnose(results: Results, now: Moment) -> Iterable[Finding]:
    """One for each engine whose living process is named."""
    for unit in results.of("engine.unit"):
        found = [each for each in of_engine(results, unit.subject) if each["kind"] == "xid" and each.get("alive")]
        if found and not ill(results, unit.subject):
            name = unit.subject.removeprefix("engine:")
            words = f"{name} met {titles(found)} on {found[0]['gpu']} and still runs"
            yield replace(finding("engine-gpu-fault", unit.subject, found, ""), status=Status.WARNING, summary=words)


RULE = Rule(
    id="engine-gpu-fault",
    title="The engine met a fault on the GPU",
    reads=("gpu.xid", "engine.unit"),
    explainers=("engine.unit", "engine.progress"),
    confirm=Confirm(for_s=DIES_S),
    diagnose=diagnose,
    manual=True,
    expected_in_change=True,
)
