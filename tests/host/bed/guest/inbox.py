"""A pager's address inside the host: records every request, answers as told. Standard library only.

``inbox.py PORT RECORDS BEHAVIOUR``. BEHAVIOUR is a JSON file, read for every request (missing: 200 for all):

    {"replies": [503, 503, 202], "retry_after": 5, "hang_s": 0, "drop": false, "body": "{}"}

``replies`` are used up one by one, the last for all that follow; a changed file starts them anew. ``retry_after``
goes with every status of 400 and above. ``drop`` closes the connection without an answer. A request is on the
disk before it is answered.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Inbox(ThreadingHTTPServer):
    """The server and its memory of which reply is next."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, port: int, records: str, behaviour: str) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.records = Path(records)
        self.behaviour = Path(behaviour)
        self.lock = threading.Lock()
        self.text = ""
        self.used = 0
        self.number = 0

    def plan(self) -> dict[str, Any]:
        """Return what to do with this request; call it with the lock held."""
        try:
            text = self.behaviour.read_text(encoding="utf-8")
        except FileNotFoundError:
            text = "{}"
        if text != self.text:
            self.text, self.used = text, 0
        plan: dict[str, Any] = json.loads(text)
        replies = plan.get("replies") or [200]
        plan["status"] = replies[min(self.used, len(replies) - 1)]
        self.used += 1
        return plan


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Inbox
    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        """Record, then do as told."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode("utf-8", "replace")
        with self.server.lock:
            plan = self.server.plan()
            self.server.number += 1
            record = {
                "n": self.server.number, "at": time.time(), "method": self.command, "path": self.path,
                "headers": {name.lower(): value for name, value in self.headers.items()}, "body": body,
                "status": 0 if plan.get("drop") else plan["status"],
            }  # fmt: skip
            with self.server.records.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
                file.flush()
                os.fsync(file.fileno())
        time.sleep(float(plan.get("hang_s") or 0))
        self.close_connection = True
        if plan.get("drop"):
            return
        status, reply = int(plan["status"]), str(plan.get("body", "{}")).encode()
        self.send_response(status)
        if status >= 400 and plan.get("retry_after") is not None:
            self.send_header("Retry-After", str(plan["retry_after"]))
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(reply)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(reply)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = answer  # noqa: N815 (the base class looks for these)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's own name)
        """Stay quiet; the records say it all."""


if __name__ == "__main__":
    Inbox(int(sys.argv[1]), sys.argv[2], sys.argv[3]).serve_forever()
