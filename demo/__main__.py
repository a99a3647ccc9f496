"""Wedges an engine and watches the product put it right: `python -m demo DIRECTORY`, an empty one.

Every line of the timeline is printed because the event was seen: in the daemon's store, in the runner's transcript,
in the pager's inbox, at the engine. Ends with 0 only if the incident was resolved and a completion came after the
repair; otherwise it says what is missing and ends with 1.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from agent.cli._main import main as holdfast
from agent.cli._session import Session
from agent.config import CONFIG_FILE
from agent.errors import StoreError
from agent.host import process
from agent.inspector import SOCKET as INSPECTOR
from agent.ledger import DIRECTORY as LEDGER
from agent.model import Phase, Transition, Verdict
from agent.protocol import Event
from agent.runbook import SHIPPED
from agent.runs import SOCKET as RUNNER
from agent.store import PATH as STORE
from agent.store import ReadOnlyStore, open_read_only
from demo import timeline
from demo.host import demo_host, place, python
from demo.inbox import Inbox
from demo.manager import Manager
from demo.timeline import Timeline
from demo.users import PROMPT, Users, ask, completion

UNIT = "llama-server.service"
SUBJECT = "engine:chat"
READY_S = 30.0
"""How long daemon and engine may take to be there."""
RESOLVED_S = 60.0
"""How long the whole repair may take."""
LOOK_S = 0.1

CONFIGURATION = """\
[autonomy]
mode = "act"

[daemon]
metrics_listen = "off"

[[engine]]
name = "chat"
kind = "llama.cpp"
url = "http://127.0.0.1:{port}"
unit = "{unit}"
gpu = false

[[receiver]]
name = "primary"
kind = "pagerduty"
routing_key_file = "/etc/holdfast/secrets/pagerduty"
url = "{url}"
"""

Found = TypeVar("Found")


class Missing(Exception):
    """Something that had to happen did not."""


class Demo:
    """Everything that runs while the demonstration does."""

    def __init__(self, root: Path, line: Timeline) -> None:
        self._root = root
        self._line = line
        self._host = demo_host(root)
        self._port = _free_port()
        self._inbox = Inbox()
        self._prepare()
        self._manager = Manager(root)
        self._users: Users | None = None
        self._told: set[str] = set()
        self._store: ReadOnlyStore | None = None
        self.pages: list[dict[str, Any]] = []
        self.served_at: float | None = None
        self._waiting = False

    def start(self) -> None:
        """The engine, the product, and a first completion. Raises Missing."""
        manager, root = self._manager, str(self._root)
        manager.add(UNIT, python("demo.engine", "--port", str(self._port)))
        manager.add("holdfast.service", python("demo.service", "daemon", root))
        manager.activate(RUNNER, python("demo.service", "runner", root))
        manager.activate(INSPECTOR, python("demo.service", "inspector", root))
        manager.start(UNIT)
        _until(lambda: ask(self._port, "GET", "/health", 1.0), READY_S, "the engine does not answer")
        tokens = _until(lambda: completion(self._port, 5.0), READY_S, "the engine generates nothing")
        self._line.say(f"engine   a stand-in for llama-server, pid {manager.main_pid(UNIT)}: {tokens} tokens came")
        manager.start("holdfast.service")
        reason = _until(self._ready, READY_S, "the daemon does not see the engine ready")
        self._line.say(f"daemon   the real one, pid {manager.main_pid('holdfast.service')}; chat is {reason}")
        self._users = Users(self._port)
        self._line.say()

    def wedge(self) -> None:
        """Stop the engine's inference thread for good, and see that it has stopped. Raises Missing."""
        pid = self._manager.main_pid(UNIT)
        self._manager.signal(UNIT, signal.SIGUSR1)
        self._line.began = time.time()
        _until(lambda: self._still(pid), 5.0, "the inference thread still runs")
        if ask(self._port, "GET", "/health", 2.0) is None:
            raise Missing("/health does not answer, so this is no wedge")
        words = f"the inference thread of pid {pid} has stopped for good; /health still answers 200"
        self._line.at(self._line.began, "wedge", words)

    def follow(self) -> None:
        """Print what happens until the incident is resolved and users are served. Raises Missing."""
        until = time.monotonic() + RESOLVED_S
        while time.monotonic() < until:
            for at, what, text in sorted(self._news()):
                self._line.at(at, what, text)
            if not self.missing():
                return
            time.sleep(LOOK_S)
        raise Missing("; ".join(self.missing()))

    def missing(self) -> list[str]:
        """What has not been seen yet."""
        incidents = self._open_store().load_incidents(open_only=False)
        cured = [each for each in incidents if each.finding == "engine-wedged" and each.subject == SUBJECT]
        actions = [event["event_action"] for event in self.pages if event["dedup_key"].endswith(SUBJECT)]
        seen = {
            "the cause was not found": bool(cured),
            "the runner did not run": bool(cured and cured[0].runs),
            "the incident is not resolved": bool(cured) and all(each.phase is Phase.RESOLVED for each in cured),
            "no page came": "trigger" in actions,
            "the page was not resolved": "resolve" in actions,
            "no completion after the repair": self.served_at is not None,
            "the users' prompt is in what the product wrote": not self._prompt_found(),
        }
        return [words for words, so in seen.items() if not so]

    def show(self, *words: str) -> int:
        """Run the real command line on this host; its exit code."""
        session = Session(make_host=lambda: self._host)
        return holdfast(words, session)

    def close(self) -> None:
        """End everything."""
        if self._users is not None:
            self._users.close()
        self._manager.close()

    # seeing

    def _news(self) -> Iterator[tuple[float, str, str]]:
        """Everything new since the last look: Unix seconds, what it is about, a line."""
        for transition in self._transitions():
            said = timeline.of_transition(transition)
            if said is None:
                continue
            yield transition.at, *said
            incident = self._open_store().incident(transition.incident)
            if transition.kind == "opened" and incident is not None:
                yield transition.at, "evidence", incident.evidence
        for event in self._events():
            said = timeline.of_event(event)
            if said is not None:
                yield event.at, *said
        for page in _all(self._inbox.events):
            self.pages.append(page)
            yield time.time(), "page", timeline.of_page(page)
        for answer in _all(self._users.answers) if self._users is not None else ():
            if answer.tokens and self._waiting:
                self._waiting, self.served_at = False, answer.at
                yield answer.at, "tokens", f"a user's request: {answer.tokens} tokens in {answer.took_s:.1f} s"
            elif not answer.tokens and not self._waiting:
                self._waiting, self.served_at = True, None
                yield answer.at, "users", f"no token within {answer.took_s:.0f} s"

    def _transitions(self) -> list[Transition]:
        found = [each for each in self._open_store().recent_transitions()[::-1] if each.id not in self._told]
        self._told |= {each.id for each in found}
        return found

    def _events(self) -> Iterator[Event]:
        for path in sorted(place(self._root, f"{LEDGER}/runs").glob("*.jsonl")):
            for text in path.read_text(encoding="utf-8").split("\n")[:-1]:
                event = Event.model_validate_json(text)
                if (key := f"{event.id}/{event.seq}") not in self._told:
                    self._told.add(key)
                    yield event

    def _open_store(self) -> ReadOnlyStore:
        if self._store is None:
            self._store = open_read_only(place(self._root, STORE))
        return self._store

    def _ready(self) -> str:
        try:
            result = self._open_store().load_results().get(("engine.progress", SUBJECT))
        except StoreError:
            self._store = None
            return ""
        if result is None or result.verdict not in (Verdict.READY, Verdict.BUSY):
            return ""
        return f"{result.verdict}: {result.summary}"

    def _still(self, pid: int) -> bool:
        """Whether the process's main thread did not run at all for half a second."""
        before = process.threads(self._host, pid, only_main=True)
        time.sleep(0.5)
        return process.threads(self._host, pid, only_main=True) == before

    def _prompt_found(self) -> bool:
        """Whether store, ledger, transcripts, logs or pages hold what the users asked."""
        written = (path.read_bytes() for path in self._root.rglob("*") if path.is_file())
        return any(PROMPT.encode() in each for each in written) or PROMPT in json.dumps(self.pages)

    def _prepare(self) -> None:
        """Configuration, secret and runbooks, as the package would install them."""
        os.umask(0o022)
        files = self._host.files
        for folder in ("/etc/holdfast/secrets", "/var/lib/holdfast", "/run/holdfast", "/usr/share/holdfast"):
            files.mkdir(folder)
        shutil.copytree(Path(__file__).parents[1] / "runbooks", place(self._root, SHIPPED), copy_function=shutil.copy)
        files.write_atomic("/etc/holdfast/secrets/pagerduty", "0" * 32 + "\n", 0o600)
        settings = CONFIGURATION.format(port=self._port, unit=UNIT, url=self._inbox.url)
        files.write_atomic(CONFIG_FILE, settings)


