"""A box that runs one file in place of a link: it is rebuilt, cut off and rolled back like any other."""

from __future__ import annotations

import pytest
from cutting import outcomes
from rebuilding import CURRENT, RELEASES, SERVER, Boot, Box, standin

BINARY = "/usr/local/bin/llama-server"
COPY = f'install = "copy"\nbinary = "{BINARY}"'


@pytest.fixture
def box(host: Boot) -> Box:
    """A host whose unit runs a file that somebody put there by hand, from b1; b2 is configured."""
    box = standin(host, restart="always")
    box.host.sh(
        f"install -m 0755 {SERVER} {BINARY}; rm -r {CURRENT} {RELEASES}; "
        f"sed -i 's|{SERVER}|{BINARY}|' /etc/systemd/system/llama-server.service; "
        "systemctl daemon-reload; systemctl restart llama-server"
    )
    box.wants("b2", COPY)
    box.scene.engine.wait_until_generates()
    return box


def digest(box: Box, path: str = BINARY) -> str:
    return box.host.run("sha256sum", path).stdout.split()[0]


def running(box: Box) -> str:
    """The checksum of what the unit's process runs."""
    pid = box.host.unit("llama-server.service", "MainPID")["MainPID"]
    return digest(box, f"/proc/{pid}/exe")


def test_one_file_is_rebuilt_kept_and_rolled_back(box: Box) -> None:
    first = digest(box)
    status, said, _ = box.holdfast("run", "rebuild-llama-cpp", "--engine", "chat")
    assert (status, box.serving) == (0, "b2"), said
    kept = [name for name in box.releases() if name.startswith("kept-")]
    assert kept == [f"kept-{first[:12]}"], box.releases()
    second = digest(box)
    assert running(box) == second != first
    assert not [name for name in box.host.run("ls", "-A", "/usr/local/bin").stdout.split() if name.startswith(".")]
    status, said, _ = box.holdfast("check", "engine.release")
    assert "proven" in said, said
    status, said, _ = box.holdfast("run", "rollback-llama-cpp", "--engine", "chat")
    assert (status, box.serving) == (0, "b1"), said
    assert digest(box) == running(box) == first


def test_a_file_that_dies_in_the_unit_is_put_back(box: Box) -> None:
    first = digest(box)
    box.wants("b7", COPY)
    status, said, _ = box.holdfast("run", "rebuild-llama-cpp", "--engine", "chat")
    assert status == 2, said
    assert outcomes(box.scene) == ["undone"]
    box.scene.engine.wait_until_generates()
    assert digest(box) == running(box) == first
    assert box.serving == "b1"


def test_a_file_that_dies_later_is_rolled_back_by_itself(box: Box) -> None:
    first = digest(box)
    box.wants("b8", COPY)
    status, said, _ = box.holdfast("run", "rebuild-llama-cpp", "--engine", "chat")
    assert (status, box.serving) == (0, "b8"), said
    box.host.write("/run/bed-dies", "")
    box.host.wait_for(lambda: box.serving == "b1", 180, "the way back")
    box.scene.resolved("release-failing", 120)
    assert digest(box) == running(box) == first
