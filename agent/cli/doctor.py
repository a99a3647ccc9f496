"""`holdfast doctor`: everything that would make the next bad night worse, each with its fix."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from agent.cli._result import Result
from agent.cli._session import current
from agent.cli._verb import Verb
from agent.errors import ConfigurationError, DaemonUnreachable, FileTrouble, HoldfastError
from agent.model import Status, worst

if TYPE_CHECKING:
    from agent.cli._ailments import Ailment, Facts


def doctor() -> Result:
    """Look for everything that would make the next bad night worse, and say the fix.

    Daemon, sockets, record of actions, receivers, heartbeat, driver, units, secrets, clock and journal. The exit code
    is that of the worst thing found.
    """
    from agent.cli._ailments import AREAS, examine
    from agent.views import texts

    found = examine(_facts())
    status = worst(each.status for each in found)
    data = {
        "status": status.value,
        "looked_at": [name for name, _ in AREAS],
        "findings": [_as_json(each) for each in found],
    }

    def page(width: int) -> str:
        if not found:
            return "OK - nothing found that would make a bad night worse"
        lines: list[str] = []
        rank = {Status.CRITICAL: 0, Status.WARNING: 1, Status.UNKNOWN: 2, Status.OK: 3}
        ordered = sorted(found, key=lambda each: rank[each.status])
        for each in ordered:
            lines += texts.labelled("note" if each.status is Status.OK else each.status.value, each.what, width)
            lines += texts.labelled("  fix", each.fix, width)
        return "\n".join(lines)

    return Result("doctor", data, page, exit_code=status.exit_code)


def _as_json(ailment: Ailment) -> dict[str, str]:
    return {key: str(value) for key, value in asdict(ailment).items()}


def _facts() -> Facts:
    from agent import config
    from agent.cli._ailments import Facts
    from agent.cli._memory import ledger_view, memory
    from agent.cli.status import remember

    session = current()
    settings, broken, remembered, unread = None, None, None, ""
    try:
        settings = config.load(session.host.files)
    except ConfigurationError as error:
        broken = error
    except FileTrouble as error:
        unread = error.message
    try:
        with memory() as store:
            remembered = remember(store)
    except DaemonUnreachable:
        pass
    except HoldfastError as error:
        unread = error.message
    return Facts(
        host=session.host,
        now=session.host.clock.now(),
        config=settings,
        broken=broken,
        remembered=remembered,
        unread=unread,
        ledger=ledger_view(session.host),
        root=session.root,
    )


VERB = Verb(commands=(doctor,))