def _until(ask_it: Callable[[], Found], within_s: float, otherwise: str) -> Found:
    """The first answer that is true. Raises Missing."""
    until = time.monotonic() + within_s
    while True:
        found = ask_it()
        if found:
            return found
        if time.monotonic() >= until:
            raise Missing(f"{otherwise} (waited {within_s:.0f} s)")
        time.sleep(LOOK_S)


def _all(source: queue.SimpleQueue[Found]) -> Iterator[Found]:
    while not source.empty():
        yield source.get()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _terminated(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signal module's contract
    raise SystemExit(128 + number)


def main() -> int:
    """The whole demonstration; its exit code."""
    if os.geteuid() == 0:
        sys.stderr.write("the demonstration needs no root and refuses it: start it with script/demo\n")
        return 77
    signal.signal(signal.SIGTERM, _terminated)
    root, line = Path(sys.argv[1]).resolve(), Timeline()
    demo = Demo(root, line)
    try:
        demo.start()
        demo.wedge()
        demo.follow()
        line.say("\nThe last page, as it reached the phone:\n", "bold")
        last = [page["payload"] for page in demo.pages if page["event_action"] == "trigger"][-1]
        for text in (last["summary"], "", *last["custom_details"]["message"].splitlines()):
            line.say(f"    {text}")
        line.say("\n$ holdfast status\n", "bold")
        demo.show("status")
        line.say(
            "\nThe incident is resolved and the users have their tokens; their prompt was written nowhere.",
            "bold green",
        )
    except Missing as missing:
        line.say(f"\nmissing: {missing}", "bold red")
        line.say(f"\nwhat the daemon and the runner wrote last:\n{_last_words(root)}")
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        demo.close()
    return 0


def _last_words(root: Path) -> str:
    return "\n".join(f"    {text}" for text in (root / "log.txt").read_text("utf-8", "replace").splitlines()[-30:])


if __name__ == "__main__":
    sys.exit(main())
