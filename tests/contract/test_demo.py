"""script/demo, as a person runs it: the fault, the cause, the restart, the tokens and the page, in this order."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

DEMO = Path(__file__).resolve().parents[2] / "script" / "demo"
STORY_S = 40.0
"""From the fault to the resolved incident it may take this long at most."""


@pytest.mark.demo
@pytest.mark.timeout(900)  # the set-up may install what is missing
def test_the_demo_shows_a_wedge_its_cause_the_restart_the_tokens_and_the_page() -> None:
    done = subprocess.run([DEMO], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "\x1b" not in done.stdout, "it is plain text where no terminal reads it"
    lines = re.findall(r"^ *(\d+\.\d) s  (\w+) +(.*)$", done.stdout, re.MULTILINE)
    first = {what: float(at) for at, what, _ in reversed(lines)}
    last = {what: float(at) for at, what, _ in lines}
    assert first["wedge"] < first["cause"] < first["restart"] < first["tokens"]
    assert first["cause"] <= first["page"], "the page tells a cause"
    assert max(last.values()) < STORY_S
    assert any(what == "page" and text.startswith("resolve ") for _, what, text in lines)
    assert any(what == "users" for _, what, _ in lines), "the users felt it"
    assert re.search(r"^OK .*: all is well$", done.stdout, re.MULTILINE), "status says that it is over"


@pytest.mark.demo
def test_the_demo_refuses_what_it_does_not_know() -> None:
    done = subprocess.run([DEMO, "--fast"], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout) == (64, "")
    assert "unknown argument --fast" in done.stderr
