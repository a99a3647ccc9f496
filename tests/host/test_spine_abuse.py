"""What a process with the daemon's uid, a member of its group, or a stranger can get out of root's two sockets."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bed import BedError, BootedHost, kill
from cutting import outcomes
from spine import Watched, watched

Boot = Callable[..., BootedHost]
RUNNER = "/run/holdfast-runner.sock"
INSPECTOR = "/run/holdfast-inspect.sock"
SCRIPT = Path(__file__).parent / "bed" / "guest" / "knock.py"
KNOCK = "/var/lib/bed/knock.py"
SMALL = 64 << 10
"""Bytes that the ledger may have grown to after ten seconds of flood."""


def ulid(number: int) -> str:
    """A valid id."""
    return f"01{number:024d}"


def request(number: int = 1, **changes: Any) -> str:
    """A request to the runner: restart-engine on the engine, unless it says otherwise."""
    asked = {"v": 1, "do": "run", "id": ulid(number), "runbook": "restart-engine", "subject": "engine:chat"}
    return json.dumps({**asked, **changes}) + "\n"


def bare(do: str, number: int = 1, **changes: Any) -> str:
    """A request without a runbook."""
    return json.dumps({"v": 1, "do": do, "id": ulid(number), **changes}) + "\n"


def said(scene: Watched, text: str, *, socket: str = RUNNER, user: str = "holdfast") -> list[dict[str, Any]]:
    """What the socket answers to this text from this user, line by line."""
    if not scene.host.exists(KNOCK):
        scene.host.push(SCRIPT, KNOCK)
    done = scene.host.run("python3", "-IS", KNOCK, "say", socket, user=user, input=text)
    return [json.loads(line) for line in done.stdout.splitlines()]


def code(answer: list[dict[str, Any]]) -> str:
    """The code of the refusal, which must be all that was answered."""
    assert [each["event"] for each in answer] == ["refused"], answer
    return str(answer[0]["data"]["code"])


FORBIDDEN = {
    "an unknown runbook": (request(runbook="open-a-shell"), "unknown-runbook"),
    "a subject that climbs": (request(subject="engine:../../../etc/shadow"), "request-invalid"),
    "a runbook that climbs": (request(runbook="../../tmp/mine"), "request-invalid"),
    "an id that climbs": (request().replace(ulid(1), "../../../../etc/cron.d/a"), "request-invalid"),
    "force": (request(force=True), "operators-only"),
    "an approval of its own": (
        request(do="approve", args={"incident": ulid(7), "plan": "0" * 64}), "operators-only",
    ),
    "a run that claims to be approved": (
        request(args={"incident": ulid(7), "approval": ulid(8), "plan": "0" * 64}), "wrong-inputs",
    ),
    "an unknown input": (request(args={"unit": "ssh.service"}), "wrong-inputs"),
    "taking back a pause": (bare("resume"), "operators-only"),
    "an unknown verb": (bare("shell", args={"argv": "id"}), "request-invalid"),
    "an oversized request": (request(because="x" * 100_000), "request-too-large"),
    "garbage": ("\x00\xff\x17 not json\n", "request-invalid"),
    "deeply nested garbage": ("[" * 60_000 + "\n", "request-invalid"),
    "nothing": ("", "request-invalid"),
}  # fmt: skip


def test_what_the_daemons_uid_may_not_ask_is_refused_recorded_and_told(host: Boot) -> None:
    """In the mode `ask`, where only a person's approval would let the daemon run anything."""
    scene = watched(host, mode="ask")
    pid = scene.engine.pid
    assert code(said(scene, request(2))) == "needs-approval"
    for name, (text, expected) in FORBIDDEN.items():
        assert code(said(scene, text)) == expected, name
    assert scene.starts() == 0
    assert scene.engine.pid == pid
    recorded = {record["data"]["code"] for record in scene.ledger("refused")}
    assert recorded >= {expected for _, expected in FORBIDDEN.values()}
    told = scene.page(lambda page: page.finding == "runner-abused", 60, "the page about the abuse")
    assert "uid" in told.message
    doctor = scene.host.run("holdfast", "doctor", check=False)
    assert "refused-requests" in doctor.stdout or "nobody honest" in doctor.stdout, doctor.stdout
    assert "unknown-runbook" in scene.host.run("holdfast", "audit", "show").stdout
    still_serves(scene)


def still_serves(scene: Watched) -> None:
    """The runner serves root, and the daemon that repairs an engine."""
    planned = scene.host.run("holdfast", "run", "restart-engine", "--dry-run")
    assert "systemctl start --no-block llama-server.service" in planned.stdout
    scene.configure(mode="act")
    kill(scene.host, scene.engine.pid)
    scene.resolved("engine-dead", 120)
    assert outcomes(scene) == ["succeeded"]
    assert scene.engine.generates()


