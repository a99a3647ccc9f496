"""Performs one action's plan, step by step, and words the same plan for hands.

There is one plan: what is performed here is what `by_hand` prints.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from agent.errors import CommandFailed, HoldfastError, HostError
from agent.host import Host, builds
from agent.model import Json, Moment
from agent.plugin import AwaitReboot, Command, Noop, Plan, PlanStep, Progress, Read, RemoveFile, Wait, WriteFile

POLL_S = 0.2
"""How often a condition is looked at."""
PROGRESS_S = 2.0
"""How often a long wait is asked how far it is; what it says is told when it says something new,"""
PROGRESS_AT_LEAST_S = 10.0
"""and this often when it says the same, so that whoever follows sees that it lives."""
OUTPUT_LIMIT = 8192
"""Characters of output kept of one action."""
OWN = "/var/lib/holdfast-runner/"
"""Below it lies what we note for ourselves; nobody else writes there."""
TYPED_LIMIT = 1000
"""Nobody types a longer file from paper."""


class StepFailed(HoldfastError):
    """A step did not do what it should. `code` goes into the run's signature where the engine's log says nothing."""

    code = "step-failed"


class StepRefused(HoldfastError):
    """The plan refuses. `not_before_s` is how long to wait, None when waiting will not help."""

    code = "refused"

    def __init__(self, message: str, code: str, not_before_s: float | None) -> None:
        super().__init__(message, code=code)
        self.not_before_s = not_before_s


class RebootAwaited(HoldfastError):
    """Everything is done that can be done before a reboot, which a person makes."""

    code = "reboot-awaited"


class StopAsked(HoldfastError):
    """Somebody asked this run to stop (SIGTERM)."""

    code = "stopped"


@dataclass(frozen=True, slots=True)
class Performed:
    """What a plan left behind: one line, the output that was kept, and whether anything was changed."""

    summary: str
    output: str
    changed: bool


@dataclass(frozen=True, slots=True)
class Performer:
    """How plans are performed in one run.

    stopping: whether somebody asked to stop; looked at between steps and while waiting. A command that has begun is
        left to end, unless it says that it may be interrupted. progress: what is told meanwhile, and how far it is.
        group: owner group of files below `own`. touch: called right before the first change.
    """

    host: Host
    stopping: Callable[[], bool] = lambda: False
    progress: Callable[[Progress], None] = lambda _: None
    touch: Callable[[], None] = lambda: None
    own: str = OWN
    group: str | None = None

    def perform(self, plan: Plan, timeout_s: float | None = None) -> Performed:
        """Do all of it. Raises StepFailed, StepRefused, RebootAwaited or StopAsked.

        timeout_s: a limit on the whole, looked at between steps and while waiting; each command has its own.
        """
        started = self.host.clock.now()
        kept: list[str] = []
        changed = False
        summary = "done"
        for step in plan.steps:
            if self.stopping():
                raise StopAsked("asked to stop")
            left = None if timeout_s is None else timeout_s - self.host.clock.now().since(started)
            if left is not None and left <= 0:
                raise StepFailed(f"not done within {timeout_s:g} s", code="timeout")
            if isinstance(step, (Command, WriteFile, RemoveFile)):
                self.touch()
                changed = True
            said = self._one(step, left)
            if isinstance(step, Noop) or (isinstance(step, Read) and step.sums_up):
                summary = said
            elif said:
                kept.append(said)
        return Performed(summary, "\n".join(kept)[:OUTPUT_LIMIT], changed)

    def _one(self, step: PlanStep, left_s: float | None) -> str:
        """What the step said. The order of kinds is that of `PlanStep`."""
        try:
            if isinstance(step, Command):
                return self._command(step, left_s)
            if isinstance(step, WriteFile):
                group = self.group if step.path.startswith(self.own) else None
                content = step.content if isinstance(step.content, str) else step.content(self.host)
                self.host.files.write_atomic(step.path, content, step.mode, group=group)
                return ""
            if isinstance(step, RemoveFile):
                self.host.files.remove(step.path)
                return ""
            if isinstance(step, Wait):
                return self._wait(step, left_s)
            if isinstance(step, Read):
                answer = step.read(self.host)
                return str(answer) if step.sums_up else f"{step.words}: {json.dumps(answer, sort_keys=True)}"
            if isinstance(step, AwaitReboot):
                if step.test(self.host):
                    raise RebootAwaited(step.reason)
                return ""
        except CommandFailed as error:
            if error.code == "command-stopped":
                raise StopAsked(f"asked to stop: {error.message}") from error
            raise StepFailed(error.message, code=error.code) from error
        except HostError as error:
            raise StepFailed(error.message, where=error.where) from error
        if isinstance(step, Noop):
            return step.reason
        raise StepRefused(step.reason, step.code, step.not_before_s)

    def _command(self, step: Command, left_s: float | None) -> str:
        timeout_s = step.timeout_s if left_s is None else min(step.timeout_s, max(left_s, 0.1))
        if step.words:
            self.progress(Progress(step.words))
        # Without the argument for all others: few programs may be stopped, and a stand-in need not know of it.
        more: dict[str, Any] = {"stopping": self.stopping} if step.interruptible else {}
        done = self.host.run(step.argv, timeout_s=timeout_s, user=step.user, cwd=step.cwd, **more)
        if done.rc not in step.accept:
            if step.interruptible and self.stopping():  # the same SIGTERM may have reached it before us
                raise StopAsked(f"asked to stop during {shlex.join(step.argv)[:200]}")
            last = (done.stderr.strip() or "no message").splitlines()[-1]
            raise StepFailed(f"{shlex.join(step.argv)} exited {done.rc}: {last[:200]}", code="command-failed")
        return done.stdout.strip() if step.keep else ""

    def _wait(self, step: Wait, left_s: float | None) -> str:
        started = self.host.clock.now()
        limit_s = step.timeout_s if left_s is None else min(step.timeout_s, left_s)
        meter = _Meter(self, step)
        while not step.until.test(self.host):
            if self.stopping():
                raise StopAsked(f"asked to stop while waiting until {step.until.words}")
            if self.host.clock.now().since(started) >= limit_s:
                if step.on_timeout is not None:
                    return self._one(step.on_timeout, left_s)
                raise StepFailed(step.why or f"waited {limit_s:g} s in vain until {step.until.words}", code=step.code)
            meter.tick()
            self.host.clock.sleep(POLL_S)
        return ""


class _Meter:
    """Tells how far one wait is: that it waits, and where that can be known, how much is done and left."""

    def __init__(self, performer: Performer, step: Wait) -> None:
        self._performer = performer
        self._step = step
        self._began = performer.host.clock.now()
        self._asked: Moment | None = None
        self._told: tuple[str, int | None] | None = None
        self._told_at = self._began

    def tick(self) -> None:
        """Ask and tell, when it is time for it."""
        now = self._performer.host.clock.now()
        if self._step.progress is None:
            if self._told is None and now.since(self._began) > 1.0:
                self._tell(Progress(f"waiting until {self._step.until.words}"), now)
            return
        if self._asked is not None and now.since(self._asked) < PROGRESS_S:
            return
        self._asked = now
        try:
            seen = self._step.progress(self._performer.host)
        except Exception:  # noqa: BLE001 - that nobody can tell how far it is must not end it
            return
        if seen is None:
            return
        if self._told != _gist(seen) or now.since(self._told_at) >= PROGRESS_AT_LEAST_S:
            self._tell(seen, now)

    def _tell(self, seen: Progress, now: Moment) -> None:
        self._told, self._told_at = _gist(seen), now
        self._performer.progress(seen)


def _gist(seen: Progress) -> tuple[str, int | None]:
    """What makes two of them differ for a person: the words and the whole percent."""
    return seen.words, None if seen.percent is None else int(seen.percent)


def by_hand(plan: Plan, *, contents: bool = False) -> list[str]:
    """The plan as lines a person can type or read: commands as they are, the rest as comments.

    contents: for paper, with what the files get that she writes, and without those that only Holdfast reads. It stays
    out of records, and of what an approval is bound to, because it may name the time.
    """
    if contents and any(map(_typed, plan.steps)):
        return [line for step in plan.steps for line in _typed(step)]
    return [line for step in plan.steps for line in _line(step)]


def _typed(step: PlanStep) -> list[str]:
    """A step as it is typed: a file with its content, unless nobody could type that; nothing that only we say."""
    if isinstance(step, Command) and step.accept != (0,):
        return [f"{line}    # may fail" for line in _line(step)]
    if isinstance(step, Noop) or (isinstance(step, Read) and not step.by_hand):
        return []
    if not isinstance(step, WriteFile):
        return _line(step)
    if step.path.startswith((OWN, f"{builds.CACHE}/")) or not isinstance(step.content, str):
        return []  # what we note for ourselves, and what we saw on the way
    if len(step.content) > TYPED_LIMIT or not step.content.replace("\n", "").isprintable():
        return _line(step)
    content = step.content.replace("\\", "\\\\").replace("%", "%%").replace("\n", "\\n")
    written = shlex.join(("install", f"--mode={step.mode:04o}", "/dev/stdin", step.path))
    return [f"{shlex.join(('printf', '--', content))} | {written}"]


def _line(step: PlanStep) -> list[str]:
    if isinstance(step, Command):
        as_user = ("runuser", "-u", step.user, "--") if step.user else ()
        line = shlex.join((*as_user, *step.argv))
        return [f"cd {shlex.quote(step.cwd)} && {line}" if step.cwd else line]
    if isinstance(step, WriteFile):
        return [f"# write {shlex.quote(step.path)} (mode {step.mode:o})"]
    if isinstance(step, RemoveFile):
        return [f"rm --force -- {shlex.quote(step.path)}"]
    if isinstance(step, Wait):
        looked = [f"{shlex.join(step.until.by_hand)}    # until {step.until.words}, at most {step.timeout_s:g} s"]
        lines = looked if step.until.by_hand else [f"# wait until {step.until.words}, at most {step.timeout_s:g} s"]
        if step.on_timeout is not None:
            return [*lines, *(f"{line}    # only if it does not" for line in _line(step.on_timeout))]
        return lines
    if isinstance(step, Read):
        return [f"{shlex.join(step.by_hand)}    # {step.words}" if step.by_hand else f"# look at {step.words}"]
    if isinstance(step, Noop):
        return [f"# nothing to do: {step.reason}"]
    waits = "where it is needed, reboot at a quiet hour" if isinstance(step, AwaitReboot) else "refused"
    return [f"# {waits}: {step.reason}"]


def before_json(before: Mapping[str, Json] | None) -> Json:
    """What undo will need, as plain JSON."""
    return None if before is None else json.loads(json.dumps(dict(before)))
