"""The world of the runner's tests with an engine that is rebuilt: releases side by side, and a unit that runs one.

Files are real, below a folder; the programs of the plans (ln, mv, cp, …) are played there, and each counts as an act.
The engine generates when the program it was started from does: a release's server says in its text how it behaves.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from agent import ledger, recover
from agent.errors import Unreachable
from agent.host import Completed, Host, Reply
from agent.host import recipe as recipes
from agent.host.recipe import Recipe
from agent.ledger import Kind
from agent.plugin import engines
from tests.support.world import OPERATOR_UID, UNIT, CountedFiles, Engine, World, ended

RUNBOOKS = Path(__file__).resolve().parents[2] / "runbooks"
RELEASES, CURRENT, BINARY = "/opt/llama.cpp/releases", "/opt/llama.cpp/current", "/opt/llama.cpp/llama-server"
COMMIT_A, COMMIT_B = "a" * 40, "b" * 40
A, B = f"{RELEASES}/untagged-{COMMIT_A[:12]}+cpu", f"{RELEASES}/untagged-{COMMIT_B[:12]}+cpu"
STAGING = f"{RELEASES}/.untagged-{COMMIT_B[:12]}+cpu.new"
GOOD, CRASHES, SILENT = "good", "crashes", "silent"
REBUILD = f"""
[engine.rebuild]
source = "/opt/llama.cpp/src"
commit = "{COMMIT_B}"
"""


class Files(CountedFiles):
    """Removing counts as an act too; and the kernel's links of processes are texts in a file."""

    def readlink(self, path: str) -> str:
        return self.read_text(path) if path.startswith("/proc/") else super().readlink(path)

    def remove(self, path: str) -> None:
        self.acts.around(f"remove {path}", lambda: super(Files, self).remove(path))


