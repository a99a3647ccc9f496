"""What one invocation works with: the host, who called, and the terminal. Tests hand in their own."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TextIO

from agent.errors import UsageError
from agent.host import Host

DEFAULT_WIDTH = 80
"""Columns when the output is not a terminal."""


def _real_host() -> Host:
    from agent.host.real import real_host  # only the verbs that touch the machine pay for it

    return real_host()


@dataclass
class Session:
    """One invocation of `holdfast`."""

    make_host: Callable[[], Host] = _real_host
    stdin: TextIO = field(default_factory=lambda: sys.stdin)
    stdout: TextIO = field(default_factory=lambda: sys.stdout)
    stderr: TextIO = field(default_factory=lambda: sys.stderr)
    uid: int = field(default_factory=os.geteuid)
    environ: dict[str, str] = field(default_factory=lambda: dict(os.environ))
    columns: int | None = None
    as_json: bool = False
    exit_code: int = 0
    _host: Host | None = None

    @property
    def host(self) -> Host:
        """The machine, made when first asked for."""
        if self._host is None:
            self._host = self.make_host()
        return self._host

    @property
    def root(self) -> bool:
        """Whether the caller is root."""
        return self.uid == 0

    @property
    def caller(self) -> str:
        """Who asked, for records: the person behind sudo, else the user's name or number."""
        named = self.environ.get("SUDO_USER") or self.environ.get("USER")
        if named:
            return named
        import pwd

        try:
            return pwd.getpwuid(self.uid).pw_name
        except KeyError:
            return f"uid {self.uid}"

    @property
    def interactive(self) -> bool:
        """Whether a person is there to answer a question."""
        return self.stdin.isatty() and self.stdout.isatty() and not self.as_json

    @property
    def width(self) -> int:
        """The columns of the terminal; 80 without one, never less than 20."""
        if self.columns is not None:
            return max(20, self.columns)
        if not self.stdout.isatty() and "COLUMNS" not in self.environ:
            return DEFAULT_WIDTH
        return max(20, shutil.get_terminal_size((DEFAULT_WIDTH, 24)).columns)

    @property
    def colour(self) -> bool:
        """Whether words of status are coloured: on a terminal, unless NO_COLOR is set (https://no-color.org)."""
        return self.stdout.isatty() and not self.environ.get("NO_COLOR") and self.environ.get("TERM") != "dumb"

    def ask(self, question: str, choices: tuple[str, ...], default: str) -> str:
        """Ask a person to choose. Raises UsageError when nobody is there or the answer is no choice thrice."""
        if not self.interactive:
            raise UsageError(f"nobody is here to answer: {question}", hint="give the answer as an option")
        for _ in range(3):
            self.stdout.write(f"{question} [{'/'.join(choices)}] ({default}): ")
            self.stdout.flush()
            line = self.stdin.readline()
            if not line:
                break
            answer = line.strip().lower() or default
            if answer in choices:
                return answer
            self.stdout.write(f"Please answer one of: {', '.join(choices)}\n")
        raise UsageError("no valid answer was given", hint=f"answer one of: {', '.join(choices)}")


_CURRENT: ContextVar[Session] = ContextVar("session")


def current() -> Session:
    """The session of the verb that is running."""
    return _CURRENT.get()


def enter(session: Session) -> None:
    """Make this the session of everything that follows."""
    _CURRENT.set(session)
