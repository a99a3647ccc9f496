"""What `holdfast init` can learn of a host by itself: GPUs, the driver, and the inference engines that run.

An engine is found by its listening socket: the socket's process, that process's unit, and a fingerprint. Only what
looks like an engine by its command or by a usual port is asked, on loopback, and only by its kind's fingerprint: no
unknown service is probed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import PurePosixPath

from agent import plugin
from agent.errors import HostError
from agent.host import Host
from agent.model import Json

PCI = "/sys/bus/pci/devices"
NVIDIA = "0x10de"
"""NVIDIA's PCI vendor number."""
DISPLAY = "0x03"
"""The PCI base class of display controllers, which data-centre GPUs are too (0x0302)."""
LISTEN = "0A"
"""TCP_LISTEN in /proc/net/tcp (linux/include/net/tcp_states.h)."""


@dataclass(frozen=True, slots=True)
class Listener:
    """One listening TCP socket: the URL that reaches it over loopback, None when nothing there does."""

    port: int
    url: str | None
    inode: int


@dataclass(frozen=True, slots=True)
class FoundEngine:
    """One engine that runs here. `settings` is what its fingerprint says of it, `rebuild` how it could be rebuilt."""

    name: str
    kind: str
    url: str
    pid: int
    unit: str | None
    settings: Mapping[str, Json] = field(default_factory=dict)
    rebuild: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Discovery:
    """What was found. `notes` say what was seen and left alone."""

    gpus: tuple[str, ...] = ()
    loaded: str | None = None
    library: str | None = None
    engines: tuple[FoundEngine, ...] = ()
    notes: tuple[str, ...] = ()


def discover(host: Host) -> Discovery:
    """Look at the host. Never raises for what it finds; what could not be read becomes a note."""
    from agent.host import driver

    notes: list[str] = []
    engines = _one_per_unit(tuple(_engines(host, notes)), notes)
    return Discovery(
        gpus=tuple(gpus(host)),
        loaded=driver.loaded_version(host),
        library=driver.library_version(host),
        engines=_named(engines),
        notes=tuple(notes),
    )


def gpus(host: Host) -> Iterator[str]:
    """The PCI addresses of NVIDIA display devices."""
    try:
        devices = host.files.listdir(PCI)
    except HostError:
        return
    for device in devices:
        try:
            vendor = host.files.read_text(f"{PCI}/{device}/vendor").strip()
            kind = host.files.read_text(f"{PCI}/{device}/class").strip()
        except HostError:
            continue
        if vendor == NVIDIA and kind.startswith(DISPLAY):
            yield device


def listeners(text: str, *, version: int) -> Iterator[Listener]:
    """The listening sockets in the text of /proc/net/tcp (`version` 4) or /proc/net/tcp6 (6). Pure.

    Addresses there are 32-bit words in the machine's byte order, little-endian on every architecture we ship for
    (proc_pid_net(5)).
    """
    for line in text.splitlines()[1:]:
        words = line.split()
        if len(words) < 10 or words[3] != LISTEN or ":" not in words[1]:
            continue
        raw, port = words[1].split(":")
        try:
            address = _address(bytes.fromhex(raw), version)
            yield Listener(int(port, 16), _url(address, int(port, 16)), int(words[9]))
        except ValueError:
            continue


def _address(raw: bytes, version: int) -> IPv4Address | IPv6Address:
    size = 4 if version == 4 else 16
    if len(raw) != size:
        raise ValueError("not an address")
    return ip_address(b"".join(raw[i : i + 4][::-1] for i in range(0, size, 4)))


def _url(address: IPv4Address | IPv6Address, port: int) -> str | None:
    """The loopback URL of a socket bound to this address, None when loopback does not reach it."""
    mapped = getattr(address, "ipv4_mapped", None)
    if mapped is not None:
        address = mapped
    if address.is_unspecified:
        return f"http://127.0.0.1:{port}"
    if address.is_loopback:
        return f"http://[{address}]:{port}" if address.version == 6 else f"http://{address}:{port}"
    return None


