"""Wraps a real Host and keeps every answer it gave, in the form that `FakeHost.load` reads.

What is recorded is meant to be read before it is committed: an engine's answers may hold a prompt.
"""

from __future__ import annotations

import contextlib
import posixpath
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml

from agent.errors import CommandFailed, FileTrouble, Unreachable
from agent.host import Completed, Files, Host, Reply, Space, Stat
from agent.model import Json, Moment
from tests.support.fake_files import TreeFiles

_HEADERS = ("content-type", "server", "retry-after")


class Recorder:
    """Collects the answers of one host for one fixture; `host` is the host to ask, `write` stores them."""

    def __init__(self, host: Host) -> None:
        self._documents: dict[str, list[dict[str, Any]]] = {}
        self._texts: dict[str, str] = {}
        self._links: dict[str, str] = {}
        self._present: set[str] = set()
        self._folders: set[str] = set()
        self.host = replace(
            host,
            files=_Files(host.files, self),
            run=_Run(host.run, self),
            clock=_Clock(host.clock, self),
            http=_Http(host.http, self),
            child=_Child(host.child, self),
        )

    def add(self, document: str, entry: dict[str, Any]) -> None:
        """One more answer; the same one twice in a row is kept once."""
        entries = self._documents.setdefault(document, [])
        if not entries or entries[-1] != entry:
            entries.append(entry)

    def text(self, path: str, text: str) -> None:
        """What a file said, the first time it was read."""
        self._texts.setdefault(path, text)

    def present(self, path: str) -> None:
        """A file that was there, whatever it said."""
        self._present.add(path)

    def link(self, path: str, target: str) -> None:
        """What a symbolic link said."""
        self._links[path] = target

    def folder(self, path: str) -> None:
        """A directory that was there."""
        self._folders.add(path)

    def write(self, case: Path) -> None:
        """Store everything in a fixture folder, in place of what was recorded there before."""
        shutil.rmtree(case / "root", ignore_errors=True)
        for old in case.glob("*.yaml"):
            old.unlink()
        for path in sorted(self._folders):
            _inside(case, path).mkdir(parents=True, exist_ok=True)
        for path, text in {**dict.fromkeys(sorted(self._present), ""), **self._texts}.items():
            _inside(case, path).parent.mkdir(parents=True, exist_ok=True)
            _inside(case, path).write_text(text, encoding="utf-8", newline="")
        for path, target in self._links.items():
            place = _inside(case, path)
            place.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                place.symlink_to(target)
        case.mkdir(parents=True, exist_ok=True)
        for name, entries in self._documents.items():
            document = yaml.dump(entries, Dumper=_Readable, sort_keys=False, allow_unicode=True, width=120)
            (case / name).write_text(document, encoding="utf-8")


class _Readable(yaml.SafeDumper):
    """Writes texts of several lines as such."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Readable.add_representer(str, _text)


def _inside(case: Path, path: str) -> Path:
    return case / "root" / posixpath.normpath(path).lstrip("/")


class _Files(TreeFiles):
    """Only reads are recorded; a check that writes is a mistake."""

    def __init__(self, real: Files, recorder: Recorder) -> None:
        super().__init__(real.root)
        self._real = real
        self._recorder = recorder

    def read_text(self, path: str, limit: int = 1 << 20) -> str:
        try:
            text: str = self._real.read_text(path, limit)
        except FileTrouble as trouble:
            if trouble.kind != "missing":
                self._recorder.add("trouble.yaml", {"path": path, "kind": trouble.kind})
            raise
        self._follow(path)
        self._recorder.text(self._real.realpath(path), text)
        return text

    def exists(self, path: str) -> bool:
        found: bool = self._real.exists(path)
        if found:
            self._keep(path)
        return found

    def listdir(self, path: str) -> list[str]:
        names: list[str] = self._real.listdir(path)
        self._recorder.folder(self._real.realpath(path))
        for name in names:
            with contextlib.suppress(FileTrouble):
                self._keep(f"{path.rstrip('/')}/{name}")
        return names

    def readlink(self, path: str) -> str:
        target: str = self._real.readlink(path)
        self._recorder.link(path, target)
        return target

    def realpath(self, path: str) -> str:
        place: str = self._real.realpath(path)
        self._keep(path)
        return place

    def stat(self, path: str) -> Stat:
        known: Stat = self._real.stat(path)
        self._keep(path)
        return known

    def space(self, path: str) -> Space:
        found: Space = self._real.space(path)
        self._recorder.add("space.yaml", {"path": path, "space": asdict(found)})
        return found

    def _keep(self, path: str) -> None:
        """That a path is there; a file's text only once it is read."""
        self._follow(path)
        place = self._real.realpath(path)
        if self._real.stat(place).is_dir:
            self._recorder.folder(place)
        else:
            self._recorder.present(place)

    def _follow(self, path: str) -> None:
        """Every link on the way."""
        parts = path.strip("/").split("/")
        for end in range(1, len(parts) + 1):
            here = "/" + "/".join(parts[:end])
            if self._real.stat(here).is_link:
                target = self._real.readlink(here)
                self._recorder.link(here, target)
                self._follow(posixpath.normpath(posixpath.join(posixpath.dirname(here), target, *parts[end:])))
                return


class _Run:
    def __init__(self, real: Any, recorder: Recorder) -> None:
        self._real = real
        self._recorder = recorder

    def __call__(self, argv: Sequence[str], **options: Any) -> Completed:
        try:
            done: Completed = self._real(argv, **options)
        except CommandFailed as failed:
            self._recorder.add("commands.yaml", {"argv": list(argv), "failed": failed.code})
            raise
        entry = {"argv": list(argv), "rc": done.rc, "stdout": done.stdout, "stderr": done.stderr}
        self._recorder.add("commands.yaml", entry)
        return done


class _Clock:
    def __init__(self, real: Any, recorder: Recorder) -> None:
        self._real = real
        self._recorder = recorder

    def now(self) -> Moment:
        moment: Moment = self._real.now()
        self._recorder.add("clock.yaml", {"wall": moment.wall, "boot_s": moment.boot_s, "boot_id": moment.boot_id})
        return moment

    def suspended_s(self) -> float:
        return 0.0  # as the fake clock says

    def sleep(self, seconds: float) -> None:
        self._real.sleep(seconds)


class _Http:
    def __init__(self, real: Any, recorder: Recorder) -> None:
        self._real = real
        self._recorder = recorder

    def __call__(self, method: str, url: str, **options: Any) -> Reply:
        entry: dict[str, Any] = {"method": method, "url": url}
        if options.get("json") is not None:
            entry["json"] = options["json"]
        try:
            reply: Reply = self._real(method, url, **options)
        except Unreachable as error:
            self._recorder.add("http.yaml", {**entry, "unreachable": error.kind})
            raise
        body = reply.json() if isinstance(reply.json(), dict | list) else reply.text
        kept = {
            name: value for name, value in reply.headers.items() if name in ("content-type", "server", "retry-after")
        }
        self._recorder.add("http.yaml", {**entry, "status": reply.status, "headers": kept, "body": body})
        return reply


class _Child:
    def __init__(self, real: Any, recorder: Recorder) -> None:
        self._real = real
        self._recorder = recorder

    def ask(self, question: str, *, deadline_s: float) -> Mapping[str, Json] | None:
        answer: Mapping[str, Json] | None = self._real.ask(question, deadline_s=deadline_s)
        self._recorder.add("child.yaml", {"question": question, "answer": answer})
        return answer

    def stuck(self) -> Mapping[str, Json] | None:
        stuck: Mapping[str, Json] | None = self._real.stuck()
        return stuck
