"""Knock at a Unix socket as anyone may: say something, hold connections open, or flood it. Standard library only.

``knock.py say SOCKET`` sends standard input and prints what comes back. ``knock.py idle SOCKET COUNT SECONDS`` holds
connections open and says nothing. ``knock.py flood SOCKET RATE SECONDS TEXT`` connects RATE times a second, sends TEXT
on each connection, and leaves. The last two print one JSON object of counts.
"""

from __future__ import annotations

import json
import socket
import sys
import time

ANSWER_S = 20.0


def connected(path: str) -> socket.socket:
    """A connection. Raises OSError."""
    knocking = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    knocking.settimeout(ANSWER_S)
    knocking.connect(path)
    return knocking


def say(path: str) -> None:
    """Send everything from standard input, then print the answer."""
    with connected(path) as knocking:
        try:
            knocking.sendall(sys.stdin.buffer.read())
            knocking.shutdown(socket.SHUT_WR)
        except (BrokenPipeError, ConnectionResetError):
            pass  # refused before all was said; the answer may be there all the same
        try:
            while part := knocking.recv(1 << 16):
                sys.stdout.write(part.decode("utf-8", "replace"))
        except ConnectionResetError:
            pass


def idle(path: str, count: int, seconds: float) -> None:
    """Hold connections open."""
    held, refused = [], 0
    for _ in range(count):
        try:
            held.append(connected(path))
        except OSError:
            refused += 1
    time.sleep(seconds)
    print(json.dumps({"held": len(held), "refused": refused}))


def flood(path: str, rate: float, seconds: float, text: str) -> None:
    """Connect on a fixed beat."""
    done = refused = 0
    began = time.monotonic()
    due = began
    while due < began + seconds:
        try:
            with connected(path) as knocking:
                knocking.sendall(text.encode() + b"\n")
                done += 1
        except OSError:
            refused += 1
        due += 1 / rate
        time.sleep(max(0.0, due - time.monotonic()))
    print(json.dumps({"connected": done, "refused": refused, "seconds": time.monotonic() - began}))


if __name__ == "__main__":
    if sys.argv[1] == "say":
        say(sys.argv[2])
    elif sys.argv[1] == "idle":
        idle(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
    else:
        flood(sys.argv[2], float(sys.argv[3]), float(sys.argv[4]), sys.argv[5])
