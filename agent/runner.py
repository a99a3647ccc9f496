"""The runner's door: one process per connection, as root. Who asks, what they may ask, and one request answered.

The exit code says one thing: 0, or 70 when a run was left without its outcome. Any other end of the unit than 0 calls
holdfast-recover.service, so a refusal or a caller that hangs up must not.

Under systemd the accepted Unix socket is file descriptor 0 (Accept=yes); without systemd the daemon starts this as a
child with one end of a socket pair there. Everything but the gate lives in `agent.verbs`, imported only for a request
that may be served, so that a flood of refused ones stays cheap.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
from collections.abc import Callable

from agent import access, ledger, logs
from agent.errors import HoldfastError, HostError, InternalError, Unreachable, UsageError
from agent.host import Host, Peer, ipc
from agent.host.ipc import Lines
from agent.host.real import real_host
from agent.protocol import MAX_REQUEST_BYTES, Event, Request, line, parse

log = logging.getLogger(__name__)

REQUEST_S = 5.0
"""A connection must say what it wants within this time; an idle one cannot hold a slot."""
NO_ID = "0" * 26
"""The id in the answer to something that was no request."""


def main(host: Host | None = None, descriptor: int = 0) -> int:
    """Answer the request on the socket at `descriptor`; the process's exit code. Never raises."""
    logs.to_journal("info")
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, lambda *_: stop.set())
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    host = host or real_host()
    try:
        with ipc.from_fd(descriptor) as connection:
            return answer(host, connection, stop.is_set)
    except HostError as error:
        log.warning("%s", error.message)
        return 0


def answer(host: Host, connection: Lines, stopping: Callable[[], bool]) -> int:
    """Read one request from a connection, check who asks, and serve it: 0, or 70 when a run was cut off.

    Raises HostError when the peer cannot be told.
    """
    peer = connection.peer()
    tell = _teller(connection)
    try:
        said = connection.receive(REQUEST_S, limit=MAX_REQUEST_BYTES)
        request: Request = parse(Request, said or b"")
    except Unreachable as error:
        code = "request-too-large" if error.kind == "too-large" else "no-request"
        _refuse(host, peer, NO_ID, tell, code, error.message)
        return 0
    except UsageError as error:
        _refuse(host, peer, NO_ID, tell, error.code, error.message)
        return 0
    who = access.role(host, peer)
    no = access.refusal(who, request)
    if no is not None:
        _refuse(host, peer, request.id, tell, *no)
        return 0
    from agent import verbs  # noqa: PLC0415 - a refused request must stay cheap; nothing has begun yet

    try:
        verbs.serve(host, request, who, peer.uid, tell, stopping)
    except HoldfastError as error:
        log.warning("request %s: %s: %s", request.id, error.code, error.message)
        _refuse(host, peer, request.id, tell, error.code, error.message)
    return InternalError.exit_code if request.do == "run" and _cut_off(host) else 0


def _cut_off(host: Host) -> bool:
    """Whether a run has neither an outcome nor a living process; one that cannot be told counts as one."""
    from agent import claim  # noqa: PLC0415 - see `answer`

    try:
        cut_off = ledger.open_attempts(ledger.read(host).records)
        return any(not claim.alive(host, attempt.run) for attempt in cut_off)
    except HostError:
        return True


def _refuse(host: Host, peer: Peer, request: str, tell: Callable[[Event], None], code: str, reason: str) -> None:
    """Answer with a refusal and put it on record, at most one record in ten seconds of each kind."""
    data = {"code": code, "reason": reason, "not_before": None, "needs_approval": False}
    tell(Event(id=request, seq=0, at=host.clock.now().wall, event="refused", data=data))
    try:
        ledger.prepare(host)
    except HostError as error:
        log.warning("the runner's directory cannot be made: %s", error.message)
        return
    if ledger.refused(host, peer.uid, code, reason, "" if request == NO_ID else request):
        log.warning("refused uid %d (pid %d): %s: %s", peer.uid, peer.pid, code, reason)


def _teller(connection: Lines) -> Callable[[Event], None]:
    """Sends events; a client that has gone or does not read costs the run nothing."""

    def tell(event: Event) -> None:
        connection.send(line(event))

    return tell


if __name__ == "__main__":
    sys.exit(main())
