"""`holdfast hold`: put the driver's packages on hold, or say what that would be and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from agent.cli._common import need_root, recorded_name
from agent.cli._result import Live, Result
from agent.cli._session import current
from agent.cli._verb import Verb
from agent.errors import FileTrouble, UsageError
from agent.model import Json

if TYPE_CHECKING:
    from agent.host.hold_set import Chosen
    from agent.host.holding import Look

OURS, OTHERS, UNKNOWN = "holdfast", "somebody else", "unknown"


def hold(
    explain: Annotated[
        bool,
        typer.Option("--explain", help="Say what would be held, what is held already, what is left alone, and why."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show every step with its real values and do nothing.")
    ] = False,
    because: Annotated[str, typer.Option("--because", help="Why, for the record.")] = "",
) -> Result | Live:
    """Hold the driver's packages, and the kernel's where its modules are prebuilt, so that no upgrade moves them.

    Waits up to ten minutes for whoever is changing packages. What somebody else holds stays theirs. Ctrl-C leaves the
    run going on.
    """
    if explain:
        if dry_run or because:
            raise UsageError("--explain only reads: it goes with no other option", hint="holdfast hold --explain")
        return _explained()
    from agent.cli.run import run

    session = current()
    need_root(session, "holdfast hold")
    return run("hold-driver", subject="host", inputs=[f"by={recorded_name(session)}"], dry_run=dry_run, because=because)


def _explained() -> Result:
    """What `hold` would do here now. Raises HostError where dpkg cannot be asked."""
    from agent.host import changes, holding, holds

    host = current().host
    found = holding.look(host)
    try:
        owned, readable = holds.owned(host), True
    except FileTrouble as error:
        if error.kind != "denied":
            raise
        owned, readable = None, False
    mine = owned.packages if owned is not None and not owned.suspended else ()
    packages = [_row(chosen, mine, readable=readable) for chosen in found.chosen.packages]
    change = changes.in_words(host) if readable else ""
    data: dict[str, Json] = {
        "driver": found.driver or None,
        "kernel": found.chosen.kernel or None,
        "asked": owned is not None if readable else None,
        "suspended": owned.suspended if owned is not None else False,
        "change": change or None,
        "refused": None if found.refusal is None else {"code": found.refusal.code, "reason": found.refusal.words},
        "packages": packages,
        "left": [_row(chosen, mine, readable=readable) for chosen in found.chosen.left],
    }
    return Result("holds", data, lambda width: "\n".join(_lines(found, data, width)))


def _row(chosen: Chosen, mine: Sequence[str], *, readable: bool) -> dict[str, Json]:
    """One package: whether it is on hold, by whom, and why it is chosen or left."""
    package = chosen.package
    by = None
    if package.held:
        by = UNKNOWN if not readable else OURS if package.key in mine else OTHERS
    return {
        "name": package.name,
        "architecture": package.architecture,
        "version": package.version,
        "held": package.held,
        "held_by": by,
        "reason": chosen.reason,
    }


def _lines(found: Look, data: dict[str, Json], width: int) -> list[str]:
    from agent.views import texts

    rows = [("hold", _name(row), _held(row), row["reason"]) for row in data["packages"]]
    rows += [("leave", _name(row), _held(row), row["reason"]) for row in data["left"]]
    lines = texts.table(("WHAT", "PACKAGE", "ON HOLD", "WHY"), rows, width)
    kernel = f" and kernel {found.chosen.kernel}, whose modules are prebuilt" if found.chosen.kernel else ""
    chosen, on_hold = data["packages"], sum(1 for row in data["packages"] if row["held"])
    words = f"{len(chosen)} packages for driver {found.driver or '(not locked)'}{kernel}; {on_hold} are on hold now"
    lines += texts.labelled("", words, width) if chosen else []
    if any(row["held_by"] == UNKNOWN for row in chosen):
        lines += texts.labelled("", "whose holds they are is root's to read: sudo holdfast hold --explain", width)
    if found.refusal is not None:
        return [*lines, *texts.labelled("refused", found.refusal.words, width)]
    if data["change"]:
        words = f"a planned change is open ({data['change']}): holds come back when it ends"
        return [*lines, *texts.labelled("refused", words, width)]
    if on_hold < len(chosen):
        lines += texts.command("next", "sudo holdfast hold", width)
    return lines


def _name(row: dict[str, Json]) -> str:
    return f"{row['name']}:{row['architecture']}"


def _held(row: dict[str, Json]) -> str:
    return f"by {row['held_by']}" if row["held_by"] not in (None, UNKNOWN) else "yes" if row["held"] else "no"


VERB = Verb(commands=(hold,))
