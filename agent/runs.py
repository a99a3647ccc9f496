"""Asks the root runner for one thing and follows its answer to the end. Used by the daemon and the command line.

The stream is a tail of the run's transcript; when the connection ends early the run goes on, and asking again under
the same id is answered with its outcome.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pydantic import ValidationError

from agent.errors import DaemonUnreachable
from agent.host import Host
from agent.model import Decision, Outcome, Run
from agent.protocol import Event, Request, line

SOCKET = "/run/holdfast-runner.sock"
CONNECT_S = 5.0
QUIET_S = 3600.0
"""A run may say nothing for this long (a build, a model that loads) before the stream is given up."""


def stream(host: Host, request: Request, *, socket: str = SOCKET, quiet_s: float = QUIET_S) -> Iterator[Event]:
    """The events that answer a request. Raises DaemonUnreachable when the runner cannot be asked."""
    with host.ipc.connect(socket, timeout_s=CONNECT_S) as connection:
        if not connection.send(line(request)):
            raise DaemonUnreachable("the runner closed the connection", where=socket)
        while True:
            answer = connection.receive(quiet_s)
            if answer is None:
                return
            try:
                event = Event.model_validate_json(answer)
            except ValidationError as error:
                raise DaemonUnreachable("the runner answered something else than an event", where=socket) from error
            yield event
            if event.event == "ended":
                return


def ask(
    host: Host, request: Request, *, socket: str = SOCKET, heard: Callable[[Event], None] = lambda _: None
) -> tuple[Run | None, Decision | None]:
    """Ask and wait for the end: the run and, when it was refused, the runner's decision. heard: told of every event.

    None for the run means that the runner could not be asked, or never heard of the run. A run that waits for a reboot
    has no outcome.
    """
    started = host.clock.now().wall
    decision: Decision | None = None
    waits: Run | None = None
    for event in stream(host, request, socket=socket):
        heard(event)
        if event.event == "refused":
            decision = Decision(
                False,
                str(event.data.get("reason", "")),
                str(event.data.get("code", "")),
                bool(event.data.get("needs_approval")),
                event.data.get("not_before"),
            )
        elif event.event == "parked":
            waits = Run(
                request.id, request.runbook or "", request.subject or "", request.because, started, None, None,
                str(event.data.get("summary", "")),
            )  # fmt: skip
        elif event.event == "ended":
            try:
                return _run(request, event, started), decision
            except (KeyError, ValueError) as error:  # of another version, after an upgrade
                raise DaemonUnreachable("the runner told an outcome that is not known here", where=socket) from error
    if decision is not None and decision.code not in NEVER_HEARD_OF:
        run = Run(
            request.id,
            request.runbook or "",
            request.subject or "",
            request.because,
            started,
            host.clock.now().wall,
            Outcome.REFUSED,
            decision.reason,
        )
        return run, decision
    return waits, decision


NEVER_HEARD_OF = frozenset({"unknown-run"})
"""Refusals of `follow` that mean: no such run was ever begun."""


def _run(request: Request, event: Event, started: float) -> Run:
    return Run(
        request.id,
        request.runbook or str(event.data.get("runbook", "")),
        request.subject or str(event.data.get("subject", "")),
        request.because,
        started,
        event.at,
        Outcome(event.data["outcome"]),
        str(event.data.get("summary", "")),
        str(event.data.get("signature", "")),
    )
