"""Ask the engine things from inside the host's network, once or in the background."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bed.host import BootedHost

SCRIPT = Path(__file__).with_name("guest") / "client.py"
FOLDER = "/var/lib/bed"
_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back; status 0 means nothing did, and error says why. Times in seconds, ``at`` since the epoch."""

    at: float
    status: int
    body: str
    error: str
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether it was answered with 200."""
        return self.status == 200

    def json(self) -> object:
        """Return the body as JSON."""
        return json.loads(self.body)


@dataclass(frozen=True, slots=True)
class Record:
    """One background request: when it was sent, its status (0: no answer), its duration, its answer's size."""

    at: float
    status: int
    seconds: float
    size: int
    error: str


class Background:
    """Requests that go on in a unit of their own inside the host; their records outlive a boot if the disk does."""

    def __init__(self, host: BootedHost, unit: str, path: str) -> None:
        self._host = host
        self.unit = unit
        self.path = path

    def records(self) -> list[Record]:
        """Return the requests that ended so far, in the order they were sent."""
        lines = self._host.run("cat", self.path, check=False).stdout.splitlines()
        parsed = [json.loads(line) for line in lines if line.endswith("}")]
        return sorted((Record(r["at"], r["status"], r["seconds"], r["body"], r["error"]) for r in parsed),
                      key=lambda record: record.at)  # fmt: skip

    def successes(self) -> list[float]:
        """Return when requests succeeded (the moment they were answered)."""
        return sorted(record.at + record.seconds for record in self.records() if record.status == 200)

    def longest_gap(self, since: float, until: float) -> float:
        """Return the longest time within the window in which nothing succeeded, in seconds."""
        inside = [at for at in self.successes() if since <= at <= until]
        moments = [since, *inside, until]
        return max(after - before for before, after in itertools.pairwise(moments))

    def stop(self) -> None:
        """End it, dropping its open requests."""
        if self._host.running:
            self._host.run("systemctl", "kill", "--signal=SIGKILL", self.unit, check=False)
            self._host.run("systemctl", "stop", self.unit, check=False)


class Client:
    """Requests to one port of the host."""

    def __init__(self, host: BootedHost, port: int = 8080) -> None:
        self.host = host
        self.base = f"http://127.0.0.1:{port}"

    def get(self, path: str, timeout: float = 5) -> Answer:
        """GET a path."""
        return self._one("get", path, timeout, None)

    def post(self, path: str, body: object, timeout: float = 5) -> Answer:
        """POST JSON to a path."""
        return self._one("post", path, timeout, json.dumps(body))

    def completion(self, prompt: str | list[int] = "hello", n: int = 1, timeout: float = 10) -> Answer:
        """Ask for ``n`` tokens, whatever the model would rather do."""
        return self.post("/completion", completion_body(prompt, n), timeout)

    @contextlib.contextmanager
    def load(self, rate: float, prompt: str | list[int] = "hello", n: int = 16) -> Iterator[Background]:
        """Ask for completions at ``rate`` per second, not waiting for answers (256 open at most)."""
        with self._background("load", "/completion", rate, completion_body(prompt, n)) as background:
            yield background

    @contextlib.contextmanager
    def hung(self, count: int, prompt: str | list[int] = "hello", n: int = 1) -> Iterator[Background]:
        """Send ``count`` completions at once and wait for none: with a wedged engine they pile up."""
        with self._background("hang", "/completion", count, completion_body(prompt, n)) as background:
            yield background

    @contextlib.contextmanager
    def timeline(self, every: float = 0.2, path: str | None = None) -> Iterator[Background]:
        """Probe on a fixed beat, with a one-token completion or a GET of ``path``; each has 5 beats, 2 s at least."""
        body = None if path else completion_body("hello", 1)
        with self._background("timeline", path or "/completion", every, body) as background:
            yield background

    def _one(self, what: str, path: str, timeout: float, body: str | None) -> Answer:
        self._install()
        done = self.host.run(
            "python3", "-IS", f"{FOLDER}/client.py", what, self.base + path, f"{timeout:g}", input=body or "",
            timeout=timeout + 20,
        )  # fmt: skip
        return Answer(**json.loads(done.stdout))

    @contextlib.contextmanager
    def _background(self, what: str, path: str, value: float, body: dict[str, object] | None) -> Iterator[Background]:
        self._install()
        unit = f"bed-{what}-{next(_numbers)}"
        records, request = f"{FOLDER}/{unit}.jsonl", f"{FOLDER}/{unit}.body"
        self.host.write(request, json.dumps(body) if body else "")
        self.host.run(
            "systemd-run", "--quiet", "--collect", f"--unit={unit}", f"--property=StandardInput=file:{request}",
            "python3", "-IS", f"{FOLDER}/client.py", what, self.base + path, f"{value:g}", records,
        )  # fmt: skip
        background = Background(self.host, unit, records)
        try:
            yield background
        finally:
            background.stop()

    def _install(self) -> None:
        if not self.host.exists(f"{FOLDER}/client.py"):
            self.host.push(SCRIPT, f"{FOLDER}/client.py")


def completion_body(prompt: str | list[int], n: int) -> dict[str, object]:
    """Return the request for ``n`` tokens, no more and no fewer, never from the prompt cache."""
    return {"prompt": prompt, "n_predict": n, "ignore_eos": True, "cache_prompt": False}


def long_prompt(tokens: int) -> list[int]:
    """Return a prompt of so many tokens, as token numbers, for a long prefill. No two are alike in their start."""
    return [3 + (next(_numbers) * 7 + index * 31) % 250 for index in range(tokens)]
