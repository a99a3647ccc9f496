"""The kernel's log, taken apart: what /dev/kmsg gives becomes records, and records become the events we know. Pure.

Only records of the kernel itself count: what user space writes to the device carries another facility (Linux lets
nobody pretend otherwise), and could name any code. Of a line nothing is kept but what is parsed here: numbers, the name
of a process as the kernel prints it (`comm`), and for the driver's own messages a short piece of the rest.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

TAIL_LENGTH = 120
"""Characters kept of what the driver says after a code."""
NAME_LENGTH = 32
"""A process's name: 15 characters from the kernel, more where it is a kernel thread's or the driver's own."""
_HEADER = re.compile(rb"(\d{1,10}),(\d{1,20}),(\d{1,20}),[^;\n]*;(.*)")
_LINE_BREAK = "\\x0a"
"""How the device writes a line break within one message; user space and dmesg show several lines."""

_ADDRESS = r"(?:PCI:)?(?P<gpu>[0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}(?::[0-9a-fA-F]{2})?)(?:\.[0-9a-fA-F])?"
# NVIDIA's kernel_rc.c: "Xid (%s): %d, pid=%s, name=%s, %s" with, or "Xid (%s): %d, %s" without a process. Old drivers
# put the pid in quotes, or give it without a name; very old ones know no PCI domain. A MIG device adds " GPU-I:05" and
# " GPU-CI:00" to the address.
_XID = re.compile(
    rf"NVRM: Xid \({_ADDRESS}(?: GPU-I:(?P<instance>\w{{1,4}}))?(?: GPU-CI:(?P<compute>\w{{1,4}}))?\): "
    r"(?P<code>\d{1,5})(?:, pid='?(?P<pid>\d{1,10}|<unknown>)'?(?:, name=(?P<name>[^,]{0,64}))?)?(?:, ?(?P<rest>.*))?"
)
_SXID = re.compile(rf"nvidia-\w{{1,20}}: SXid \({_ADDRESS}\): (?P<code>\d{{1,6}}), ?(?P<rest>.*)")
_UUID = re.compile(rf"NVRM: GPU at {_ADDRESS}: (?P<rest>GPU-[0-9a-f-]{{36}})")
_PROBED = re.compile(rf"NVRM: The NVIDIA GPU {_ADDRESS}\b")
_NAMED = re.compile(rf"NVRM: GPU (?:at )?{_ADDRESS}\b")
_VERSIONS = re.compile(r"version (\d{3}\.[\d.]{1,12}\d)")
_WITHOUT_CODE = (
    ("off-bus", re.compile(rf"NVRM: GPU {_ADDRESS}: (?:GPU has )?fallen off the bus")),
    ("off-bus", re.compile(r"NVRM: (?:system has )?fallen off the bus and is not responding to commands")),
    (
        "init-failed",
        re.compile(rf"NVRM: (?:GPU {_ADDRESS}: )?(?:RmInitAdapter|rm_init_adapter) failed(?P<rest>[!,(].*|$)"),
    ),
    ("api-mismatch", re.compile(r"NVRM: API mismatch: the client")),
    ("loaded", re.compile(r"NVRM: loading NVIDIA UNIX")),
    (
        "gsp-unresponsive",
        re.compile(
            r"NVRM: .{0,80}?(?:GSP(?:-RM| core) unresponsive|GSP-RM heartbeat timed out"
            r"|GSP task (?:watchdog timeout|exception)|Timeout after \d+s of waiting for RPC response from GPU\d* GSP)"
        ),
    ),
    ("uvm-fatal", re.compile(r"NVRM: .{0,40}?uvm encountered global fatal error (?P<rest>0x[0-9a-f]{1,8})")),
)
_HUNG = re.compile(
    r"INFO: task (?P<name>.{1,64}):(?P<pid>\d{1,10}) blocked (?:in I/O wait )?for more than (?P<rest>\d{1,6}) seconds"
)
_OOM = re.compile(
    r"(?:Memory cgroup out|Out) of memory[^:]{0,40}: Kill(?:ed)? process (?P<pid>\d{1,10}) \((?P<name>.{1,32}?)\)"
)
_FOLLOWED = re.compile(r"caused by previous Xid (\d{1,5})")
_RECOVERY = re.compile(r"recovery action changed from .{1,50} to 0x[0-9a-f]{1,4} \((?P<to>[A-Za-z0-9 ]{1,40})\)")
_FATAL = re.compile(r"\b(Non-?)?Fatal\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Record:
    """One message of the kernel itself. number: its sequence number. at_s: seconds since boot, without suspend."""

    number: int
    at_s: float
    text: str


@dataclass(frozen=True, slots=True)
class Excerpt:
    """A stretch of the log. first, last: sequence numbers of all records in it, whoever wrote them; None without any.

    lost: how many numbers are missing, after the one that was expected and in between.
    """

    records: tuple[Record, ...]
    first: int | None
    last: int | None
    lost: int


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that the kernel said and that we know.

    kind: xid, sxid, off-bus, init-failed, gsp-unresponsive, uvm-fatal, api-mismatch, hung-task, oom-kill; uuid (tail:
    the card's) and loaded (the driver, afresh) only carry facts. gpu: PCI address without function ("0000:18:00"), ""
    where none is named. instance: of a MIG device, "05/00". pid: as the host counts. tail: a short piece of what was
    said. fatal: as the message says; None when it does not. after: the code this one follows by its own account.
    recovery: the recovery action that the card wants now.
    """

    kind: str
    at_s: float
    code: int | None = None
    gpu: str = ""
    instance: str = ""
    pid: int | None = None
    name: str = ""
    tail: str = ""
    fatal: bool | None = None
    after: int | None = None
    recovery: str = ""

    @property
    def key(self) -> str:
        """What the catalogue calls it: the code, or the name of a message without one."""
        return str(self.code) if self.kind == "xid" else self.kind


def excerpt(data: bytes, after: int | None = None) -> Excerpt:
    """The records in what the device gave, from the one behind `after` on (None: all of them). Never raises."""
    records: list[Record] = []
    first: int | None = None
    expected, lost = (None if after is None else after + 1), 0
    for line in data.split(b"\n"):
        found = _HEADER.fullmatch(line)
        if found is None:  # a " KEY=value" line that belongs to the record before it, or rubbish
            continue
        number = int(found[2])
        if expected is not None and number < expected:
            continue
        lost += number - expected if expected is not None else 0
        expected = number + 1
        first = number if first is None else first
        if int(found[1]) >> 3 == 0:
            records.append(Record(number, int(found[3]) / 1e6, found[4].decode("utf-8", "replace")))
    return Excerpt(tuple(records), first, None if first is None or expected is None else expected - 1, lost)


def events(records: Iterable[Record]) -> Iterator[Event]:
    """What is known of what these records say, in their order. Never raises."""
    probed = ""
    for record in records:
        for line in record.text.split(_LINE_BREAK):
            if found := _PROBED.match(line):
                probed = address(found["gpu"])  # a message of three lines; the last one says what is wrong
            event = _of_the_driver(record, line, probed) if line.startswith("NVRM: ") else _of_another(record, line)
            if event is not None:
                yield event


def address(text: str) -> str:
    """A PCI address as "0000:18:00": four digits of domain where they suffice, lower case, without the function."""
    parts = text.lower().split(":")
    domain, bus, slot = parts if len(parts) == 3 else ("0", f"{int(parts[0], 16):02x}", parts[1])
    return f"{int(domain, 16):04x}:{bus}:{slot}"


def _of_another(record: Record, line: str) -> Event | None:
    if found := _SXID.match(line):
        rest, gpu = found["rest"], address(found["gpu"])
        return Event("sxid", record.at_s, int(found["code"]), gpu, tail=_tail(rest), fatal=_fatal(rest))
    if found := _HUNG.match(line):
        return Event(
            "hung-task", record.at_s, pid=int(found["pid"]), name=_name(found["name"]), tail=f"{found['rest']} s"
        )
    if found := _OOM.match(line):
        return Event("oom-kill", record.at_s, pid=int(found["pid"]), name=_name(found["name"]))
    return None


def _of_the_driver(record: Record, line: str, probed: str) -> Event | None:
    if found := _XID.match(line):
        return _xid(record, found)
    if found := _UUID.match(line):
        return Event("uuid", record.at_s, gpu=address(found["gpu"]), tail=found["rest"])
    for kind, pattern in _WITHOUT_CODE:
        if found := pattern.match(line):
            named = _NAMED.match(line)
            gpu = address(named["gpu"]) if named else probed if kind == "off-bus" else ""
            tail = _tail((found.groupdict().get("rest") or "").lstrip("!, "))
            if kind == "api-mismatch":
                tail = " and ".join(_VERSIONS.findall(record.text)[:2])
            return Event(kind, record.at_s, gpu=gpu, tail=tail)
    return None


def _xid(record: Record, found: re.Match[str]) -> Event:
    rest = found["rest"] or ""
    after, recovery = _FOLLOWED.search(rest), _RECOVERY.search(rest)
    instance = "/".join(part for part in (found["instance"], found["compute"]) if part)
    return Event(
        "xid",
        record.at_s,
        int(found["code"]),
        address(found["gpu"]),
        instance,
        int(found["pid"]) if (found["pid"] or "").isdecimal() else None,
        "" if found["name"] in (None, "<unknown>") else _name(found["name"]),
        _tail(rest),
        _fatal(rest),
        int(after[1]) if after else None,
        recovery["to"] if recovery else "",
    )


def _fatal(rest: str) -> bool | None:
    found = _FATAL.search(rest)
    return None if found is None else found[1] is None


def _name(text: str) -> str:
    return _printable(text)[:NAME_LENGTH]


def _tail(text: str) -> str:
    return _printable(text)[:TAIL_LENGTH]


def _printable(text: str) -> str:
    return "".join(each if each.isprintable() else " " for each in text).strip()