def test_a_flood_from_the_daemons_uid_is_bounded_and_the_runner_serves_on(host: Boot) -> None:
    """400 connections a second for ten seconds, while others are held open and say nothing."""
    scene = watched(host)
    scene.host.push(SCRIPT, KNOCK)
    held = scene.host.popen("runuser", "-u", "holdfast", "--", "python3", "-IS", KNOCK, "idle", RUNNER, "80", "25")
    text = request(runbook="open-a-shell").strip()
    flooding = scene.host.popen(
        "runuser", "-u", "holdfast", "--", "python3", "-IS", KNOCK, "flood", RUNNER, "400", "10", text
    )
    served = scene.host.run("holdfast", "run", "restart-engine", "--dry-run", check=False, timeout=60)
    assert served.returncode == 0, served.stdout + served.stderr
    flood = json.loads(flooding.communicate(timeout=120)[0])
    idle = json.loads(held.communicate(timeout=120)[0])
    print(f"\nflood {flood}, held open {idle}")
    assert flood["connected"] + flood["refused"] >= 1000
    states = scene.host.unit("holdfast-runner.socket", "ActiveState", "Result")
    assert states == {"ActiveState": "active", "Result": "success"}
    assert int(scene.host.sh("stat -c %s /var/lib/holdfast-runner/ledger.jsonl")) < SMALL
    failed = scene.host.run("systemctl", "list-units", "--failed", "--no-legend", "holdfast*").stdout
    assert failed.strip() == ""
    assert "holdfast-recover" not in scene.host.journal("holdfast-recover.service").replace(
        "holdfast-recover.service", ""
    )
    scene.page(lambda page: page.finding == "runner-abused", 60, "the page about the abuse")
    doctor = scene.host.run("holdfast", "doctor", check=False).stdout
    assert "holdfast-runner.socket refused" in doctor
    still_serves(scene)


def test_a_member_of_the_group_follows_and_no_more_and_a_stranger_does_not_get_in(host: Boot) -> None:
    scene = watched(host)
    scene.host.sh("useradd --groups holdfast kay; useradd zoe")
    for text in (request(2), bare("pause", args={"for_s": 60.0}), bare("stop"), request(do="plan")):
        assert code(said(scene, text, user="kay")) == "permission"
    kill(scene.host, scene.engine.pid)
    scene.resolved("engine-dead", 120)
    run = scene.ledger("attempt")[0]["run"]
    followed = said(scene, bare("follow").replace(ulid(1), run), user="kay")
    assert followed[-1]["data"]["outcome"] == "succeeded"
    refused = scene.host.run("holdfast", "run", "restart-engine", user="kay", check=False)
    assert refused.returncode == 77
    assert "sudo" in refused.stdout + refused.stderr
    for socket in (RUNNER, INSPECTOR, "/run/holdfast/control.sock"):
        with pytest.raises(BedError, match="PermissionError"):
            said(scene, request(3), socket=socket, user="zoe")


def test_the_inspector_answers_known_questions_of_the_daemon_and_nothing_else(host: Boot) -> None:
    scene = watched(host)
    scene.host.sh("useradd --groups holdfast kay")

    def asked(text: str, user: str = "holdfast") -> dict[str, Any]:
        (answer,) = said(scene, text, socket=INSPECTOR, user=user)
        return answer

    def question(check: str = "engine.blocked", subject: str = "engine:chat", **more: Any) -> str:
        return json.dumps({"v": 1, "check": check, "subject": subject, **more}) + "\n"

    assert asked(question())["observations"]
    wrong = {
        question("no.such"): "unknown-check",
        question("host.disk", "host"): "unknown-check",
        question("../../etc/passwd"): "request-invalid",
        question(subject="engine:../.."): "request-invalid",
        question(subject="engine:other"): "unknown-subject",
        question(before={"x": "y" * 100_000}): "request-too-large",
        question(before={"x": 1}): "request-invalid",
        question(argv=["id"]): "request-invalid",
        "garbage\n": "request-invalid",
        "[" * 60_000 + "\n": "request-invalid",
    }
    for text, expected in wrong.items():
        assert asked(text)["error"]["code"] == expected, text[:80]
    assert asked(question(), user="kay")["error"]["code"] == "permission"
    held = scene.host.popen("runuser", "-u", "holdfast", "--", "python3", "-IS", KNOCK, "idle", INSPECTOR, "20", "8")
    held.communicate(timeout=60)
    assert asked(question())["observations"]
    failed = scene.host.run("systemctl", "list-units", "--failed", "--no-legend", "holdfast*").stdout
    assert failed.strip() == ""
