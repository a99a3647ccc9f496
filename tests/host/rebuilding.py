"""A host that builds llama.cpp for itself: serving one commit, configured for another, under Holdfast's eyes."""

from __future__ import annotations

import contextlib
import json
import posixpath
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from bed import BootedHost, builder, llama_unit, repository
from bed.builder import WORK
from cutting import GATE, GATE_SCRIPT, holder, in_flight
from spine import Watched, installed

Boot = Callable[..., BootedHost]
RELEASES = "/opt/llama.cpp/releases"
CURRENT = "/opt/llama.cpp/current"
SERVER = f"{CURRENT}/bin/llama-server"
SOURCE = "/opt/llama.cpp/source"
RUNS = "/var/lib/holdfast-runner/runs"
BUILDS = posixpath.dirname(WORK)
STATE = "/var/lib/holdfast-runner/releases/chat.json"
TABLE = """\
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

    def compiled(self) -> tuple[int, int]:
        """How many objects were compiled here, and how many came from ccache."""
        said = self.host.sh(f"CCACHE_DIR={WORK}/ccache ccache --print-stats")
        counts = {name: int(number) for name, _, number in (line.partition("\t") for line in said.splitlines())}
        return counts["cache_miss"], counts["direct_cache_hit"] + counts["preprocessed_cache_hit"]

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


def real(
    host: Boot, wanted: str = "b2", *, mode: str = "act", more: str = "", writable: bool = False, **unit: Any
) -> Box:
    """A host with the real source and a warm ccache: b1 serves, and `wanted` is configured."""
    booted = host(tree=builder.with_llama_cpp(), writable=writable)
    name = _release(booted, repository.commits(repository.real())["b1"], f"cp -a {builder.RELEASE} bin")
    box = _watched(booted, repository.commits(repository.real()), builder.SOURCE, builder.CMAKE, name, unit)
    booted.sh(
        f"mkdir -p {WORK}/ccache; cp -a {builder.CCACHE}/. {WORK}/ccache/; "
        f"CCACHE_DIR={WORK}/ccache ccache --zero-stats >/dev/null; "
        f"chown -R holdfast-build: {WORK}; chmod 700 {WORK}"
    )
    box.wants(wanted, more, mode=mode)
    box.scene.wait_ready()
    return box


def standin(
    host: Boot, wanted: str = "b2", *, mode: str = "act", more: str = "", writable: bool = False, **unit: Any
) -> Box:
    """A host with the stand-in's source, which builds in a second: b1 serves, and `wanted` is configured."""
    bare = repository.standin()
    booted = host(tree=builder.with_tools(), binds={bare: "/opt/bed/standin.git"}, writable=writable)
    clone = "git -c safe.directory='*' clone --quiet --no-hardlinks --branch b1"
    booted.sh(f"{clone} /opt/bed/standin.git {SOURCE} 2>&1")
    commit = repository.commits(bare)["b1"]
    make = (
        f"cmake -S {SOURCE} -B /tmp/b1 -DLLAMA_BUILD_NUMBER=1 -DLLAMA_BUILD_COMMIT={commit}; "
        "cmake --build /tmp/b1 --target llama-server; mv /tmp/b1/bin bin; rm -rf /tmp/b1"
    )
    box = _watched(booted, repository.commits(bare), SOURCE, (), _release(booted, commit, make), unit)
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


def _watched(
    host: BootedHost, commits: dict[str, str], source: str, cmake: tuple[str, ...], name: str, unit: dict[str, Any]
) -> Box:
    inbox = installed(host)
    box = Box(host, Watched(host, inbox, llama_unit(host, program=SERVER, **unit)), source, commits, cmake)
    assert box.release == name
    assert box.serving == "b1"
    return box


# --- cutting a run off ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Place:
    """Somewhere in a run of rebuild-llama-cpp.

    step: what its step uses. says: what else its transcript says there. file: what makes it stand still there while it
    exists, "" where it is cut as soon as it says so. calls: the command that is held instead (see cutting). after: the
    step at whose start the gate is closed, where an earlier one would stand at it.
    """

    name: str
    step: str
    file: str = ""
    says: str = ""
    calls: str = ""
    after: str = ""

    @property
    def nothing_is_switched(self) -> bool:
        """Whether the old release is still in its place there."""
        return self.step.startswith("build.") or self.step == "release.install"


