"""The runner's door: one process per connection, as root. Who asks, what they may ask, and one request answered.

The exit code says one thing: 0, or 70 when a run was left without its outcome. Any other end of the unit than 0 calls
holdfast-recover.service, so a refusal or a caller that hangs up must not.

Under systemd the accepted Unix socket is file descriptor 0 (Accept=yes); without systemd the daemon starts this as a
child with one end of a socket pair there. What may not be served is refused with the standard library alone, because
a flood of it must stay cheap; `agent.protocol` and `agent.verbs` are imported only for a request that may be served,
and before its first step.
"""

from __future__ import annotations

import json
import logging
import re
import signal
import sys
import threading
from collections.abc import Callable

from agent import access, ledger, logs
from agent.errors import HoldfastError, HostError, InternalError, Unreachable, UsageError
from agent.host import Host, Peer, ipc
from agent.host.ipc import LINE_LIMIT, Lines
from agent.host.real import real_host
from agent.model import Json

log = logging.getLogger(__name__)

REQUEST_S = 5.0
"""A connection must say what it wants within this time; an idle one cannot hold a slot."""
ULID = r"[0-7][0-9A-HJKMNP-TV-Z]{25}"
"""As in agent.protocol, which is not imported for what is refused."""
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
    who = access.role(host, peer)
    try:
        said = connection.receive(REQUEST_S, limit=LINE_LIMIT) or b""
    except Unreachable as error:
        code = "request-too-large" if error.kind == "too-large" else "no-request"
        return _refuse(host, connection, peer, NO_ID, code, error.message)
    try:
        raw = json.loads(said)
    except (ValueError, RecursionError):
        raw = None
    if not isinstance(raw, dict):
        return _refuse(host, connection, peer, NO_ID, "request-invalid", "not a JSON object")
    no = access.refusal(who, str(raw.get("do")), force=bool(raw.get("force")))
    if no is not None:
        return _refuse(host, connection, peer, _id(raw), *no)
    from agent.protocol import Event, Request, line, parse  # noqa: PLC0415 - see above

    try:
        request: Request = parse(Request, said)
    except UsageError as error:
        return _refuse(host, connection, peer, NO_ID, error.code, error.message)
    from agent import verbs  # noqa: PLC0415 - see above

    def tell(event: Event) -> None:
        connection.send(line(event))  # a client that has gone or does not read costs the run nothing

    try:
        verbs.serve(host, request, who, peer.uid, tell, stopping)
    except HoldfastError as error:
        _refuse(host, connection, peer, request.id, error.code, error.message)
    return InternalError.exit_code if request.do in ("run", "rehearse") and _cut_off(host) else 0


def _cut_off(host: Host) -> bool:
    """Whether a run has neither an outcome nor a living process; one that cannot be told counts as one."""
    from agent import claim  # noqa: PLC0415 - see above

    try:
        cut_off = ledger.open_attempts(ledger.read(host).records, host.clock.now())
        return any(not claim.alive(host, attempt.run) for attempt in cut_off)
    except HostError:
        return True


def _id(raw: dict[str, Json]) -> str:
    """The id to answer with: the request's own where it can be one."""
    said = raw.get("id")
    return said if isinstance(said, str) and re.fullmatch(ULID, said) else NO_ID


def _refuse(host: Host, connection: Lines, peer: Peer, request: str, code: str, reason: str) -> int:
    """Answer with a refusal and put it on record, at most one record in ten seconds of each kind: exit code 0."""
    data = {"code": code, "reason": reason, "not_before": None, "needs_approval": False}
    event = {"v": 1, "id": request, "seq": 0, "at": host.clock.now().wall, "event": "refused", "data": data}
    connection.send(json.dumps(event).encode())
    try:
        ledger.prepare(host)
    except HostError as error:
        log.warning("the runner's directory cannot be made: %s", error.message)
        return 0
    if ledger.refused(host, peer.uid, code, reason, "" if request == NO_ID else request):
        log.warning("refused uid %d (pid %d): %s: %s", peer.uid, peer.pid, code, reason)
    return 0


if __name__ == "__main__":
    sys.exit(main())
