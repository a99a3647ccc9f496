"""A planned change that is cut off anywhere can be gone on with: what is half done is undone, and can be done again."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent import ledger, recover
from agent.host import Completed, Host, changes
from agent.host.driver import read_lock
from agent.ledger import Kind
from tests.support.kernels import OLD, A, B, modinfo, module_path
from tests.support.world import OPERATOR_UID, CountedFiles, Killed, World, ended

RUNBOOKS = Path(__file__).resolve().parents[2] / "runbooks"
PLACE = "kernel/nvidia-550srv/nvidia.ko"
LIB = "usr/lib/x86_64-linux-gnu"
ACTS = {"begin": 32, "finish": 60, "abort": 32}
"""More than each run has; a test makes sure that it is enough."""


class Files(CountedFiles):
    """Removing counts as an act too."""

    def remove(self, path: str) -> None:
        self.acts.around(f"remove {path}", lambda: super(Files, self).remove(path))


class Box(World):
    """The world of the runner's tests, with a driver, its lock and the runbooks of a planned change."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.version = A
        for name in ("begin-change", "finish-change", "abort-change"):
            lines = (RUNBOOKS / f"{name}.yaml").read_text().splitlines()
            text = "\n".join(line for line in lines if "driver.save" not in line)
            self.write(f"usr/share/holdfast/runbooks/{name}.yaml", text)
        files = {
            "proc/sys/kernel/osrelease": f"{OLD}\n", "sys/kernel/kexec_loaded": "0\n",
            "etc/holdfast/driver.lock": f"{A}\n", f"boot/vmlinuz-{OLD}": "",
            f"lib/modules/{OLD}/modules.dep": f"{PLACE}:\n", f"lib/modules/{OLD}/{PLACE}": "",
        }  # fmt: skip
        for name, text in files.items():
            self.write(name, text)
        self.runs(A)

    def runs(self, version: str) -> None:
        """This driver is installed and loaded."""
        self.version = version
        self.write("sys/module/nvidia/version", f"{version}\n")
        for library in ("libnvidia-ml", "libcuda"):
            link = self.root / LIB / f"{library}.so.1"
            self.write(f"{LIB}/{library}.so.{version}", "")
            link.unlink(missing_ok=True)
            link.symlink_to(f"{library}.so.{version}")

    def host(self) -> Host:
        known = super().host()

        def answer(argv: Sequence[str], **how: Any) -> Completed:
            if argv[0] == "modinfo":
                assert argv[-1] == module_path(OLD, PLACE)
                return Completed(tuple(argv), 0, modinfo(self.version), "", 0.0)
            return known.run(argv, **how)

        return replace(known, files=Files(self.root, self.acts), run=answer)

    def change(self, verb: str) -> Mapping[str, Any]:
        """Ask for the run as root does; how it ended."""
        arguments = {"to": B, "reason": "CVE"} if verb == "begin" else {}
        return ended(self.ask(self.request(runbook=f"{verb}-change", subject="host", args=arguments), uid=OPERATOR_UID))

    def planned(self) -> bool:
        """Whether a change is open."""
        return changes.read(self.host()) is not None

    def locked(self) -> str | None:
        return read_lock(self.host()).version

    def outcomes(self) -> list[str]:
        contents = ledger.read(self.host())
        assert ledger.verify(contents) == ()
        return [str(each.data["outcome"]) for each in contents.records if each.kind is Kind.OUTCOME]


def ready_to_finish(box: Box) -> None:
    assert box.change("begin")["outcome"] == "succeeded"
    box.runs(B)


def ready_to_abort(box: Box) -> None:
    assert box.change("begin")["outcome"] == "succeeded"


def cut_off(box: Box, verb: str, act: int) -> Box:
    """The world after this verb was cut off at an act of its, and recovered."""
    box.acts.count, box.acts.die_at = 0, act
    with contextlib.suppress(Killed):
        box.change(verb)
    again = box.restarted()
    assert isinstance(again, Box)
    assert recover.main(again.host()) == 0
    return again


def before_each(verb: str) -> range:
    """Before each act of a run; after one is the same as before the next."""
    return range(1, ACTS[verb] + 1, 2)


def nothing(box: Box) -> None:
    """No change is open yet."""


@pytest.mark.parametrize(
    ("verb", "prepare"), [("begin", nothing), ("finish", ready_to_finish), ("abort", ready_to_abort)]
)
def test_the_acts_tried_below_are_all_there_are(tmp_path: Path, verb: str, prepare: Callable[[Box], None]) -> None:
    box = Box(tmp_path)
    prepare(box)
    box.acts.count = 0
    assert box.change(verb)["outcome"] == "succeeded"
    assert 10 < box.acts.count <= ACTS[verb]


@pytest.mark.parametrize("act", before_each("begin"))
def test_a_begin_that_is_cut_off_leaves_a_change_that_is_open_or_none(tmp_path: Path, act: int) -> None:
    box = cut_off(Box(tmp_path), "begin", act)
    done = box.outcomes() == ["succeeded"]
    assert box.planned() == done
    if not done:
        assert box.change("begin")["outcome"] == "succeeded"
    assert box.change("abort")["outcome"] == "succeeded"
    assert not box.planned()


@pytest.mark.parametrize("act", before_each("finish"))
def test_a_finish_that_is_cut_off_is_done_or_can_be_done_again(tmp_path: Path, act: int) -> None:
    box = Box(tmp_path)
    ready_to_finish(box)
    box = cut_off(box, "finish", act)
    done = box.outcomes()[1:] == ["succeeded"]
    assert (box.planned(), box.locked()) == (not done, B if done else A)
    if not done:
        assert box.change("finish")["outcome"] == "succeeded"
    assert (box.planned(), box.locked()) == (False, B)


@pytest.mark.parametrize("act", before_each("abort"))
def test_an_abort_that_is_cut_off_is_done_or_can_be_done_again(tmp_path: Path, act: int) -> None:
    box = Box(tmp_path)
    ready_to_abort(box)
    box = cut_off(box, "abort", act)
    done = box.outcomes()[1:] == ["succeeded"]
    assert box.planned() == (not done)
    if not done:
        assert box.change("abort")["outcome"] == "succeeded"
    assert (box.planned(), box.locked()) == (False, A)
