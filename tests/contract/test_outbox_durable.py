"""The outbox with real files, a real server and a real SIGKILL: every state arrives, repeats are identical."""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, Any

import pytest

PROCESS = Path(__file__).with_name("outbox_process.py")
KEYS = ("k1", "k2")
KILLS = 12


class Inbox(ThreadingHTTPServer):
    """A PagerDuty that misbehaves. `taken` is every event it answered 202 to, or took without answering."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.taken: list[dict[str, Any]] = []
        self.wild: random.Random | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v2/enqueue"


class _Handler(BaseHTTPRequestHandler):
    server: Inbox

    def do_POST(self) -> None:
        event = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        wild = self.server.wild
        reply = wild.choice([202, 202, 202, 500, 429, "lost", "unheard"]) if wild else 202
        if reply in (202, "unheard"):
            self.server.taken.append(event)
        if isinstance(reply, str):
            self.close_connection = True
            return
        self.send_response(reply)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        return


@pytest.fixture
def inbox() -> Iterator[Inbox]:
    server = Inbox()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def start(tmp_path: Path, inbox: Inbox, mode: str) -> subprocess.Popen[str]:
    key = tmp_path / "key"
    key.write_text("0123456789abcdef0123456789abcdef\n")
    argv = [sys.executable, str(PROCESS), str(tmp_path / "holdfast.db"), inbox.url, str(key), mode]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)


def expect(stream: IO[str] | None, word: str) -> None:
    assert stream is not None
    assert stream.readline().strip() == word


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def finish(process: subprocess.Popen[str]) -> None:
    expect(process.stdout, "ready")
    expect(process.stdout, "done")
    assert process.wait(30) == 0
    if process.stdout is not None:
        process.stdout.close()


def test_killed_between_the_202_and_its_record_it_repeats_the_same_event(tmp_path: Path, inbox: Inbox) -> None:
    process = start(tmp_path, inbox, "hold")
    expect(process.stdout, "ready")
    expect(process.stdout, "answered")
    kill(process)
    assert len(inbox.taken) == 1
    finish(start(tmp_path, inbox, "run"))
    assert inbox.taken[1] == inbox.taken[0]
    assert sum(event == inbox.taken[0] for event in inbox.taken) == 2


@pytest.mark.parametrize("seed", [1, 2])
def test_killed_at_any_moment_with_a_wild_receiver_every_state_arrives_in_order(
    tmp_path: Path, inbox: Inbox, seed: int
) -> None:
    chance = random.Random(seed)  # noqa: S311 - a repeatable test, not a secret
    inbox.wild = random.Random(seed + 100)  # noqa: S311
    for _ in range(KILLS):
        process = start(tmp_path, inbox, "run")
        expect(process.stdout, "ready")
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(chance.uniform(0.0, 0.15))
        kill(process)
    inbox.wild = None
    finish(start(tmp_path, inbox, "run"))
    for key in KEYS:
        _check([event for event in inbox.taken if event["dedup_key"].split("/")[0] == key])


def _check(taken: list[dict[str, Any]]) -> None:
    """What one key's receiver took: the script's order, identical repeats, and its last state."""
    # An event is a trigger and its own resolve, and is repeated as a pair: its trigger stands for it here.
    units = [each for each in taken if "/event/" not in each["dedup_key"] or each["event_action"] == "trigger"]
    distinct = [event for number, event in enumerate(units) if number == 0 or event != units[number - 1]]
    triggers = [event for event in distinct if event["event_action"] == "trigger"]
    steps = [int(event["payload"]["summary"].split()[-1]) for event in triggers]
    assert steps == sorted(set(steps))
    assert {step // 4 for step in steps} == set(range(6)), "each of the six faults was told"
    last = [event for event in distinct if "/event/" not in event["dedup_key"]][-1]
    assert (last["event_action"], last["payload"]["summary"].split()[-1]) == ("trigger", "21")
    state = "closed"
    for event in (each for each in distinct if "/event/" not in each["dedup_key"]):
        assert event["event_action"] == "trigger" or state == "open", "nothing follows what was never told"
        state = "closed" if event["event_action"] == "resolve" else "open"
