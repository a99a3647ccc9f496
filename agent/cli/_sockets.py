"""Talking to the daemon's control socket and to the runner."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from agent.errors import DaemonUnreachable, PermissionRefused, Unreachable
from agent.model import Json

if TYPE_CHECKING:
    from agent.cli._session import Session
    from agent.host import Host
    from agent.protocol import Event, Request

CONTROL_SOCKET = "/run/holdfast/control.sock"
RUNNER_SOCKET = "/run/holdfast-runner.sock"
CONNECT_S = 3.0
CONTROL_S = 60.0
"""A test page goes to every receiver, each with its own deadline."""


def new_id() -> str:
    """A fresh ULID."""
    from ulid import ULID

    return str(ULID())


def control(session: Session, do: str, arguments: dict[str, Json]) -> dict[str, Json]:
    """Ask the daemon for one thing and return its answer. Raises DaemonUnreachable, PermissionRefused."""
    import json

    from agent.protocol import Control, line

    message = Control.model_validate({"do": do, "id": new_id(), "args": arguments})
    with _connect(session.host, CONTROL_SOCKET, "sudo systemctl start holdfast") as connection:
        if not connection.send(line(message)):
            raise DaemonUnreachable("the daemon hung up", where=CONTROL_SOCKET, hint="journalctl -u holdfast")
        try:
            raw = connection.receive(CONTROL_S)
            answer = json.loads(raw) if raw else None
        except (Unreachable, ValueError):
            answer = None
    if not isinstance(answer, dict):
        raise DaemonUnreachable("the daemon gave no answer", where=CONTROL_SOCKET, hint="journalctl -u holdfast")
    if answer.get("error"):
        words, code = str(answer["error"]), str(answer.get("code") or "refused")
        raise PermissionRefused(words, code=code, hint=str(answer.get("hint") or ""), where=CONTROL_SOCKET)
    return answer


def events(session: Session, request: Request) -> Iterator[Event]:
    """The runner's answer to a request, event by event.

    Where its socket does not answer, or hangs up without a word (it is flooded), and the caller is root, the runner is
    started as a child with the same protocol, so that a repair is possible while systemd or the socket is what is
    broken. The id stays the same, so nothing is done twice.
    """
    from agent import runs

    answered = False
    try:
        try:
            for event in runs.stream(replace(session.host, ipc=_Door(session.host)), request):
                answered = True
                yield event
        except DaemonUnreachable:
            if answered or not session.root:
                raise
        if not answered and session.root:
            yield from runs.stream(replace(session.host, ipc=_OwnDoor()), request)
    except Unreachable as error:
        raise DaemonUnreachable(
            f"the runner does not go on: {error.message}", hint="holdfast status", where=request.id
        ) from error


@dataclass(frozen=True, slots=True)
class _Door:
    """Connects to the runner's socket.

    One connection, which carries the request: one that says nothing would be on record as a refused request.
    """

    host: Host

    def connect(self, path: str, *, timeout_s: float) -> Any:  # noqa: ARG002 - the primitive's interface
        return _connect(self.host, path, "sudo systemctl start holdfast-runner.socket")


class _OwnDoor:
    """Starts a runner of our own."""

    def connect(self, path: str, *, timeout_s: float) -> Any:  # noqa: ARG002 - the primitive's interface
        from agent.host.spawn import runner

        return runner()


def _connect(host: Host, path: str, hint: str) -> Any:
    try:
        return host.ipc.connect(path, timeout_s=CONNECT_S)
    except DaemonUnreachable as error:
        if "may not connect" in error.message:
            raise PermissionRefused(error.message, where=path, hint="use sudo") from error
        raise DaemonUnreachable(error.message, where=path, hint=hint) from error


def ask(session: Session, request: Request, expected: str) -> Event:
    """Ask the runner for something that is done at once, and return the event that says so. Raises Refused."""
    from agent.cli._follow import refused

    for event in events(session, request):
        if event.event == "refused":
            raise refused(event, session.host.clock.now().wall)
        if event.event == expected:
            return event
    raise DaemonUnreachable(f"the runner hung up without saying {expected!r}", where=RUNNER_SOCKET, code="runner-gone")
