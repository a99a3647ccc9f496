"""What is remembered of the kernel's messages about the cards: one entry for a flood of one code, and when it is over.

Pure; the entries are JSON, because a check carries them on from look to look. What the card itself needs (a reset, a
reboot) stays until the driver is loaded afresh or the card takes it back (Xid 154); the boot ends everything. A fault
of a program is over after a while.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from agent.host import xid
from agent.host.kernel_log import Event
from agent.model import Json

MOST = 40
"""Entries that are kept; the least urgent and oldest give way."""
PIDS = 6
"""Entries of one code on one card that differ only in the process; further ones count towards the last."""
BURST_S = 180.0
"""A code that follows others belongs to the one before it within this time (NVIDIA groups bursts until three minutes of
silence)."""
RECOVERY = "154"
_RANK = {"critical": 2, "warning": 1, "note": 0}
_NEEDS = {
    "gpu reset required": ("critical", "RESET_GPU"),
    "drain and reset": ("critical", "RESET_GPU"),
    "bus reset": ("critical", "RESET_GPU"),
    "node reboot required": ("critical", "RESTART_BM"),
    "os reboot": ("critical", "RESTART_BM"),
    "system reboot": ("critical", "RESTART_BM"),
    "drain p2p": ("warning", "INVESTIGATE_SW_USER"),
    "recover imex domain": ("warning", "INVESTIGATE_SW_USER"),
}
"""The recovery actions that a card may ask for (nvml.h, nvmlDeviceGpuRecoveryAction_t): severity and what to do."""
_UNNAMED = ("critical", "XID_154")


@dataclass
class Memory:
    """What is known now. entries: JSON, oldest first. uuids: the cards' by PCI address, as the driver printed them."""

    entries: list[dict[str, Any]] = field(default_factory=list)
    uuids: dict[str, str] = field(default_factory=dict)

    def take(self, events: Iterable[Event], wall: Callable[[float], float]) -> None:
        """Take in what the kernel said. wall: the Unix time of a moment in seconds since boot, without suspend."""
        for event in events:
            if event.kind == "uuid":
                self.uuids[event.gpu] = event.tail
            elif event.kind == "loaded":
                self.entries = [each for each in self.entries if not each["until_reset"]]
            elif event.key == RECOVERY:
                self._recovery(event, wall(event.at_s))
            else:
                self._count(self._entry(event, wall(event.at_s)))
        self._bound()

    def forget(self, now_wall: float, after_s: float) -> None:
        """Drop what is over: programs' faults whose last message is older than this, seconds."""
        self.entries = [each for each in self.entries if each["until_reset"] or now_wall - each["last"] < after_s]

    def _recovery(self, event: Event, at: float) -> None:
        """The card says what it needs now, which wins over the table; "None" ends what it needed before."""
        action = event.recovery.lower()
        self.entries = [each for each in self.entries if (each["key"], each["gpu"]) != (RECOVERY, event.gpu)]
        if action == "none":
            self.entries = [each for each in self.entries if each["gpu"] != event.gpu or not each["until_reset"]]
        elif action:
            severity, todo = _NEEDS.get(action, _UNNAMED)
            entry = self._entry(event, at)
            entry.update(severity=severity, name=f"the card asks for: {event.recovery}", until_reset=True)
            entry["do"] = xid.catalogue().actions[todo]
            entry["cause"] = "gpu-reset-required" if severity == "critical" else ""
            self.entries.append(entry)

    def _entry(self, event: Event, at: float) -> dict[str, Any]:
        known = xid.entry_of(event.key)
        follows = event.after or (self._leader(event, at) if known is not None and known.follows else None)
        fatal = known is not None and known.fatal_resets and event.fatal is True
        return {
            "key": event.key,
            "kind": event.kind,
            "code": event.code,
            "name": known.name if known is not None else "a code that is not known here",
            "known": known is not None,
            "gpu": event.gpu,
            "uuid": self.uuids.get(event.gpu, ""),
            "instance": event.instance,
            "pid": None if known is not None and known.follows else event.pid,
            "process": event.name,
            "tail": event.tail,
            "follows": follows,
            "fault": known.fault if known is not None else "",
            "severity": "critical" if fatal else known.severity if known is not None else "warning",
            "cause": "gpu-reset-required" if fatal else known.cause if known is not None else "gpu-xid-unknown",
            "do": _todo(known, fatal=fatal),
            "until_reset": fatal or (known is not None and known.until_reset),
            "first": at,
            "last": at,
            "count": 1,
        }

    def _leader(self, event: Event, at: float) -> int | None:
        """The code that this one follows: the last one before it on the same card that follows nothing itself."""
        for each in reversed(self.entries):
            leads = each["kind"] == "xid" and each["gpu"] == event.gpu and each["key"] not in ("45", RECOVERY)
            if leads and 0 <= at - each["last"] <= BURST_S:
                return int(each["code"])
        return None

    def _count(self, entry: dict[str, Any]) -> None:
        alike = [each for each in self.entries if _same(each, entry, "kind", "code", "gpu", "instance", "follows")]
        same = next((each for each in alike if each["pid"] == entry["pid"]), None)
        if same is None and len(alike) >= PIDS:
            same = alike[-1]
        if same is None:
            self.entries.append(entry)
        else:
            same["count"] += 1
            same["first"], same["last"] = min(same["first"], entry["first"]), max(same["last"], entry["last"])

    def _bound(self) -> None:
        while len(self.entries) > MOST:
            least = min(self.entries, key=lambda each: (_RANK[each["severity"]], each["last"]))
            self.entries.remove(least)


def _same(one: Mapping[str, Json], other: Mapping[str, Json], *names: str) -> bool:
    return all(one[name] == other[name] for name in names)


def _todo(known: xid.Entry | None, *, fatal: bool) -> str:
    actions = xid.catalogue().actions
    if known is None:
        return "Look it up in NVIDIA's catalogue (docs.nvidia.com/deploy/xid-errors)."
    return actions["RESET_GPU" if fatal else known.immediate]
