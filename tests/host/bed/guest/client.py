"""Talk to the engine from inside the host: completions, load, hung requests, a timeline. Standard library only.

``client.py get URL TIMEOUT`` and ``client.py post URL TIMEOUT`` (body on standard input) print one JSON record.
``client.py load URL RATE FILE`` and ``client.py timeline URL EVERY FILE`` append records until they are ended;
``client.py hang URL COUNT FILE`` keeps COUNT requests open. Their request body is read from standard input, too.
Times are wall-clock seconds, the same clock inside and outside the host.
"""

from __future__ import annotations

import http.client
import json
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path

MAX_IN_FLIGHT = 256
REQUEST_TIMEOUT_S = 600.0


def ask(url: str, timeout: float, body: str | None = None) -> dict[str, object]:
    """Send one request without redirects, proxies or retries; status 0 stands for no answer, with the reason."""
    parts = urllib.parse.urlsplit(url)
    record: dict[str, object] = {"at": time.time(), "status": 0, "body": "", "error": ""}
    began = time.monotonic()
    connection = http.client.HTTPConnection(parts.hostname or "127.0.0.1", parts.port or 80, timeout=timeout)
    try:
        headers = {"Content-Type": "application/json"} if body is not None else {}
        connection.request("GET" if body is None else "POST", parts.path or "/", body, headers)
        answer = connection.getresponse()
        record["body"] = answer.read().decode("utf-8", "replace")
        record["status"] = answer.status
    except (OSError, http.client.HTTPException) as error:
        record["error"] = f"{type(error).__name__}: {error}"
    finally:
        connection.close()
    record["seconds"] = time.monotonic() - began
    return record


def append(path: str, record: dict[str, object], lock: threading.Lock) -> None:
    """Add one line to the records; the answer's body stays out, only its size is kept."""
    record["body"] = len(str(record["body"]))
    with lock, Path(path).open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def every(seconds: float, action: Callable[[], None]) -> None:
    """Call ``action`` on a fixed beat, late or not, until this process is ended."""
    due = time.monotonic()
    while True:
        action()
        due += seconds
        time.sleep(max(0.0, due - time.monotonic()))


def main() -> int:
    """Do one of the things above."""
    what, url, value = sys.argv[1], sys.argv[2], float(sys.argv[3])
    if what in ("get", "post"):
        print(json.dumps(ask(url, value, None if what == "get" else sys.stdin.read())))
        return 0
    path, body, lock = sys.argv[4], sys.stdin.read() or None, threading.Lock()
    in_flight = threading.BoundedSemaphore(MAX_IN_FLIGHT)

    def one(timeout: float) -> None:
        try:
            append(path, ask(url, timeout, body), lock)
        finally:
            in_flight.release()

    def spawn(timeout: float) -> None:
        if in_flight.acquire(blocking=False):
            threading.Thread(target=one, args=(timeout,), daemon=True).start()

    if what == "load":
        every(1 / value, lambda: spawn(REQUEST_TIMEOUT_S))
    elif what == "timeline":
        every(value, lambda: spawn(max(2.0, 5 * value)))
    elif what == "hang":
        for _ in range(int(value)):
            spawn(REQUEST_TIMEOUT_S)
        time.sleep(REQUEST_TIMEOUT_S)
    return 0


if __name__ == "__main__":
    sys.exit(main())
