"""`holdfast change`: a planned change of the driver or the kernel, from its beginning to its end, over reboots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from agent.cli._common import Force, need_root, readable, recorded_name, seconds
from agent.cli._result import Live, Result, plain, rfc3339
from agent.cli._session import Session, current
from agent.cli._verb import Verb
from agent.errors import FileTrouble, Refused, UsageError
from agent.model import Json, Status

if TYPE_CHECKING:
    from agent.host.change_guide import Next
    from agent.host.changes import Change
    from agent.host.planned import Truth
    from agent.protocol import Request

MARKS = {True: "✓", False: "✗", None: "?"}
HINTS = {
    "change-incomplete": "holdfast change status",
    "change-open": "holdfast change status",
    "no-change": "sudo holdfast change begin --to VERSION --reason '…'",
    "no-lock": "sudo holdfast lock write",
    "driver-inconsistent": "mend that first (holdfast lock show); or begin all the same with --force",
}
"""What to do about a refusal, by its code, where the refusal does not say it."""


def begin(
    reason: Annotated[str, typer.Option("--reason", help="Why, for the record and for everyone who sees it.")],
    to: Annotated[str | None, typer.Option("--to", metavar="VERSION", help="The driver version it leads to.")] = None,
    kernel: Annotated[
        str | None, typer.Option("--kernel", metavar="RELEASE", help="The kernel release it leads to.")
    ] = None,
    window: Annotated[str, typer.Option("--window", help="How long it may take: 30m, 4h, 1d.")] = "4h",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done and do nothing.")] = False,
    force: Force = False,
) -> Result | Live:
    """Begin a planned change: the way is open for exactly this driver and kernel, and engines are not restarted.

    It stays open over reboots until it is finished or aborted. A pause does not matter to it.
    """
    from agent.cli.run import asking, preview

    session = current()
    if to is None and kernel is None:
        raise UsageError("neither a driver nor a kernel is planned", hint="--to VERSION, --kernel RELEASE or both")
    need_root(session, "holdfast change begin --to VERSION --reason '…'")
    request = asking(
        do="plan" if dry_run else "run",
        id=_new_id(),
        runbook="begin-change",
        subject="host",
        args={
            "to": to or "",
            "kernel": kernel or "",
            "reason": reason,
            "window": f"{seconds(window):.0f}s",
            "by": recorded_name(session),
            "force": force,
        },
        because=reason[:500],
        force=force,
    )
    if dry_run:
        return preview(session, request, "begin a planned change")
    return _done(session, request, guide=True)


def status() -> Result:
    """Show the planned change that is open: what has come true, what is missing, and what to type next.

    The exit code is 0, or 1 when it is open beyond its window or its record is broken.
    """
    from agent.host import changes

    session = current()
    try:
        change = changes.read(session.host)
    except FileTrouble as error:
        if error.kind == "denied":
            raise readable(error) from error
        words = f"WARNING  a planned change counts as open, and its record is broken: {error.message}"
        text = plain(f"{words}\nnext     sudo holdfast change abort")
        return Result("change", {"change": None, "problem": error.message}, text, Status.WARNING.exit_code)
    if change is None:
        return Result("change", {"change": None, "problem": None}, plain("no planned change is open"))
    return _page(session, change)


def finish() -> Live:
    """Finish the planned change: check everything, prove tokens, write the new lock, set the holds again.

    What is missing is said at once, and the change stays open until nothing is.
    """
    return _end("finish", "the planned change is done")


def abort() -> Live:
    """Give the planned change up: holds are set again, the lock stays as it is, and nothing is taken back."""
    return _end("abort", "the planned change is given up")


def _end(verb: str, because: str) -> Live:
    """Ask for the runbook that ends the change in one way or the other."""
    from agent.cli.run import asking

    session = current()
    need_root(session, f"holdfast change {verb}")
    arguments: dict[str, Json] = {"by": recorded_name(session)}
    book = f"{verb}-change"
    return _done(session, asking(do="run", id=_new_id(), runbook=book, subject="host", args=arguments, because=because))


def _new_id() -> str:
    from agent.cli._sockets import new_id

    return new_id()


def _done(session: Session, request: Request, *, guide: bool = False) -> Live:
    """Follow the run to its end. guide: show afterwards what the change is missing."""
    from agent.cli import _follow
    from agent.host import changes

    try:
        result = yield from _follow.run(session, request)
    except Refused as error:
        error.hint = error.hint or HINTS.get(error.code, "")
        raise
    change = changes.read(session.host) if guide and result.exit_code == 0 else None
    if change is None:
        return result
    page = _page(session, change)
    data = {**result.data, **page.data}
    return Result(result.kind, data, lambda width: f"{result.text(width)}\n\n{page.text(width)}", result.exit_code)


def _page(session: Session, change: Change) -> Result:
    """One page: what is planned, since when, how long left, each truth, and what to type next."""
    from agent.host import change_guide, planned
    from agent.host.change_guide import Next

    seen = planned.look(session.host)
    found = planned.truths(change, seen)
    manual, offered = change_guide.asked_for(session.host), change_guide.offered_modules(session.host)
    guide = change_guide.next_step(change, found, seen.packages, manual, offered)
    if not session.root and any(each.ok is None for each in found):
        guide = Next("only root sees all of it", "sudo holdfast change status")
    left_s = -change.overdue_s(session.host.clock.now())
    data: dict[str, Json] = {
        "change": {
            "id": change.id,
            "to": change.to,
            "kernel": change.kernel or None,
            "reason": change.reason,
            "by": change.by,
            "since": rfc3339(change.since.wall),
            "window_s": change.window_s,
            "left_s": left_s,
            "locked": change.locked,
        },
        "problem": None,
        "complete": all(each.ok for each in found),
        "truths": [{"name": each.name, "ok": each.ok, "found": each.words} for each in found],
        "next": {"why": guide.why, "command": guide.command or None},
    }
    now = session.host.clock.now().wall
    code = Status.OK if left_s >= 0 else Status.WARNING
    return Result("change", data, lambda width: _text(change, found, guide, now, left_s, width), code.exit_code)


def _text(change: Change, found: Sequence[Truth], guide: Next, now: float, left_s: float, width: int) -> str:
    from agent.views import texts

    left = f"{texts.duration(left_s)} left" if left_s >= 0 else f"OVERDUE for {texts.duration(-left_s)}"
    lines = [
        *texts.labelled("change", change.words, width),
        *texts.labelled("begun", f"{texts.ago(change.since.wall, now)} by {change.by}; {left}", width),
        *texts.labelled("lock", f"{change.locked}, until the change is finished", width),
        "",
    ]
    longest = max(len(each.name) for each in found)
    for each in found:
        lines += texts.labelled(f"{MARKS[each.ok]} {each.name}", each.words, width, label_width=longest + 4)
    lines += ["", *texts.labelled("next", guide.why, width)]
    return "\n".join([*lines, *([f"  {guide.command}"] if guide.command else [])])


VERB = Verb(
    commands=(begin, status, finish, abort), help="Plan a change of the driver or the kernel, and see it through.",
    group=True,
)  # fmt: skip
