"""No prompt ever leaves the engine: through every fault it is nowhere in what Holdfast keeps, logs or pages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bed import BootedHost, freeze_thread, kill, stopped
from spine import CANARY_PROMPT, Watched, watched

Boot = Callable[..., BootedHost]
PROGRAM = "/usr/local/bin/llama-server"
# A server that logs what it is asked, as some do when they are told to.
WORKING = f'#!/bin/sh\necho "request: {CANARY_PROMPT}"\nexec /opt/llama/llama-server "$@"\n'
LINE = "CUDA error: no kernel image is available for execution on the device"
# The worst case: the prompt in the very line that is quoted, and around it.
BROKEN = f"""#!/bin/sh
echo 'prompt: {CANARY_PROMPT}' >&2
echo '{LINE} while working on {CANARY_PROMPT}' >&2
echo 'main: {CANARY_PROMPT}' >&2
exit 127
"""
PROMPT = f"Tell nobody: {CANARY_PROMPT}."
# The client's own requests, the engine's own log, and the programs of this test.
NOT_OURS = ("/var/lib/bed/", "/var/log/journal/", "/run/log/journal/", PROGRAM)


def said_by_commands(scene: Watched) -> str:
    """What a person would look at in the middle of a fault, in both forms."""
    commands = [["check"], ["status"], ["incident", "list", "--all"], ["doctor"], ["audit", "show"]]
    commands += [["incident", "show", incident["id"]] for incident in scene.incidents()]
    said = ""
    for command in commands:
        for form in ([], ["--json"]):
            done = scene.host.run("holdfast", *command, *form, check=False, timeout=120)
            assert done.returncode not in (64, 70), (command, done.stderr)
            said += done.stdout + done.stderr
    return said


def files_with(booted: BootedHost, text: str) -> list[str]:
    """Every file of the host that holds the text, but those under /proc, /sys and /opt (the engine's program)."""
    script = (
        "for folder in $(ls / | grep -vxE 'proc|sys|dev|opt'); do"
        ' grep -rlaF --devices=skip -e "$0" "/$folder" 2>/dev/null || true; done'
    )
    return booted.run("sh", "-uc", script, text, timeout=180).stdout.splitlines()


def test_a_prompt_is_nowhere_in_what_holdfast_keeps_or_says_whatever_happens(host: Boot) -> None:
    def with_program(*suite: str, **options: Any) -> BootedHost:
        booted = host(*suite, **options)
        booted.write(PROGRAM, WORKING, 0o755)
        return booted

    # An engine as talkative as it gets: it also shows prompts to whoever asks for its slots.
    talkative = ["Environment=LLAMA_SERVER_SLOTS_DEBUG=1"]
    scene = watched(with_program, model="big", parallel=1, program=PROGRAM, service_lines=talkative)
    client, said = scene.engine.client, ""
    shipped = scene.host.read("/usr/share/holdfast/runbooks/restart-engine.yaml")
    often = shipped.replace('cooldown: "5m", max_runs: 3', 'cooldown: "1s", max_runs: 9')
    assert often != shipped
    scene.host.write("/etc/holdfast/runbooks.d/restart-engine.yaml", often)
    scene.configure()

    def fault_over(finding: str, times: int) -> None:
        scene.host.wait_for(
            lambda: sum(page.action == "resolve" and page.finding == finding for page in scene.pages()) >= times,
            180,
            f"{finding} to be over",
        )

    # It really has the prompt, and these searches find it: in its slots, in its log, and in its files.
    with client.hung(1, PROMPT, n=2000):
        scene.host.wait_for(lambda: CANARY_PROMPT in client.get("/slots").body, 30, "the prompt in the slots")
        assert CANARY_PROMPT in scene.host.journal(scene.engine.unit)
        assert any(path.startswith("/var/lib/bed/") for path in files_with(scene.host, CANARY_PROMPT))
        said += said_by_commands(scene)

        with freeze_thread(scene.host, scene.engine.pid):  # in the middle of decoding
            scene.triggered("engine-wedged", 60)
            said += said_by_commands(scene)
            fault_over("engine-wedged", 1)
    with client.load(0.3, PROMPT, n=2):
        with stopped(scene.host, scene.engine.pid):
            scene.host.wait_for(lambda: scene.starts() == 2, 60, "the second repair")
            said += said_by_commands(scene)
            fault_over("engine-wedged", 2)
        kill(scene.host, scene.engine.pid)
        said += said_by_commands(scene)
        fault_over("engine-dead", 1)
        scene.host.write(PROGRAM, BROKEN, 0o755)
        kill(scene.host, scene.engine.pid)
        call = scene.page(lambda page: page.key.endswith("/escalated"), 120, "the call for a person")
        assert LINE in " ".join(call.message.split())
        said += said_by_commands(scene)
        assert CANARY_PROMPT in scene.host.journal(scene.engine.unit)

    wrote = scene.everything_we_wrote()
    assert LINE in wrote, "the search sees what was kept of the log"
    assert "restart-engine" in wrote
    assert CANARY_PROMPT not in wrote
    assert CANARY_PROMPT not in said
    found = files_with(scene.host, CANARY_PROMPT)
    assert [path for path in found if not path.startswith(NOT_OURS)] == []
