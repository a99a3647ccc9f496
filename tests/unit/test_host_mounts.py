"""How a path is mounted for the host, from PID 1's own list."""

from __future__ import annotations

import pytest

from agent.errors import FileTrouble
from agent.host import mounts
from tests.support.fake_host import FakeHost

ROOT = "21 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,errors=remount-ro"


def host(*lines: str, **files: str) -> FakeHost:
    return FakeHost.build({"/proc/1/mountinfo": "\n".join(lines) + "\n", "/srv/models/a.gguf": "", **files})


@pytest.mark.parametrize(
    ("lines", "answer"),
    [
        ([ROOT], False),
        ([ROOT.replace("rw,relatime", "ro,relatime")], True),
        ([ROOT.replace("rw,errors", "ro,errors")], True),
        ([ROOT, "30 21 254:2 / /srv ro - ext4 /dev/vdb rw"], True),
        ([ROOT, "30 21 254:2 / /srv ro - ext4 /dev/vdb rw", "31 21 254:3 / /srv/models rw - xfs /dev/vdc rw"], False),
        ([ROOT, "30 21 254:2 / /srv rw - ext4 /dev/vdb rw", "31 30 0:40 / /srv ro - tmpfs tmpfs rw"], True),
        ([ROOT, "30 21 254:2 / /srv/mod ro - ext4 /dev/vdb rw"], False),
        (["not a mount", ""], None),
    ],
)
def test_the_deepest_and_last_mount_decides(lines: list[str], answer: bool | None) -> None:
    assert mounts.read_only(host(*lines), "/srv/models/a.gguf") is answer


def test_blanks_in_mount_points_are_understood() -> None:
    made = FakeHost.build(
        {"/proc/1/mountinfo": f"{ROOT}\n30 21 254:2 / /srv/my\\040disk ro - ext4 /dev/vdb rw\n", "/srv/my disk/a": ""}
    )
    assert mounts.read_only(made, "/srv/my disk/a") is True


def test_without_a_list_nobody_can_tell() -> None:
    assert mounts.read_only(FakeHost.build({"/srv/a": ""}), "/srv/a") is None


def test_a_path_that_is_not_there_is_trouble() -> None:
    with pytest.raises(FileTrouble):
        mounts.read_only(host(ROOT), "/srv/none")
