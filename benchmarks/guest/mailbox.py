"""A mail server inside the host that accepts everything and notes when. Standard library only.

``mailbox.py PORT FILE``. Appends a JSON line for every mail: ``at`` (Unix seconds) and ``subject``.
"""

from __future__ import annotations

import json
import socketserver
import sys
import time
from pathlib import Path

RECORDS = Path(sys.argv[2])


class Handler(socketserver.StreamRequestHandler):
    """One SMTP dialogue, as far as a client that means well needs it (RFC 5321)."""

    def handle(self) -> None:
        """Say yes to everything."""
        self.say(220)
        while line := self.rfile.readline():
            word = line[:4].upper().strip()
            if word == b"DATA":
                self.say(354)
                self.note()
                self.say(250)
            elif word == b"QUIT":
                self.say(221)
                return
            else:
                self.say(250)

    def say(self, code: int) -> None:
        """Answer with a code."""
        self.wfile.write(f"{code} mailbox\r\n".encode("ascii"))

    def note(self) -> None:
        """Read one mail and write down when it came."""
        at, subject = time.time(), ""
        while (line := self.rfile.readline()) and line.rstrip(b"\r\n") != b".":
            if line.lower().startswith(b"subject:") and not subject:
                subject = line[8:].decode("utf-8", "replace").strip()
        with RECORDS.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"at": at, "subject": subject}) + "\n")


if __name__ == "__main__":
    socketserver.ThreadingTCPServer.allow_reuse_address = True
    socketserver.ThreadingTCPServer.daemon_threads = True
    socketserver.ThreadingTCPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