def _engines(host: Host, notes: list[str]) -> Iterator[FoundEngine]:
    sockets: dict[int, Listener] = {}
    for path, version in (("/proc/net/tcp", 4), ("/proc/net/tcp6", 6)):
        try:
            text = host.files.read_text(path, 8 << 20)
        except HostError:
            continue
        sockets.update({listener.inode: listener for listener in listeners(text, version=version)})
    usual = {engine.default_port for engine in plugin.engines().values()} - {0}
    seen: set[tuple[int, int]] = set()
    for pid, inode in _owners(host, frozenset(sockets), notes):
        listener = sockets[inode]
        argv = _command(host, pid)
        likely = _likely_kinds(argv)
        if (pid, listener.port) in seen or not (likely or listener.port in usual):
            continue
        seen.add((pid, listener.port))
        if listener.url is None:
            notes.append(
                f"port {listener.port} (pid {pid}) does not listen on loopback: add it by hand if it is an engine"
            )
            continue
        found = _fingerprint(host, listener.url, likely)
        if found is None:
            if likely:
                notes.append(f"port {listener.port} (pid {pid}) looks like {likely[0]}, but does not answer like it")
            continue
        kind, settings = found
        unit = _unit(host, pid)
        rebuild = _rebuild(host, kind, settings, argv) if unit else {}
        yield FoundEngine("", kind, listener.url, pid, unit, settings, rebuild)


def _owners(host: Host, inodes: frozenset[int], notes: list[str]) -> Iterator[tuple[int, int]]:
    """Which process holds which of these sockets: (pid, inode)."""
    unread = 0
    for name in host.files.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            descriptors = host.files.listdir(f"/proc/{name}/fd")
        except HostError as error:
            unread += getattr(error, "kind", "") == "denied"
            continue
        for descriptor in descriptors:
            try:
                target = host.files.readlink(f"/proc/{name}/fd/{descriptor}")
            except HostError:
                continue
            match = re.fullmatch(r"socket:\[(\d+)\]", target)
            if match and int(match[1]) in inodes:
                yield int(name), int(match[1])
    if unread:
        notes.append(f"the sockets of {unread} processes of other users could not be read: run it with sudo")


def _command(host: Host, pid: int) -> tuple[str, ...]:
    from agent.host import process

    try:
        return process.command_line(host, pid)
    except HostError:
        return ()


def _rebuild(host: Host, kind: str, settings: Mapping[str, Json], argv: tuple[str, ...]) -> Mapping[str, Json]:
    """How this engine could be rebuilt here, as far as that can be seen; empty for a kind that never is."""
    from agent.cli._rebuildable import rebuild_settings

    engine = plugin.engines()[kind]
    if not argv or "rebuild" not in engine.settings.model_fields:
        return {}
    known = engine.settings.model_validate({"name": "found", **settings})
    return rebuild_settings(host, argv[0], lambda: engine.sample(host, known).version)


def _unit(host: Host, pid: int) -> str | None:
    from agent.host import systemd

    try:
        unit = systemd.unit_of_pid(host, pid)
    except HostError:
        return None
    return unit if unit and unit.endswith(".service") and not unit.startswith("user@") else None


def _likely_kinds(argv: tuple[str, ...]) -> tuple[str, ...]:
    """The kinds of engine whose word stands in the first words of a command ("llama" for llama.cpp)."""
    words = " ".join(PurePosixPath(word).name.lower() for word in argv[:4])
    return tuple(kind for kind in plugin.engines() if re.split(r"[^a-z0-9]", kind.lower())[0] in words)


def _fingerprint(host: Host, url: str, likely: tuple[str, ...]) -> tuple[str, Mapping[str, Json]] | None:
    for kind in likely or tuple(plugin.engines()):
        try:
            settings = plugin.engines()[kind].fingerprint(host, url)
        except HostError:
            continue
        if settings is not None:
            return kind, settings
    return None


def _one_per_unit(engines: tuple[FoundEngine, ...], notes: list[str]) -> tuple[FoundEngine, ...]:
    """The oldest process of each unit: a router's models listen too, and a unit can only be restarted as a whole."""
    kept: dict[str, FoundEngine] = {}
    for engine in sorted(engines, key=lambda each: each.pid):
        first = kept.setdefault(engine.unit or engine.url, engine)
        if first is not engine:
            notes.append(f"{engine.url} (pid {engine.pid}) is in {engine.unit} too, beside {first.url}: left out")
    return tuple(each for each in engines if each in kept.values())


def _named(engines: tuple[FoundEngine, ...]) -> tuple[FoundEngine, ...]:
    """Each with a name of its own, after its unit where it has one."""
    named: list[FoundEngine] = []
    for engine in engines:
        stem = re.sub(r"[^a-z0-9]+", "-", (engine.unit or engine.kind).removesuffix(".service").lower()).strip("-")[:48]
        taken = {each.name for each in named}
        name = next(n for n in (stem or "engine", *(f"{stem}-{i}" for i in range(2, 1000))) if n not in taken)
        named.append(replace(engine, name=name))
    return tuple(named)
