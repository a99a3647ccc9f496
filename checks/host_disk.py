"""Whether the file systems that this host and Holdfast write to have room, in bytes and in inodes, and can be written.

A full disk turns every repair into a new fault: journald drops lines, builds fail half-way, apt stops in the middle.
"""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import Field

from agent.errors import HostError
from agent.host import Host, mounts
from agent.model import Judgement, Observation, Observed, Status, worst
from agent.plugin import Check, Parameters, Target

_LABEL = "path"


class DiskParameters(Parameters):
    """Which paths, and how little room is too little."""

    paths: tuple[str, ...] = Field(
        default=("/", "/var", "/var/lib/holdfast", "/var/lib/holdfast-runner", "/tmp"),  # noqa: S108 - looked at, not used
        min_length=1,
    )
    """Each path's file system is looked at once; paths that do not exist are passed over."""
    warn_percent: float = Field(default=10.0, ge=0, le=100)
    """Less room than this is a WARNING, percent."""
    critical_percent: float = Field(default=3.0, ge=0, le=100)
    """Less room than this is CRITICAL, percent."""
    enough_bytes: int = Field(default=20 << 30, ge=0)
    """From so much room on the percentage does not matter, bytes: 3 % of a large disk are plenty."""


def observe(host: Host, target: Target, before: Observed | None) -> Iterable[Observation]:
    """The room on each file system, once however many paths lie on it."""
    seen: set[tuple[int, int]] = set()
    for path in target.params.paths:
        labels = ((_LABEL, path),)
        if not host.files.exists(path):
            continue
        try:
            space = host.files.space(path)
            read_only = mounts.read_only(host, path)
        except HostError as error:
            yield Observation("disk.unreadable", error.message, "", labels)
            continue
        # Two paths with the same size and the same room to the byte are one file system.
        same = (space.bytes_total, space.bytes_free)
        if same in seen:
            continue
        seen.add(same)
        yield Observation("disk.bytes_total", space.bytes_total, "bytes", labels)
        yield Observation("disk.bytes_free", space.bytes_free, "bytes", labels)
        yield Observation("disk.inodes_total", space.inodes_total, "", labels)
        yield Observation("disk.inodes_free", space.inodes_free, "", labels)
        yield Observation("disk.read_only", space.read_only if read_only is None else read_only, "", labels)


def judge(now: Observed, before: Observed | None, params: DiskParameters) -> Judgement:
    """The worst file system decides; its shortage is named."""
    by_path: dict[str, dict[str, object]] = {}
    for each in now.observations:
        by_path.setdefault(dict(each.labels).get(_LABEL, ""), {})[each.name.removeprefix("disk.")] = each.value
    judged = [_judge(path, facts, params) for path, facts in by_path.items()]
    if not judged:
        return Judgement(Status.UNKNOWN, "none of the paths exists: " + ", ".join(params.paths))
    status = worst(each.status for each in judged)
    if status is Status.OK:
        return Judgement(status, "; ".join(each.summary for each in judged))
    return Judgement(status, "; ".join(each.summary for each in judged if each.status is not Status.OK))


def _judge(path: str, facts: dict[str, object], params: DiskParameters) -> Judgement:
    if "unreadable" in facts:
        return Judgement(Status.UNKNOWN, f"{path}: {facts['unreadable']}")
    free, total = _number(facts, "bytes_free"), _number(facts, "bytes_total")
    inodes_free, inodes = _number(facts, "inodes_free"), _number(facts, "inodes_total")
    if facts.get("read_only"):
        return Judgement(Status.CRITICAL, f"{path} is mounted read-only")
    room = 100.0 * free / total if total else 0.0
    # File systems without a fixed number of inodes (btrfs) say 0.
    nodes = 100.0 * inodes_free / inodes if inodes else 100.0
    if total and free >= params.enough_bytes:
        room = max(room, 100.0)
    for percent, what in ((min(room, nodes), "room" if room <= nodes else "inodes"),):
        left = _size(free) if what == "room" else f"{inodes_free:.0f} inodes"
        if percent < params.critical_percent:
            return Judgement(Status.CRITICAL, f"{path} has {left} left ({percent:.1f} % of its {what})")
        if percent < params.warn_percent:
            return Judgement(Status.WARNING, f"{path} has {left} left ({percent:.1f} % of its {what})")
    return Judgement(Status.OK, f"{path} has {_size(free)} left")


def _number(facts: dict[str, object], name: str) -> float:
    value = facts.get(name)
    return float(value) if isinstance(value, (int, float)) else 0.0


def _size(size: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


CHECK = Check(
    id="host.disk",
    scope="host",
    every_s=60.0,
    timeout_s=10.0,
    observe=observe,
    judge=judge,
    params=DiskParameters,
)