class Box(World):
    """A host with release A serving, proven, and a build of commit B in staging."""

    def __init__(self, root: Path, *, install: str = "link", new: str = GOOD, old: str = GOOD) -> None:
        super().__init__(root)
        self.install = install
        self.full: Callable[[str], bool] = lambda words: False
        """Whether a command that makes something finds no room."""
        self.ready_at = 0.0
        """Until when the engine loads its model, Unix seconds."""
        text = self._text("etc/holdfast/holdfast.toml") + REBUILD
        text += f'install = "copy"\nbinary = "{BINARY}"\n' if install == "copy" else ""
        self.write("etc/holdfast/holdfast.toml", text)
        for name in ("rebuild-llama-cpp", "rollback-llama-cpp"):
            self.write(f"usr/share/holdfast/runbooks/{name}.yaml", _shortened((RUNBOOKS / f"{name}.yaml").read_text()))
        self.release(A, COMMIT_A, old)
        self.release(STAGING, COMMIT_B, new)
        self.write("var/cache/holdfast-build/chat/release", f"{COMMIT_B} {B.rpartition('/')[2]}\n")
        if install == "link":
            self.at(CURRENT).symlink_to(_beside(A))
        else:
            shutil.copy2(self.at(f"{A}/bin/llama-server"), self.at(BINARY))
        self.start_from_place()

    # --- what is there ---

    def at(self, path: str) -> Path:
        """Where a path of the host really is."""
        return self.root / path.lstrip("/")

    def _text(self, name: str) -> str:
        return (self.root / name).read_text()

    def release(self, folder: str, commit: str, behaviour: str, at: float = 1.0) -> None:
        """A release in this folder, whose server behaves so."""
        server = f"{commit} {behaviour}\n"
        digest = hashlib.sha256(server.encode()).hexdigest()
        self.write(f"{folder}/bin/llama-server".lstrip("/"), server)
        known = {"commit": commit, "sha256": {"bin/llama-server": digest}, "at": at}
        self.write(f"{folder}/provenance.json".lstrip("/"), json.dumps(known))

    @property
    def place(self) -> str:
        """The program that the unit starts."""
        return f"{CURRENT}/bin/llama-server" if self.install == "link" else BINARY

    def _through_link(self) -> Path:
        if self.install == "copy":
            return self.at(BINARY)
        return self.at(CURRENT) / "bin/llama-server"

    def start_from_place(self) -> None:
        """The unit's process runs what is in its place now."""
        program = self._through_link()
        # The kernel keeps the file that runs, whatever happens to its name: so does this copy.
        running = self.root / "running"
        shutil.copy2(program, running)
        self.write("proc/42/exe", "/" + str(program.resolve().relative_to(self.root.resolve())))

    def runs(self) -> str:
        """What runs: the commit's first letter and how it behaves; "" when nothing does."""
        if self.systemd.state()["ActiveState"] != "active":
            return ""
        commit, behaviour = (self.root / "running").read_text().split()
        return f"{commit[0]} {behaviour}"

    def in_place(self) -> str:
        """What the unit would start."""
        commit, behaviour = self._through_link().read_text().split()
        return f"{commit[0]} {behaviour}"

    def remembered(self) -> dict[str, Any]:
        """The state file."""
        found: dict[str, Any] = json.loads(self._text("var/lib/holdfast-runner/releases/chat.json"))
        return found

    def recipe(self) -> Recipe:
        """As the actions have it."""
        kind = engines()["llama.cpp"]
        rebuild: dict[str, Any] = {"source": "/opt/llama.cpp/src", "commit": COMMIT_B, "install": self.install}
        rebuild |= {"binary": BINARY} if self.install == "copy" else {}
        told = {"name": "chat", "kind": "llama.cpp", "url": "http://127.0.0.1:8080", "unit": UNIT, "rebuild": rebuild}
        found = recipes.of(kind.settings.model_validate(told))
        assert found is not None
        return found

    # --- what happens ---

    def host(self) -> Host:
        known = super().host()
        files = Files(self.root, self.acts)
        return replace(known, files=files, run=self._run, http=_Engine(self))

    def _run(self, argv: Sequence[str], **how: Any) -> Completed:
        words = tuple(argv)
        if words[0] in ("systemctl", "journalctl"):
            before = self.systemd.state()["starts"]
            done = self.systemd(words, timeout_s=1.0)
            if self.systemd.state()["starts"] > before:
                self._started()
            return done
        if "git" in words:
            return Completed(words, 128, "", "no repository", 0.0)
        if words[0] == "sha256sum":
            return self._sha256(words)
        if words[0] == "sync":
            return Completed(words, 0, "", "", 0.0)
        if words[0] == "rm":
            within = how.get("cwd") or ""
            words = ("rm", *(word if word[0] in "-/" else f"{within}/{word}" for word in words[1:]))
        player = getattr(self, f"_play_{words[0]}")
        if words[0] != "rm" and self.full(" ".join(words)):
            return Completed(words, 1, "", f"{words[0]}: No space left on device", 0.0)
        self.acts.around(" ".join(words), lambda: player(words))
        return Completed(words, 0, "", "", 0.0)

    def _started(self) -> None:
        """The unit has been started: from what is in its place, if that can be."""
        if not self._through_link().exists():
            self.systemd.set(ActiveState="failed", SubState="failed", Result="exit-code", MainPID=0)
            return
        self.start_from_place()
        behaviour = (self.root / "running").read_text().split()[1]
        self.systemd.set(healthy=behaviour == GOOD)
        if behaviour == CRASHES:
            self.systemd.set(ActiveState="failed", SubState="failed", Result="exit-code", ExecMainStatus=1, MainPID=0)

    def _sha256(self, words: Sequence[str]) -> Completed:
        path = words[-1]
        file = self.root / "running" if path.startswith("/proc/") else self.at(path)
        return Completed(tuple(words), 0, f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {path}\n", "", 0.0)

    def _play_ln(self, words: Sequence[str]) -> None:
        source, target = words[-2:]
        fresh = self.at(target)
        fresh.unlink(missing_ok=True)
        if "--symbolic" in words:
            fresh.symlink_to(_beside(source))
        else:
            os.link(self.at(source), fresh)

    def _play_mv(self, words: Sequence[str]) -> None:
        source, target = self.at(words[-2]), self.at(words[-1])
        if "--no-clobber" in words and os.path.lexists(target):
            return
        assert os.path.lexists(source), words
        source.rename(target)

    def _play_cp(self, words: Sequence[str]) -> None:
        shutil.copy2(self.at(words[-2]), self.at(words[-1]))

    def _play_install(self, words: Sequence[str]) -> None:
        if "--directory" in words:
            self.at(words[-1]).mkdir(parents=True, exist_ok=True)
        else:
            fresh = self.at(words[-1])
            fresh.unlink(missing_ok=True)
            shutil.copy2(self.at(words[-2]), fresh)

    def _play_rm(self, words: Sequence[str]) -> None:
        for path in words[words.index("--") + 1 :]:
            if self.at(path).is_dir():
                shutil.rmtree(self.at(path))
            else:
                self.at(path).unlink(missing_ok=True)

    def rebooted(self) -> None:
        """The power was cut: the unit starts what is in its place."""
        super().rebooted()
        self.systemd.set(MainPID=42)
        self._started()

    # --- what is asked for ---

    def rebuild(self, **how: Any) -> dict[str, Any]:
        """Ask for the rebuild as root does; how it ended."""
        return dict(ended(self.ask(self.request(runbook="rebuild-llama-cpp"), uid=OPERATOR_UID, **how)))

    def rollback(self) -> dict[str, Any]:
        """Ask for the way back as root does; how it ended."""
        return dict(ended(self.ask(self.request(runbook="rollback-llama-cpp"), uid=OPERATOR_UID)))

    def recovered(self) -> Box:
        """The same world after recovery, in a process of its own."""
        again = self.restarted()
        assert isinstance(again, Box)
        assert recover.main(again.host()) == 0
        return again

    def outcomes(self) -> list[str]:
        """Every outcome in the ledger."""
        contents = ledger.read(self.host())
        assert ledger.verify(contents) == ()
        return [str(each.data["outcome"]) for each in contents.records if each.kind is Kind.OUTCOME]


class _Engine(Engine):
    """Generates as the running program does."""

    def __init__(self, box: Box) -> None:
        super().__init__(box.systemd)
        self._box = box

    def __call__(self, method: str, url: str, *, timeout_s: float, **how: Any) -> Reply:
        runs = self._box.runs()
        if runs == "":
            raise Unreachable("connection refused", kind="refused")
        if self._box.clock.now().wall < self._box.ready_at:
            return Reply(503, json.dumps({"error": {"message": "Loading model"}}).encode())
        if runs.endswith(SILENT) and url.endswith("/slots"):
            return Reply(200, json.dumps([{"id": 0, "n_ctx": 512, "is_processing": False}]).encode())
        return super().__call__(method, url, timeout_s=timeout_s, **how)


def _beside(release: str) -> str:
    """A release as a link beside the releases' folder says it: one that leads out of the test would be objected to."""
    return "releases/" + release.rpartition("/")[2]


def _shortened(text: str) -> str:
    """The runbook from where a build lies in staging: what builds and proves it is tried elsewhere."""
    head, steps, rest = text.partition("steps:\n")
    left_out = ("use: build.", "use: evidence.", "use: driver.")
    entries = ("  - " + each for each in rest.split("  - ")[1:])
    return head + steps + "".join(each for each in entries if not any(words in each for words in left_out))
