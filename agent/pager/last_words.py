"""What is told when the daemon itself has failed, and what remains of it for the daemon's next start.

The failure is told without the store, because the store may be the reason. A small file remembers who was told, so
that the daemon can resolve the alert through its outbox once it serves again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from agent.errors import FileTrouble
from agent.host import Host
from agent.model import Alert, DeliveryState, Urgency
from agent.pager import outbox
from agent.pager.message import Origin, notice, utc
from agent.plugin import ReceiverSettings
from agent.store import Attempt

DAEMON = "holdfast.service"
FINDING = "daemon-failed"
FILE = "/var/lib/holdfast/daemon-failed.json"
"""Who was told of a failure; beside the store, in the daemon's state directory."""
MACHINE_ID = "/etc/machine-id"
HOST_NAME = "/proc/sys/kernel/hostname"
PATIENCE_S = 3600.0
"""How long receivers that do not take it are tried again, seconds: a network that is down for an hour is not rare."""
LONGEST_WAIT_S = 60.0
"""The longest wait between two rounds, seconds."""


def origin(host: Host) -> Origin:
    """This host's name, "this host" when it has none that can be read."""
    return Origin(_read(host, HOST_NAME) or "this host")


def prefix(host: Host) -> str:
    """The beginning of every dedup key: holdfast and the first eight digits of the machine id."""
    return f"holdfast/{(_read(host, MACHINE_ID) or 'unknown')[:8]}"


def failed(host: Host, unit: str, why: str) -> Alert:
    """The alert that one of our units, the daemon above all, has failed. `why` is systemd's account of it."""
    what = "daemon" if unit == DAEMON else unit.removesuffix(".service").removeprefix("holdfast-")
    lost = "nothing watches this host." if unit == DAEMON else f"{unit} did not do its work."
    lines = (
        f"Holdfast's {what} failed: {lost}",
        f"systemd says: {why}",
        "Tried: what its unit says. Left: a person.",
        f"Type: sudo systemctl status {unit}; sudo holdfast doctor",
    )
    key = f"{prefix(host)}/{what}-failed/host"
    now = host.clock.now().wall
    return notice(key, "trigger", Urgency.CRITICAL, f"Holdfast's {what} failed", lines, origin(host), now)


def serves_again(host: Host) -> Alert:
    """The resolve that goes with the daemon's `failed`."""
    lines = ("The daemon runs again and watches this host.",)
    key = f"{prefix(host)}/{FINDING}/host"
    now = host.clock.now().wall
    return notice(key, "resolve", Urgency.CRITICAL, "Holdfast's daemon runs again", lines, origin(host), now)


def started_again(host: Host, last_seen: float, how: str) -> Alert:
    """The event that the daemon ended without being asked to and runs again: nobody has to do anything now.

    last_seen: when it last noted that it lived, Unix seconds. how: how it ended, "" when that cannot be told.
    """
    now = host.clock.now().wall
    lines = (
        f"Holdfast's daemon ended without being asked to{f': {how}' if how else ''}. It runs again.",
        f"Nothing was watched for {now - last_seen:.0f} s, since {utc(last_seen)}. Runs went on.",
        "Type: journalctl -u holdfast",
    )
    key = f"{prefix(host)}/daemon-restarted/host"
    return notice(key, "event", Urgency.INFO, "Holdfast's daemon was started again", lines, origin(host), now)


def deliver(host: Host, receivers: Sequence[ReceiverSettings], alert: Alert) -> Iterator[str]:
    """Send one alert to every receiver, fallbacks included, trying again for `PATIENCE_S`. Yields who took it."""
    left = list(receivers)
    began = host.clock.now()
    number = 0
    while left:
        number += 1
        waits = [LONGEST_WAIT_S]
        for settings in tuple(left):
            delivery = outbox.attempt(host, (settings,), Attempt(0, settings.name, alert, number))
            if delivery.state is DeliveryState.SENT:
                yield settings.name
            if delivery.state is DeliveryState.RETRY:
                waits.append(delivery.after_s or 0.0)
            else:
                left.remove(settings)
        if left and host.clock.now().since(began) + min(waits) > PATIENCE_S:
            return
        if left:
            host.clock.sleep(min(waits))


def remember(host: Host, told: Sequence[str]) -> None:
    """Keep who was told. Raises FileTrouble."""
    host.files.write_atomic(FILE, json.dumps({"told": sorted(told)}) + "\n", 0o640)


def told(host: Host) -> tuple[str, ...]:
    """Who was told of a failure that nobody has resolved yet: give them to `Store.told_elsewhere`."""
    try:
        known = json.loads(host.files.read_text(FILE, 64 << 10))
        return tuple(str(name) for name in known["told"])
    except (FileTrouble, ValueError, LookupError, TypeError):
        return ()


def forget(host: Host) -> None:
    """The resolve is in the outbox. Raises FileTrouble."""
    host.files.remove(FILE)


def _read(host: Host, path: str) -> str:
    try:
        return host.files.read_text(path, 4096).strip()
    except FileTrouble:
        return ""
