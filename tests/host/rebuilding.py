"""A host that builds llama.cpp for itself: serving one commit, configured for another, under Holdfast's eyes."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bed import BootedHost, builder, llama_unit, repository
from spine import Watched, installed

Boot = Callable[..., BootedHost]
RELEASES = "/opt/llama.cpp/releases"
CURRENT = "/opt/llama.cpp/current"
SERVER = f"{CURRENT}/bin/llama-server"
SOURCE = "/opt/llama.cpp/source"
RUNS = "/var/lib/holdfast-runner/runs"
BUILDS = "/var/cache/holdfast-build/chat"
STATE = "/var/lib/holdfast-runner/releases/chat.json"
TABLE = """\
gpu = false
stop_grace_s = 3

[engine.rebuild]
source = "{source}"
commit = "{commit}"
{more}
"""


@dataclass
class Box:
    """The host, the commits it can build, and the Holdfast on it."""

    host: BootedHost
    scene: Watched
    source: str
    commits: dict[str, str]
    cmake: tuple[str, ...] = ()

    def wants(self, tag: str, more: str = "", **changes: str) -> None:
        """Configure this commit (a tag's, or a hash) and reload the daemon."""
        options = "" if "cmake" in more else f"cmake = {json.dumps(list(self.cmake))}\n"
        commit = self.commits.get(tag, tag)
        self.scene.configure(engine=TABLE.format(source=self.source, commit=commit, more=options + more), **changes)

    def holdfast(self, *argv: str, timeout: float = 600) -> tuple[int, str, float]:
        """A holdfast command: its exit status, all that it said, and how long it took, seconds."""
        started = time.monotonic()
        done = self.host.run("holdfast", *argv, check=False, timeout=timeout)
        return done.returncode, done.stdout + done.stderr, time.monotonic() - started

    @property
    def serving(self) -> str:
        """The tag of the commit that answers now, as the server itself says; "" when nothing answers."""
        answer = self.scene.engine.client.get("/props", timeout=2)
        if not answer.ok:
            return ""
        said = re.fullmatch(r"b(\d+)-([0-9a-f]{7,40})", str(dict(json.loads(answer.body))["build_info"]))
        assert said, answer.body[:300]
        (tag,) = [tag for tag, commit in self.commits.items() if commit.startswith(said[2])]
        assert tag == f"b{said[1]}" or not self.cmake, (tag, said[0])
        return tag

    @property
    def release(self) -> str:
        """The name of the release that `current` points to."""
        return self.host.run("readlink", CURRENT).stdout.strip().rpartition("/")[2]

    def releases(self) -> list[str]:
        """Everything below the folder of the releases, hidden names too."""
        return sorted(self.host.run("ls", "-A", RELEASES).stdout.split())

    def transcript(self, run: str = "") -> list[dict[str, Any]]:
        """The events of a run, of the newest one unless it is named."""
        if not run:
            run = self.newest()
        text = self.host.read(f"{RUNS}/{run}.jsonl")
        return [json.loads(line) for line in text.splitlines() if line.endswith("}")]

    def newest(self) -> str:
        """The id of the newest run, "" when there is none."""
        names = self.host.run("ls", RUNS, check=False).stdout.split()
        return max(names).removesuffix(".jsonl") if names else ""

    def outcome(self, run: str = "") -> dict[str, Any]:
        """What the ledger says of the newest run's end, or of the one named."""
        wanted = run or self.scene.ledger("attempt")[-1]["run"]
        found = [record["data"] for record in self.scene.ledger("outcome") if record["run"] == wanted]
        assert len(found) == 1, (wanted, found)
        return dict(found[0])

    def steps(self, run: str = "") -> dict[str, float]:
        """How long each step of a run took, seconds."""
        began: dict[int, tuple[str, float]] = {}
        took: dict[str, float] = {}
        for event in self.transcript(run):
            if event["event"] == "step_started":
                began[event["data"]["step"]] = (event["data"]["name"], float(event["at"]))
            if event["event"] == "step_ended":
                name, at = began[event["data"]["step"]]
                took[name] = float(event["at"]) - at
        return took


def real(host: Boot, wanted: str = "b2", *, mode: str = "act", more: str = "", **boot: Any) -> Box:
    """A host with the real source and a warm ccache: b1 serves, and `wanted` is configured."""
    booted = host(tree=builder.with_llama_cpp(), **boot)
    name = _release(booted, repository.commits(repository.real())["b1"], f"cp -a {builder.RELEASE} bin")
    box = _watched(booted, repository.commits(repository.real()), builder.SOURCE, builder.CMAKE, name)
    booted.sh(
        f"mkdir -p {builder.WORK}/ccache; cp -a {builder.CCACHE}/. {builder.WORK}/ccache/; "
        f"chown -R holdfast-build: {builder.WORK}; chmod 700 {builder.WORK}"
    )
    box.wants(wanted, more, mode=mode)
    box.scene.wait_ready()
    return box


def standin(host: Boot, wanted: str = "b2", *, mode: str = "act", more: str = "", **boot: Any) -> Box:
    """A host with the stand-in's source, which builds in a second: b1 serves, and `wanted` is configured."""
    bare = repository.standin()
    booted = host(tree=builder.with_tools(), binds={bare: "/opt/bed/standin.git"}, **boot)
    clone = "git -c safe.directory='*' clone --quiet --no-hardlinks --branch b1"
    booted.sh(f"{clone} /opt/bed/standin.git {SOURCE} 2>&1")
    commit = repository.commits(bare)["b1"]
    make = (
        f"cmake -S {SOURCE} -B /tmp/b1 -DLLAMA_BUILD_NUMBER=1 -DLLAMA_BUILD_COMMIT={commit}; "
        "cmake --build /tmp/b1 --target llama-server; mv /tmp/b1/bin bin; rm -rf /tmp/b1"
    )
    box = _watched(booted, repository.commits(bare), SOURCE, (), _release(booted, commit, make))
    box.wants(wanted, more, mode=mode)
    box.scene.wait_ready()
    return box


def _release(host: BootedHost, commit: str, make: str) -> str:
    """Make a release of b1 by hand, as a person prepares a box, and the link to it; its name."""
    name = f"b1-{commit[:12]}+cpu"
    host.sh(
        f"mkdir -p {RELEASES}/{name}; cd {RELEASES}/{name}; {make}; chown -R root: {RELEASES}; "
        f"ln -s releases/{name} {CURRENT}",
        timeout=120,
    )
    return name


def _watched(host: BootedHost, commits: dict[str, str], source: str, cmake: tuple[str, ...], name: str) -> Box:
    inbox = installed(host)
    box = Box(host, Watched(host, inbox, llama_unit(host, program=SERVER)), source, commits, cmake)
    assert box.release == name
    assert box.serving == "b1"
    return box