COMPILING, LINKING, ASKED = "/run/bed-compiling", "/run/bed-linking", "/run/bed-asked"
GATES = (COMPILING, LINKING, ASKED, GATE, f"{GATE}.reached")
PLACES = (
    Place("checking", "build.check"),
    Place("exporting", "build.export"),
    Place("compiling", "build.compile", file=COMPILING),
    Place("linking", "build.compile", file=LINKING),
    Place("proving the new binary", "build.prove", file=ASKED),
    Place("installing", "release.install", calls="sync --file-system"),
    Place("switching", "release.switch", calls=f"ln --symbolic --force --no-target-directory -- {RELEASES}/b2"),
    Place("between switch and restart", "release.restart", calls="systemctl stop --no-block llama-server"),
    Place(
        "starting the new one",
        "release.restart",
        file=ASKED,
        says="llama-server.service has started or failed",
        after="release.switch",
    ),
    Place("proving tokens", "engine.prove", file=ASKED, after="release.switch"),
    Place("keeping", "release.keep", calls="rm --recursive --force --one-file-system", after="engine.prove"),
)


def prepare(box: Box) -> None:
    """Put the gates in place at which a run can be held."""
    for name in ("systemctl", "sync", "ln", "rm"):
        box.host.write(f"/usr/local/sbin/{name}", GATE_SCRIPT, 0o755)


@contextlib.contextmanager
def standing_at(box: Box, place: Place) -> Iterator[tuple[str, int]]:
    """A run by hand that stands at this place: its id, and its process numbered as on this machine."""
    host = box.host
    gate, words = (GATE, place.calls) if place.calls else (place.file, "")
    if gate and not place.after:
        host.write(gate, words)
    before = box.newest()
    asked = host.popen("holdfast", "run", "rebuild-llama-cpp", "--engine", "chat", "--force")
    run = host.wait_for(lambda: (begun := in_flight(host)) != before and begun, 60, "a run", every=0.01)
    process = host.outer_pid(int(holder(host)["pid"]))
    transcript = host.root / f"{RUNS}/{run}.jsonl".lstrip("/")

    def at(step: str, says: str = "") -> bool:
        lines = transcript.read_text(encoding="utf-8").splitlines()
        assert '"event":"ended"' not in lines[-1], lines[-1]
        began = [index for index, line in enumerate(lines) if "step_started" in line and f'"{step}"' in line]
        return bool(began) and any(says in line for line in lines[began[0] :])

    try:
        if place.after:
            host.wait_for(lambda: at(place.after), 120, place.after, every=0.001)
            (host.root / gate.lstrip("/")).write_text(words, encoding="utf-8")
        host.wait_for(lambda: at(place.step, place.says), 120, f"the run to stand at {place.name}", every=0.001)
        if place.calls:
            host.wait_for(lambda: host.exists(f"{GATE}.reached"), 60, f"the run to call {place.calls}")
        elif place.file in (COMPILING, LINKING):
            name = place.file.removeprefix("/run/bed-")
            waits = f"pgrep -f '^sh .*wait[.]sh {name}$'"
            host.wait_for(lambda: host.run("sh", "-c", waits, check=False).stdout, 60, f"the build to be {name}")
        elif place.file:
            host.wait_for(lambda: _held(host), 60, "the new binary to be asked")
        yield run, process
    finally:
        if host.running:
            host.sh(f"rm -f {' '.join(GATES)}")
        with contextlib.suppress(subprocess.TimeoutExpired):
            asked.communicate(timeout=60)


def _held(host: BootedHost) -> bool:
    """Whether a program of the stand-in waits at its gate: it has not read the library's options yet."""
    found = host.run("pgrep", "-x", "llama-server", check=False).stdout.split()
    return any("nanosleep" in host.run("cat", f"/proc/{pid}/wchan", check=False).stdout for pid in found)


def what_is_left(box: Box) -> str:
    """What a cut left: where current points, what lies beside the releases, what of the build is there and runs."""
    host = box.host
    unit = host.unit("holdfast-build-chat.service", "ActiveState").get("ActiveState", "")
    hidden = [name for name in box.releases() if name.startswith(".")]
    others = [name for name in box.releases() if not name.startswith(".")]
    work = host.run("ls", WORK, check=False).stdout.split()
    return (
        f"current is {box.release}; releases {', '.join(others)}; staging {', '.join(hidden) or 'none'}; "
        f"work {' '.join(work) or 'none'}; build unit {unit}"
    )


def make_sure_that_nothing_is_in_between(box: Box) -> str:
    """The engine serves what current points to, and nothing of a build is left; the tag that serves."""
    host = box.host
    box.scene.engine.wait_until_generates()
    serving = box.serving
    assert box.release.startswith(f"{serving}-"), (serving, box.release)
    assert not [name for name in box.releases() if name.startswith(".")], box.releases()
    work = host.run("ls", WORK, check=False).stdout.split()
    assert not {"src", "build"} & set(work), work
    state = host.unit("holdfast-build-chat.service", "ActiveState", "LoadState")
    assert state["ActiveState"] == "inactive", state
    assert host.run("pgrep", "-u", "holdfast-build", check=False).stdout == ""
    return serving
