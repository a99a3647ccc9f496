"""A stand-in for llama-server: `python -m demo.engine --port PORT`. It counts words instead of running a model.

Built as llama-server is: HTTP threads answer `/health` and `/props` by themselves; everything else is a task for the
one inference thread, the main one. SIGUSR1 wedges that thread for real, in a lock that nobody will ever release: from
then on it does not run, `/health` still says 200, and SIGTERM is ignored, because only the main thread would obey it.
"""

from __future__ import annotations

import argparse
import json
import queue
import signal
import threading
import time
from concurrent.futures import Future
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SLOTS = 2
TOKEN_S = 0.02
"""How long one token takes: a small model on a good day."""

Task = tuple[str, dict[str, Any], "Future[Any]"]


class Engine(ThreadingHTTPServer):
    """The HTTP side: it queues tasks and waits for the inference thread."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self.generated = 0

    def ask(self, what: str, body: dict[str, Any]) -> Any:
        """What the inference thread answers, however long it takes."""
        answer: Future[Any] = Future()
        self.tasks.put((what, body, answer))
        return answer.result()

    def infer(self) -> None:
        """The inference loop, until None comes. Runs in the main thread."""
        number = 0
        while (task := self.tasks.get()) is not None:
            what, body, answer = task
            if what == "slots":
                answer.set_result([{"id": slot, "n_ctx": 512, "is_processing": False} for slot in range(SLOTS)])
                continue
            number += 1
            tokens = max(1, min(64, int(body.get("n_predict") or 8)))
            started = time.monotonic()
            for _ in range(tokens):
                time.sleep(TOKEN_S)
                self.generated += 1
            took_ms = (time.monotonic() - started) * 1000
            answer.set_result({
                "content": "".join(f" word{each}" for each in range(tokens)),
                "id_slot": number % SLOTS, "stop_type": "limit", "tokens_predicted": tokens, "tokens_evaluated": 1,
                "timings": {"predicted_n": tokens, "predicted_ms": took_ms},
            })  # fmt: skip


class Handler(BaseHTTPRequestHandler):
    """One request, in a thread of its own."""

    server: Engine
    protocol_version = "HTTP/1.1"

    def version_string(self) -> str:
        """What llama-server calls itself."""
        return "llama.cpp"

    def do_GET(self) -> None:
        """Say how the server is; slots are known to the inference thread only."""
        if self.path == "/health":
            self._send({"status": "ok"})
        elif self.path == "/props":
            props = {"build_info": "stand-in", "model_path": "words.gguf", "total_slots": SLOTS, "is_sleeping": False}
            self._send(props)
        elif self.path == "/slots":
            self._send(self.server.ask("slots", {}))
        elif self.path == "/metrics":
            text = f"llamacpp:tokens_predicted_total {self.server.generated}\nllamacpp:requests_processing 0\n"
            self._send(text.encode(), "text/plain")
        else:
            self._send({"error": {"code": 404, "message": "File Not Found"}}, status=404)

    def do_POST(self) -> None:
        """Generate."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path == "/completion":
            self._send(self.server.ask("completion", json.loads(body)))
        else:
            self._send({"error": {"code": 404, "message": "File Not Found"}}, status=404)

    def _send(self, said: Any, kind: str = "application/json", status: int = 200) -> None:
        data = said if isinstance(said, bytes) else json.dumps(said).encode()
        self.close_connection = True
        try:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(data)
        except ConnectionError:
            pass  # whoever asked has given up

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's own name
        """Stay quiet."""


def _wedge(*_: object) -> None:
    """Stop the inference thread for good, in a lock, as a hung driver call would."""
    forever = threading.Lock()
    forever.acquire()
    while True:
        forever.acquire()


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    engine = Engine(parser.parse_args().port)
    signal.signal(signal.SIGUSR1, _wedge)
    signal.signal(signal.SIGTERM, lambda *_: engine.tasks.put(None))
    threading.Thread(target=engine.serve_forever, name="http", daemon=True).start()
    engine.infer()


if __name__ == "__main__":
    main()
