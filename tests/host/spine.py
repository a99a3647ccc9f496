"""A host with the built package, a real llama-server as a unit and a pager inbox: what most scenes start from."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from bed import BootedHost, LlamaUnit, PagerInbox, llama_unit

REPOSITORY = Path(__file__).resolve().parents[2]
ROUTING_KEY = "R0123456789ABCDEF0123456789ABCDEF"[:32]
CANARY_PROMPT = "kanarie-4711-geheim"
"""A prompt that must appear nowhere but in the engine."""

RECEIVER = """\
[[receiver]]
name = "primary"
kind = "pagerduty"
routing_key_file = "/etc/holdfast/secrets/pagerduty"
url = "{url}/v2/enqueue"
"""
CONFIGURATION = f"""\
[autonomy]
mode = "{{mode}}"

[[engine]]
name = "chat"
kind = "llama.cpp"
url = "http://127.0.0.1:8080"
unit = "llama-server.service"
{{engine}}

{RECEIVER}{{more}}
"""


NO_REHEARSAL = """
# The tests run at night too.
[rehearsal]
by_itself = false
"""


def built_package() -> Path:
    """The package to test: HOLDFAST_DEB, or the newest one in dist/ (script/test builds it first)."""
    named = os.environ.get("HOLDFAST_DEB")
    if named:
        return Path(named)
    found = sorted(REPOSITORY.glob("dist/holdfast_*_amd64.deb"), key=lambda path: path.stat().st_mtime)
    assert found, "no package in dist/: run script/build-deb"
    return found[-1]


@dataclass
class Page:
    """One request that the pager inbox recorded."""

    at: float
    action: str
    key: str
    severity: str
    summary: str
    message: str
    status: int

    @property
    def finding(self) -> str:
        """The cause that the dedup key names."""
        return self.key.split("/")[2] if self.key.count("/") >= 2 else ""


@dataclass
class Watched:
    """An installed Holdfast that watches one real engine."""

    host: BootedHost
    inbox: PagerInbox
    engine: LlamaUnit
    configuration: dict[str, str] = field(default_factory=dict)

    def configure(self, **changes: str) -> None:
        """Write the configuration (mode, engine, more) and reload the daemon."""
        self.configuration.update(changes)
        values = {"mode": "act", "engine": "", "more": "", "url": self.inbox.url, **self.configuration}
        if "[rehearsal]" not in values["more"]:
            values["more"] += NO_REHEARSAL
        # In one step: the daemon may still be at an earlier reload, and must not meet a file it cannot read.
        self.host.write("/etc/holdfast/.new.toml", CONFIGURATION.format(**values), mode=0o640)
        self.host.sh("cd /etc/holdfast; chgrp holdfast .new.toml; mv .new.toml holdfast.toml")
        self.host.run("systemctl", "reload-or-restart", "holdfast")

    def pages(self) -> list[Page]:
        """Everything that reached the pager, in order of arrival."""
        return [_page(event) for event in self.inbox.events() if event.path.endswith("/enqueue")]

    def page(self, condition: Callable[[Page], bool], timeout: float, what: str, since: int = 0) -> Page:
        """The first page after the first `since` ones that fits. Raises BedError after `timeout` seconds."""
        return self.host.wait_for(
            lambda: next((page for page in self.pages()[since:] if condition(page)), None), timeout, what
        )

    def resolved(self, finding: str, timeout: float) -> Page:
        """The page that resolves this cause."""
        return self.page(
            lambda page: page.action == "resolve" and page.finding == finding, timeout, f"the resolve of {finding}"
        )

    def triggered(self, finding: str, timeout: float) -> Page:
        """The first page that tells this cause."""
        return self.page(
            lambda page: page.action == "trigger" and page.finding == finding, timeout, f"a page about {finding}"
        )

    def ledger(self, kind: str = "") -> list[dict[str, Any]]:
        """The runner's records, of one kind or all."""
        if not self.host.exists("/var/lib/holdfast-runner/ledger.jsonl"):
            return []
        lines = self.host.read("/var/lib/holdfast-runner/ledger.jsonl").splitlines()
        records = [json.loads(line) for line in lines]
        return [record for record in records if kind in ("", record["kind"])]

    def starts(self) -> int:
        """How many runs of ours began."""
        return len(self.ledger("attempt"))

    def incidents(self) -> list[dict[str, Any]]:
        """Every incident that the daemon remembers."""
        said = self.host.run("holdfast", "incident", "list", "--all", "--json", check=False).stdout
        return list(json.loads(said)["data"]["incidents"])

    def wait_ready(self, timeout: float = 60) -> None:
        """Until the daemon has seen the engine READY by its progress."""
        self.host.wait_for(
            lambda: "engine.progress engine:chat: READY" in self.host.journal("holdfast.service"), timeout, "READY"
        )

    def everything_we_wrote(self) -> str:
        """Store, ledger, transcripts, our journal, and every page, as one text, to look for what must not be there."""
        dump = self.host.sh(
            "for f in $(find /var/lib/holdfast /var/lib/holdfast-runner /run/holdfast /etc/holdfast -type f); do"
            " strings -a -n 4 $f 2>/dev/null || cat $f; done;"
            " journalctl --no-pager -o json -u 'holdfast*'"
        )
        return dump + "".join(event.body for event in self.inbox.events())


def installed(host: BootedHost) -> PagerInbox:
    """Install the package as apt does, with a key for the pager whose inbox is returned; nothing is configured yet."""
    host.install_deb(built_package())
    inbox = PagerInbox(host, port=9099)
    inbox.behave(202)
    host.write("/etc/holdfast/secrets/pagerduty", ROUTING_KEY + "\n", mode=0o640)
    host.sh("chgrp holdfast /etc/holdfast/secrets/pagerduty")
    return inbox


def told(host: BootedHost, more: str = "") -> Watched:
    """An installed Holdfast without an engine, whose pages arrive in an inbox. more: further configuration."""
    inbox = installed(host)
    host.write("/etc/holdfast/holdfast.toml", RECEIVER.format(url=inbox.url) + more, mode=0o640)
    host.sh("chgrp holdfast /etc/holdfast/holdfast.toml; systemctl restart holdfast")
    return Watched(host, inbox, cast(Any, None))


def watched(
    host: Callable[..., BootedHost],
    suite: str = "bookworm",
    *,
    writable: bool = False,
    mode: str = "act",
    restart: str | None = None,
    engine: str = "",
    more: str = "",
    extra_args: Sequence[str] = (),
    **unit: Any,
) -> Watched:
    """Boot, install the package as apt does, start a real engine and the daemon, and wait until it sees it READY.

    restart: the engine's `Restart=`. engine, more: lines for its table and for the end of the configuration.
    """
    booted = host(suite, writable=writable)
    inbox = installed(booted)
    scene = Watched(booted, inbox, llama_unit(booted, restart=restart, extra_args=list(extra_args), **unit))
    scene.configure(mode=mode, engine=engine, more=more)
    scene.wait_ready()
    return scene


def _page(event: Any) -> Page:
    said = event.json()
    payload = said.get("payload") or {}
    return Page(
        at=event.at,
        action=said.get("event_action", ""),
        key=said.get("dedup_key", ""),
        severity=payload.get("severity", ""),
        summary=payload.get("summary", ""),
        message=(payload.get("custom_details") or {}).get("message", ""),
        status=event.status,
    )
