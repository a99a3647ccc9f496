"""The users of the engine: one asks for a few tokens every second, and notes what came."""

from __future__ import annotations

import http.client
import json
import queue
import threading
import time
from dataclasses import dataclass

EVERY_S = 1.0
PATIENCE_S = 3.0
"""How long a user waits for an answer."""
PROMPT = "a prompt that must appear nowhere but in the engine"


@dataclass(frozen=True)
class Answer:
    """What one request got, and when (Unix seconds); no tokens: none within the user's patience."""

    at: float
    tokens: int
    took_s: float


class Users:
    """`answers` yields every request's end, in order."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._stop = threading.Event()
        self.answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._ask_on, name="users", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ask no more."""
        self._stop.set()
        self._thread.join(PATIENCE_S + 1)

    def _ask_on(self) -> None:
        while not self._stop.is_set():
            started = time.monotonic()
            tokens = completion(self._port, PATIENCE_S)
            self.answers.put(Answer(time.time(), tokens, time.monotonic() - started))
            self._stop.wait(EVERY_S)


def completion(port: int, timeout_s: float) -> int:
    """The number of tokens that a real completion brought, 0 for none."""
    said = ask(port, "POST", "/completion", timeout_s, {"prompt": PROMPT, "n_predict": 8})
    return int(said.get("tokens_predicted") or 0) if isinstance(said, dict) else 0


def ask(port: int, method: str, path: str, timeout_s: float, body: object = None) -> object:
    """One request to the engine: the answer's JSON, or None when there was no answer with status 200 in time."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        connection.request(method, path, None if body is None else json.dumps(body))
        reply = connection.getresponse()
        return json.loads(reply.read()) if reply.status == 200 else None
    except (OSError, ValueError, http.client.HTTPException):
        return None
    finally:
        connection.close()
