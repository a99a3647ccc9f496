"""What is told when the daemon itself has failed, and what remains of it for the daemon's next start.

The failure is told without the store, because the store may be the reason. A small file remembers who was told, so
that the daemon can resolve the alert through its outbox once it serves again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from agent.errors import FileTrouble
from agent.host import Host
from agent.model import Alert, DeliveryState, Urgency
from agent.pager import outbox
from agent.pager.message import Origin, notice
from agent.plugin import ReceiverSettings
from agent.store import Attempt

FINDING = "daemon-failed"
FILE = "/var/lib/holdfast/daemon-failed.json"
"""Who was told of a failure; beside the store, in the daemon's state directory."""
MACHINE_ID = "/etc/machine-id"
HOST_NAME = "/proc/sys/kernel/hostname"
ROUNDS = 8
"""How often each receiver is tried: with waits of 5 s doubling to 60 s, about four minutes."""
LONGEST_WAIT_S = 60.0


def origin(host: Host) -> Origin:
    """This host's name, "this host" when it has none that can be read."""
    return Origin(_read(host, HOST_NAME) or "this host")


def prefix(host: Host) -> str:
    """The beginning of every dedup key: holdfast and the first eight digits of the machine id."""
    return f"holdfast/{(_read(host, MACHINE_ID) or 'unknown')[:8]}"


def failed(host: Host, why: str) -> Alert:
    """The alert that the daemon has failed. `why` is systemd's account of it."""
    lines = (
        "Holdfast's daemon failed: nothing watches this host.",
        f"systemd says: {why}",
        "Tried: systemd's restarts. Left: a person.",
        "Type: sudo systemctl status holdfast; sudo holdfast doctor",
    )
    now = host.clock.now().wall
    return notice(_key(host), "trigger", Urgency.CRITICAL, "Holdfast's daemon failed", lines, origin(host), now)


def serves_again(host: Host) -> Alert:
    """The resolve that goes with `failed`."""
    lines = ("The daemon runs again and watches this host.",)
    now = host.clock.now().wall
    return notice(_key(host), "resolve", Urgency.CRITICAL, "Holdfast's daemon runs again", lines, origin(host), now)


def deliver(host: Host, receivers: Sequence[ReceiverSettings], alert: Alert, rounds: int = ROUNDS) -> list[str]:
    """Send one alert to every receiver, fallbacks included, trying again in rounds. Returns who took it."""
    took: list[str] = []
    open_ones = list(receivers)
    for number in range(1, rounds + 1):
        waits = []
        for settings in tuple(open_ones):
            delivery = outbox.attempt(host, (settings,), Attempt(0, settings.name, alert, number))
            if delivery.state is DeliveryState.SENT:
                took.append(settings.name)
            if delivery.state is DeliveryState.RETRY:
                waits.append(delivery.after_s or 0.0)
            else:
                open_ones.remove(settings)
        if not open_ones or number == rounds:
            break
        host.clock.sleep(min([LONGEST_WAIT_S, *waits]))
    return took


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


def _key(host: Host) -> str:
    return f"{prefix(host)}/{FINDING}/host"


def _read(host: Host, path: str) -> str:
    try:
        return host.files.read_text(path, 4096).strip()
    except FileTrouble:
        return ""
