"""`holdfast hold --explain` for anyone, `hold` and `unhold` for root through the runner's door."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.errors import FileTrouble
from agent.host import changes, holds
from agent.model import Json
from tests.support.cli import holdfast
from tests.support.door import with_door
from tests.support.fake_host import FakeHost
from tests.support.kernels import OLD, A
from tests.unit.test_hold_actions import ALL, CHANGE, LIBRARY, UTILS, Dpkg, box

BOOKS = Path(__file__).resolve().parents[2] / "runbooks"
RECORD = holds.text(holds.Owned((f"{LIBRARY}:amd64",), A, OLD, 1.0, "anna"))


def with_runner(dpkg: Dpkg) -> FakeHost:
    names = ("hold-driver.yaml", "release-driver.yaml")
    shipped = {f"/usr/share/holdfast/runbooks/{name}": (BOOKS / name).read_text(encoding="utf-8") for name in names}
    return with_door(box(dpkg, **shipped))[0]


def explained(**files: Json) -> Json:
    dpkg = Dpkg(held=[LIBRARY, UTILS])
    dpkg.sources |= {"nvidia-container-toolkit": "nvidia-container-toolkit"}
    said = holdfast("hold", "--explain", "--json", host=box(dpkg, **files), uid=1000)
    assert said.code == 0, said.err
    return said.json["data"]


def test_explain_says_what_would_be_held_by_whom_it_is_and_why() -> None:
    data = explained(**{holds.FILE: RECORD})
    rows = {row["name"]: row for row in data["packages"]}
    assert {f"{row['name']}:{row['architecture']}" for row in rows.values()} == set(ALL)
    assert [rows[name]["held_by"] for name in (LIBRARY, UTILS, "linux-generic")] == ["holdfast", "somebody else", None]
    assert "would bring a new kernel" in rows["linux-generic"]["reason"]
    assert [row["name"] for row in data["left"]] == ["nvidia-container-toolkit"]
    assert (data["driver"], data["kernel"], data["asked"], data["refused"]) == (A, OLD, True, None)


def test_explain_is_for_anyone_and_says_what_only_root_may_read() -> None:
    denied = FileTrouble("denied", kind="denied")
    data = explained(**{holds.FILE: denied, changes.FILE: denied})
    assert {row["held_by"] for row in data["packages"]} == {"unknown", None}
    assert (data["asked"], data["change"]) == (None, None)
    said = holdfast("hold", "--explain", host=box(Dpkg(held=[UTILS]), **{holds.FILE: denied}), uid=1000, width=120)
    assert "sudo holdfast hold --explain" in said.out


def test_explain_says_why_hold_would_be_refused() -> None:
    host = box(Dpkg())
    del host.files.entries["/etc/holdfast/driver.lock"]
    said = holdfast("hold", "--explain", host=host, uid=1000, width=120)
    assert said.code == 0
    assert "refused" in said.out
    assert "sudo holdfast lock write" in said.out
    changing = holdfast("hold", "--explain", host=box(Dpkg(), **{changes.FILE: changes.text(CHANGE)}), width=120)
    assert "a planned change is open" in " ".join(changing.out.split())


def test_explain_names_the_next_step_until_everything_is_held() -> None:
    dpkg = Dpkg()
    host = with_runner(dpkg)
    assert "next" in holdfast("hold", "--explain", host=host).out
    assert holdfast("hold", host=host).code == 0
    said = holdfast("hold", "--explain", host=host, width=140)
    assert "next" not in said.out
    assert "5 are on hold now" in said.out
    assert said.out.count("by holdfast") == 5


def test_hold_and_unhold_go_through_the_runner() -> None:
    dpkg = Dpkg()
    host = with_runner(dpkg)
    held = holdfast("hold", host=host)
    assert held.code == 0, held.err
    assert f"5 packages on hold for driver {A}" in held.out
    assert dpkg.held == set(ALL)
    released = holdfast("unhold", "--json", host=host)
    assert released.code == 0, released.err
    assert not dpkg.held
    again = holdfast("unhold", host=host)
    assert again.code == 0
    assert "nothing here is held by Holdfast" in again.out


@pytest.mark.parametrize("verb", ["hold", "unhold"])
def test_only_root_changes_holds(verb: str) -> None:
    said = holdfast(verb, host=box(Dpkg()), uid=1000)
    assert said.code == 77
    assert f"sudo holdfast {verb}" in said.err


def test_explain_changes_nothing_and_takes_no_other_option() -> None:
    assert holdfast("hold", "--explain", "--dry-run", host=box(Dpkg())).code == 64
