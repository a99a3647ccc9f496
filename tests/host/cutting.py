"""Cut a run off at a chosen place, by a kill or by the power, and look at what came of it."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bed import BootedHost, fake_driver, fake_nvml, freeze_thread, kill, set_nvml
from spine import Watched

RUNS = "/var/lib/holdfast-runner/runs"
GATE = "/run/bed-gate"
GATE_SCRIPT = f"""\
#!/bin/sh
# Stands before the real program: what a run calls after its first step has begun waits here while the gate names it.
held=$(cat {GATE} 2>/dev/null)
if [ -n "$held" ] && [ -n "$(ls {RUNS})" ] && grep -q holdfast-runner@ /proc/self/cgroup; then
    case "${{0##*/}} $*" in
    "$held"*) touch {GATE}.reached; while [ -e {GATE} ]; do sleep 0.05; done ;;
    esac
fi
exec /usr/bin/${{0##*/}} "$@"
"""
STARTED = "39f53479d3a045ac8e11786248231fbf"
"""systemd's message for a unit that has started (sd-messages.h, SD_MESSAGE_UNIT_STARTED)."""


@dataclass(frozen=True, slots=True)
class Place:
    """Somewhere in a run of restart-engine, with everything that makes the run stand still there.

    fault: "killed" or "frozen", what the run is to repair. gate: the command of the run that is held. file: makes the
    engine's start or its loading wait while it exists. says: what the transcript says there. nvml: NVML hangs.
    grace_s: how long a frozen engine keeps stopping.
    killed, cut: the outcomes that follow when the runner is killed there, or the power is cut.
    """

    name: str
    fault: str
    killed: tuple[str, ...] = ("succeeded",)
    cut: tuple[str, ...] = ("succeeded",)
    gate: str = ""
    file: str = ""
    says: str = ""
    nvml: bool = False
    grace_s: int = 3

    @property
    def engine(self) -> str:
        """What the engine's table must say."""
        return f"stop_grace_s = {self.grace_s}"


NOTHING = ("interrupted",)
AGAIN = ("interrupted", "succeeded")
"""Nothing was changed, and the fault is still there: the daemon asks for a second run."""

PLACES = (
    Place("evidence", "killed", AGAIN, NOTHING, gate="journalctl"),
    Place("interlock", "killed", AGAIN, NOTHING, says='"step_started","data":{"step":1', nvml=True),
    Place("before the stop", "frozen", AGAIN, gate="systemctl stop"),
    Place("while it stops", "frozen", says='"waiting until llama-server.service has no process left"', grace_s=60),
    Place("between stop and start", "frozen", gate="systemctl reset-failed"),
    Place(
        "while it starts",
        "killed",
        file="/run/bed-starting",
        says='"waiting until llama-server.service has started or failed"',
    ),
    Place("verify", "killed", file="/run/bed-loading", says='"event":"verifying"'),
)


def prepare(scene: Watched) -> None:
    """Put the gates in place, and a runbook like the shipped one but without its five minutes between two runs."""
    host = scene.host
    for name in ("systemctl", "journalctl"):
        host.write(f"/usr/local/sbin/{name}", GATE_SCRIPT, 0o755)
    start = next(
        line.removeprefix("ExecStart=")
        for line in host.read("/etc/systemd/system/llama-server.service").splitlines()
        if line.startswith("ExecStart=")
    )
    waits = "while [ -e /run/bed-{0} ]; do sleep 0.1; done"
    lines = (
        "[Service]",
        "TimeoutStartSec=300",
        f"ExecStartPre=/bin/sh -c '{waits.format('starting')}'",
        "ExecStart=",
        f"ExecStart=/bin/sh -c '{waits.format('loading')}; exec {start}'",
    )
    host.write("/etc/systemd/system/llama-server.service.d/waits.conf", "\n".join((*lines, "")))
    shipped = host.read("/usr/share/holdfast/runbooks/restart-engine.yaml")
    assert 'cooldown: "5m", max_runs: 3' in shipped
    quick = shipped.replace('cooldown: "5m", max_runs: 3', 'cooldown: "5s", max_runs: 9')
    host.write("/etc/holdfast/runbooks.d/restart-engine.yaml", quick)
    host.sh("systemctl daemon-reload; systemctl reload holdfast")


@contextlib.contextmanager
def standing_at(scene: Watched, place: Place) -> Iterator[str]:
    """A run of the daemon's that stands still at this place, and its id. A frozen engine is released at the end."""
    host = scene.host
    if place.nvml:
        fake_driver(host, "550.54.15")
        fake_nvml(host, behaviour="hang", hang_s=8)
    if place.gate:
        host.write(GATE, place.gate)
    if place.file:
        host.write(place.file, "")
    with contextlib.ExitStack() as stack:
        if place.fault == "frozen":
            stack.enter_context(freeze_thread(host, scene.engine.pid))
        else:
            kill(host, scene.engine.pid)
        run = host.wait_for(lambda: in_flight(host), 90, "a run")
        if place.gate:
            host.wait_for(lambda: host.exists(f"{GATE}.reached"), 60, f"the run to call {place.gate}")
        else:
            host.wait_for(lambda: place.says in host.read(f"{RUNS}/{run}.jsonl"), 60, f"the run to say {place.says}")
        yield run


def let_go(host: BootedHost, place: Place) -> None:
    """Open the gates; a frozen engine stays frozen."""
    host.sh(f"rm -f {GATE} {GATE}.reached /run/bed-starting /run/bed-loading")
    if place.nvml:
        set_nvml(host, behaviour="ok")


def holder(host: BootedHost) -> dict[str, Any]:
    """Who holds the engine, as the lock's file says; empty when it says nothing."""
    text = host.run("cat", "/var/lib/holdfast-runner/locks/engine-chat", check=False).stdout
    return dict(json.loads(text)) if text else {}


def in_flight(host: BootedHost) -> str:
    """The id of the run that has a transcript and holds the engine, "" when there is none."""
    run = str(holder(host).get("run", ""))
    return run if run and host.exists(f"{RUNS}/{run}.jsonl") else ""


def kill_runner(host: BootedHost, run: str) -> None:
    """SIGKILL the process of this run."""
    found = holder(host)
    assert found["run"] == run, found
    host.run("kill", "-KILL", str(found["pid"]))


def stands(scene: Watched, run: str) -> str:
    """What a cut-off run left: its transcript's last words, and the engine."""
    last = json.loads(scene.host.read(f"{RUNS}/{run}.jsonl").splitlines()[-1])
    words = last["data"].get("text") or last["data"].get("name") or last["data"].get("check") or ""
    state = scene.host.unit(scene.engine.unit, "ActiveState", "SubState")
    return f"{last['event']} {words}; engine {state['ActiveState']} ({state['SubState']})"


def starts_of_engine(host: BootedHost) -> int:
    """How often systemd has started the engine since the boot."""
    lines = host.sh(f"journalctl -b -q -o cat _PID=1 UNIT=llama-server.service MESSAGE_ID={STARTED}")
    return len(lines.splitlines())


def outcomes(scene: Watched) -> list[str]:
    """The outcomes of all runs, after making sure that each attempt has exactly one and the chain is whole."""
    attempts = [record["run"] for record in scene.ledger("attempt")]
    ended = Counter(record["run"] for record in scene.ledger("outcome"))
    assert ended == dict.fromkeys(attempts, 1), (attempts, ended)
    for run in attempts:
        events = [json.loads(line)["event"] for line in scene.host.read(f"{RUNS}/{run}.jsonl").splitlines()]
        assert events.count("ended") == 1, events
    verified = scene.host.run("holdfast", "audit", "verify", check=False)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    return [record["data"]["outcome"] for record in scene.ledger("outcome")]


def wait_until_over(scene: Watched, timeout: float = 180) -> None:
    """Until no attempt is without its outcome and no incident is open."""

    def over() -> bool:
        runs = len(scene.ledger("attempt")) == len(scene.ledger("outcome")) > 0
        return runs and all(each["phase"] == "resolved" for each in scene.incidents())

    scene.host.wait_for(over, timeout, "every run and incident to be over", every=0.5)
