"""A server on loopback that a test drives connection by connection, and waiting for what must become true."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeAlias

Serve: TypeAlias = Callable[[Callable[[socket.socket], None]], str]


def serving() -> Iterator[Serve]:
    """Starts a server on loopback: each connection is handed to a function, in a thread."""
    stop = threading.Event()
    listeners: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def handle(connection: socket.socket, answer: Callable[[socket.socket], None]) -> None:
        with connection, contextlib.suppress(OSError):
            answer(connection)

    def accept(listener: socket.socket, answer: Callable[[socket.socket], None]) -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                thread = threading.Thread(target=handle, args=(connection, answer), daemon=True)
                thread.start()
                threads.append(thread)

    def start(answer: Callable[[socket.socket], None]) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listener.settimeout(0.02)
        listeners.append(listener)
        thread = threading.Thread(target=accept, args=(listener, answer), daemon=True)
        thread.start()
        threads.append(thread)
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    stop.set()
    for listener in listeners:
        listener.close()
    for thread in threads:
        thread.join(5)


def request(connection: socket.socket) -> bytes:
    """What the client asked, headers and body."""
    said = b""
    while b"\r\n\r\n" not in said and (chunk := connection.recv(65536)):
        said += chunk
    head, _, body = said.partition(b"\r\n\r\n")
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            while len(body) < int(line.split(b":")[1]):
                body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


def answer_with(data: bytes) -> Callable[[socket.socket], None]:
    """Answers every request with these bytes."""

    def answer(connection: socket.socket) -> None:
        request(connection)
        connection.sendall(data)

    return answer


def wait_until(true: Callable[[], bool]) -> None:
    """Wait until it is true; fails after ten seconds."""
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline, "it did not become true"
        time.sleep(0.02)


def assert_at_deadline(took_s: float, deadline_s: float) -> None:
    """It ended because of its deadline, not before it, and not when the other side was done. How soon is no test."""
    assert deadline_s - 0.05 <= took_s < 8
