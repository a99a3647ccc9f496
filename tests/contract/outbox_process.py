"""A process that pages, for the test to kill: `outbox_process.py DATABASE URL KEY_FILE run|hold`.

run: queues the script's alerts one by one and delivers until none waits, then prints "done".
hold: makes one attempt, prints "answered" and never records it.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from agent.host.real import real_host
from agent.model import Alert, Urgency
from agent.pager import outbox
from agent.pager.receivers.pagerduty import PagerDutySettings
from agent.store import Store, open_store

SCRIPT = ["trigger", "trigger", "acknowledge", "resolve"] * 5 + ["trigger", "trigger"]
KEYS = ("k1", "k2")


def alerts(number: int) -> list[Alert]:
    """The alerts of one step, the same after every restart."""
    return [
        Alert(
            f"{key}-{number:03}",
            key,
            SCRIPT[number],
            Urgency.CRITICAL,
            f"{key} {number}",
            "",
            "h",
            "host",
            "f",
            1.0,
            1.0,
        )
        for key in KEYS
    ]


def queue_next(store: Store, settings: PagerDutySettings) -> bool:
    """Queue one step; killed between the two writes it is queued again, under the same ids."""
    number = store.get("step", 0)
    if number == len(SCRIPT):
        return False
    store.commit(enqueue=outbox.address([settings], alerts(number)))
    store.set("step", number + 1)
    return True


def main() -> None:
    """Do as the arguments say."""
    database, url, key_file, mode = sys.argv[1:]
    host = real_host()
    settings = PagerDutySettings(name="pd", kind="pagerduty", routing_key_file=key_file, url=url)
    store = open_store(database, host.clock)
    print("ready", flush=True)
    more = True
    while more or store.depth():
        more = more and queue_next(store, settings)
        now = host.clock.now()
        dispatch = outbox.plan(store.outbox(), [settings], now, 120.0)
        store.begin(dispatch, now)
        for each in dispatch.attempts:
            delivery = outbox.attempt(host, [settings], each)
            if mode == "hold":
                print("answered", flush=True)
                time.sleep(600)
            store.record(each.row, replace(delivery, after_s=0.01), host.clock.now())
        time.sleep(0.005)
    store.close()
    print("done", flush=True)


if __name__ == "__main__":
    main()
