"""The printed page, typed: what stands on the PDF of one host is typed line by line on another, which then serves.

Nobody reads a plan here: the lines are taken from the PDF as they are set, names, broken lines and all. What a person
does with the words beside them, look until something is so, is done for her below. No daemon runs on either host.
"""

from __future__ import annotations

import base64
import re
import time
from dataclasses import dataclass

from rebuilding import Boot, Box, real, standin

SET = re.compile(rb"/(F\d) ([0-9.]+) Tf\n[0-9.]+ 0 0 1 ([0-9.]+) [0-9.]+ Tm\n\((.*)\) Tj")
COMMAND, WORDS = "F1", "F2"


CURL = """\
#!/usr/bin/python3 -IS
# What curl does with the few words of the page: the bed's small hosts have none.
import sys, urllib.error, urllib.request
words = [each for each in sys.argv[1:] if each != "--silent"]
body = words[words.index("--data") + 1].encode() if "--data" in words else None
try:
    print(urllib.request.urlopen(words[-1], body, 30).read().decode())
except urllib.error.HTTPError as error:
    print(error.read().decode())
except urllib.error.URLError:
    sys.exit(7)
"""


@dataclass
class Line:
    """One command as it is typed, what is said about it, and where on the page that stands."""

    command: str
    said: str = ""
    at: str = ""


def printed(box: Box, *argv: str) -> bytes:
    """What `holdfast runbook print` writes on a host."""
    box.host.run("systemctl", "stop", "holdfast.service")
    box.host.run("holdfast", "runbook", "print", *argv, "--format", "pdf", "--output", "/tmp/page.pdf")
    return base64.b64decode(box.host.run("base64", "/tmp/page.pdf").stdout)


def pages(pdf: bytes) -> int:
    return len(re.findall(rb"/Type /Page\b(?!s)", pdf))


def to_type(pdf: bytes) -> list[Line]:
    """Each command with its notes. A line that ends with a backslash goes on on the next, as it does in a shell."""
    found: list[Line] = []
    for raw_font, _, raw_at, raw in SET.findall(pdf):
        font, at = raw_font.decode(), raw_at.decode()
        words = re.sub(rb"\\([\\()])", rb"\1", raw).decode("cp1252")
        if font == COMMAND and found and found[-1].command.endswith("\\"):
            found[-1].command += f"\n{words}"
        elif font == COMMAND:
            found.append(Line(words))
        elif font == WORDS and found and words.startswith("– "):
            found[-1].said, found[-1].at = words[2:], at
        elif font == WORDS and found and at == found[-1].at:
            found[-1].said += f" {words}"
    return found


def come_true(said: str, output: str, status: int) -> bool:
    """Whether what a person looks for is there."""
    if "has ended" in said:
        assert "Result=success" in output, output
        return "SubState=exited" in output
    if "answers" in said:
        return '"ok"' in output
    if said == "a token of it":
        return '"content"' in output
    if "has no process left" in said:
        return "─" not in output
    if "has seen it end" in said:
        return output.strip() in ("ActiveState=inactive", "ActiveState=failed")
    if "started or failed" in said:
        return output.strip() == "active"
    return status == 0 or "may fail" in said or "has not failed" in said


def type_in(box: Box, lines: list[Line]) -> None:
    """Type the lines in one shell. What was said to be waited for is looked at again and again."""
    names = [line.command for line in lines if re.match(r"[A-Za-z]=", line.command)]
    for line in lines[len(names) :]:
        if line.said.startswith("only if it does not"):
            continue
        began = time.monotonic()
        while True:
            done = box.host.run("bash", "-c", "\n".join([*names, line.command]), check=False, timeout=300)
            if come_true(line.said, done.stdout, done.returncode):
                break
            assert line.said.startswith("until"), (line, done.stdout, done.stderr)
            assert time.monotonic() - began < 60, (line, done.stdout, done.stderr)
            time.sleep(0.5)


def test_the_page_of_one_host_typed_on_another_ends_in_the_same_release_that_serves(host: Boot) -> None:
    one = real(host)
    page = printed(one, "rebuild-llama-cpp", "--engine", "chat")
    assert pages(page) == 1
    assert b"/MediaBox [0 0 595.28 841.89]" in page
    assert min(float(size) for font, size, _, _ in SET.findall(page) if font == b"F1") >= 8
    status, said, _ = one.holdfast("run", "rebuild-llama-cpp", "--engine", "chat")
    assert (status, one.serving) == (0, "b2"), said

    other = real(host)
    other.host.run("systemctl", "stop", "holdfast.service")
    other.host.write("/usr/local/bin/curl", CURL, 0o755)
    lines = to_type(page)
    proof = next(index for index, line in enumerate(lines) if line.command.startswith("holdfast check"))
    type_in(other, lines[: proof + 1])  # what follows is for when it fails
    assert (other.serving, other.release) == ("b2", one.release)
    files = f"cd /opt/llama.cpp/releases/{one.release}/bin; sha256sum *"
    assert other.host.sh(files) == one.host.sh(files)


def test_the_binder_of_a_host_has_one_page_for_every_runbook(host: Boot) -> None:
    box = standin(host)
    binder = printed(box, "--all")
    listed = box.host.run("holdfast", "runbook", "print", "--all", "--json").stdout
    assert pages(binder) == listed.count('"runbook":')
    for title in (b"Rebuild llama.cpp", b"Go back to the last llama.cpp", b"Restart a dead or wedged"):
        assert title in binder
