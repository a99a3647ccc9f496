"""What the driver's messages in the kernel log mean: the Xid catalogue in agent/data/xid.yaml, with its sources."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from agent.errors import InternalError

_FILE = Path(__file__).resolve().parents[1] / "data" / "xid.yaml"
FAULTS = ("application", "driver", "hardware", "none")
SEVERITIES = ("note", "warning", "critical")
UNTIL_RESET = ("RESET_GPU", "RESTART_BM", "RESTART_VM", "CHECK_MECHANICALS", "WORKFLOW_XID_48", "WORKFLOW_NVLINK_ERR")
"""Resolutions that mend the card itself: what needs one stays true until then."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One code, or one message without a code.

    key: "79", or the name of a message ("off-bus"). meaning: in plain words. immediate, investigate: NVIDIA's names of
    what to do, "" for none; `words` says them. fault: whose it usually is. severity: for the card: note, warning or
    critical. cause: the cause that Holdfast tells, "" for none of its own. follows: it comes after another code.
    fatal_resets: a message that says Fatal needs a reset. source: where it is known from.
    """

    key: str
    name: str
    meaning: str
    immediate: str
    investigate: str
    fault: str
    severity: str
    source: str
    cause: str = ""
    follows: bool = False
    fatal_resets: bool = False

    @property
    def code(self) -> int | None:
        """The Xid code; None for a message without one."""
        return int(self.key) if self.key.isdecimal() else None

    @property
    def title(self) -> str:
        """Say "Xid 79 (GPU has fallen off the bus)"."""
        return f"Xid {self.key} ({self.name})" if self.code is not None else self.name

    @property
    def until_reset(self) -> bool:
        """Whether it stays true until the card is reset or the host rebooted, rather than being over by itself."""
        return bool(self.cause) or self.immediate in UNTIL_RESET


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Every entry by its key, and what NVIDIA's names of resolutions say."""

    entries: Mapping[str, Entry]
    actions: Mapping[str, str]

    def words(self, entry: Entry) -> str:
        """What to do at once."""
        return self.actions[entry.immediate]


@cache
def catalogue() -> Catalogue:
    """The shipped catalogue. Raises InternalError when the file is wrong."""
    import yaml  # noqa: PLC0415 - only where something is looked up

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        document = yaml.load(_FILE.read_text(encoding="utf-8"), loader)  # noqa: S506 - a safe loader, in C where there
        return _catalogue(document)
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise InternalError(f"agent/data/xid.yaml: {error}") from error


def _catalogue(document: Mapping[str, Any]) -> Catalogue:
    actions = {str(name): str(words) for name, words in document["actions"].items()}
    found: dict[str, Entry] = {}
    rows = [(str(code), row) for row in document["xids"] for code in row["codes"]]
    rows += [(str(row["id"]), row) for row in document["messages"]]
    for key, row in rows:
        entry = Entry(key=key, **{name: value for name, value in row.items() if name not in ("codes", "id")})
        wrong = (
            key in found
            or entry.fault not in FAULTS
            or entry.severity not in SEVERITIES
            or not {entry.immediate, entry.investigate} <= set(actions)
        )
        if wrong:
            raise InternalError(f"agent/data/xid.yaml: {key} stands there twice, or says something that nobody knows")
        found[key] = entry
    return Catalogue(dict(sorted(found.items(), key=lambda pair: (not pair[0].isdecimal(), pair[0].zfill(4)))), actions)


def entry_of(key: str) -> Entry | None:
    """What is known of a code ("79") or a message ("off-bus"); None when nothing is."""
    return catalogue().entries.get(key)
