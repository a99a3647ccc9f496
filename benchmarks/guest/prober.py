"""One patient user inside the host: a one-token completion at a time, for ever. Standard library only.

``prober.py URL FILE``. Appends a JSON line for every request: ``at`` (sent, Unix seconds), ``seconds``, ``ok``. Never
more than one request is open, because a pile of hung requests changes what a frozen server still answers.
"""

from __future__ import annotations

import http.client
import json
import sys
import time
import urllib.parse
from pathlib import Path

TIMEOUT_S = 1.0
PAUSE_S = 0.1
BODY = json.dumps({"prompt": "hello", "n_predict": 1, "ignore_eos": True, "cache_prompt": False})


def answered(url: str) -> bool:
    """Whether one completion came back in time."""
    parts = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "127.0.0.1", parts.port or 80, timeout=TIMEOUT_S)
    try:
        connection.request("POST", "/completion", BODY, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read()
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    return answer.status == 200


def main() -> None:
    """Probe until this process is ended."""
    url, path = sys.argv[1], Path(sys.argv[2])
    while True:
        at, began = time.time(), time.monotonic()
        ok = answered(url)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"at": at, "seconds": time.monotonic() - began, "ok": ok}) + "\n")
        time.sleep(PAUSE_S)


if __name__ == "__main__":
    main()
