"""Makes the observations that need root's eyes, read-only and one per connection: a check's name in, JSON out.

`main` is what holdfast-inspect@.service runs; `ask` is the daemon's end. Only checks marked `as_root` are served, on
subjects and with parameters from root-owned configuration. Nothing the caller sends reaches the machine but the name
of a check, of a subject, and what the same check observed last time. It also hands over the kernel's log, open to read.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Iterable
from types import FrameType

from agent import access, config, logs, plugin
from agent.access import Role
from agent.errors import DaemonUnreachable, FileTrouble, HoldfastError, HostError, StoreError, Unreachable, UsageError
from agent.host import Host, ipc, kmsg
from agent.host.ipc import Lines
from agent.host.real import real_host
from agent.model import Json, Observation, Observed
from agent.plugin import Check, Target
from agent.protocol import MAX_REQUEST_BYTES, Hand, Inspect, line, parse
from agent.store.codec import from_text, to_text

log = logging.getLogger(__name__)

SOCKET = kmsg.INSPECTOR
REQUEST_S = 5.0
"""A connection must say what it wants within this time."""
CONNECT_S = 2.0
SPARE_S = 3.0
"""On top of a check's own timeout: starting the inspector and reading the configuration."""
ANSWER_LIMIT = 1 << 20
"""Bytes of one answer."""
_HAND = b'{"v":1,"hand":'


# --- the daemon's end ----------------------------------------------------------------------------------------


def ask(
    host: Host, check: Check, target: Target, before: Observed | None, *, socket: str = SOCKET
) -> Iterable[Observation]:
    """The observations of one check, made by root. Raises DaemonUnreachable, or HostError with root's reason."""
    said = None if before is None else json.loads(to_text(before))
    with host.ipc.connect(socket, timeout_s=CONNECT_S) as connection:
        if not connection.send(line(Inspect(check=check.id, subject=target.subject, before=said))):
            raise DaemonUnreachable("the inspector closed the connection", where=socket)
        answer = connection.receive(check.timeout_s + SPARE_S, limit=ANSWER_LIMIT)
    if answer is None:
        raise DaemonUnreachable("the inspector ended without an answer", where=socket)
    try:
        found = json.loads(answer)
        if "error" in found:
            raise HostError(str(found["error"]["message"]), code=str(found["error"]["code"]), where=socket)
        return tuple(from_text(Observation, json.dumps(each)) for each in found["observations"])
    except (ValueError, TypeError, KeyError, StoreError) as error:
        raise DaemonUnreachable("the inspector answered something else than observations", where=socket) from error


# --- root's end ----------------------------------------------------------------------------------------------


def main(host: Host | None = None, descriptor: int = 0) -> int:
    """Answer the question on the socket at `descriptor`; the process's exit code."""
    logs.to_journal("info")
    host = host or real_host()
    try:
        with ipc.from_fd(descriptor) as connection:
            _send(connection, answer(host, connection))
    except HostError as error:
        log.warning("%s", error.message)
        return error.exit_code
    return 0


def answer(host: Host, connection: Lines) -> dict[str, Json]:
    """What is sent back: the observations, or why there are none. Raises HostError when there is no peer to ask."""
    peer = connection.peer()
    try:
        if access.role(host, peer) is Role.READER:
            return _wrong("permission", "only root and the daemon may ask")
        said = connection.receive(REQUEST_S, limit=MAX_REQUEST_BYTES) or b""
        if said.startswith(_HAND):  # nothing that a check observed before can stand there
            return {"v": 1, "hand": parse(Hand, said).hand}
        question: Inspect = parse(Inspect, said)
        return {"v": 1, "check": question.check, "subject": question.subject, "observations": _observed(host, question)}
    except HoldfastError as error:
        too_large = isinstance(error, Unreachable) and error.kind == "too-large"
        code = "request-too-large" if too_large else error.code
        log.warning("uid %d: %s: %s", peer.uid, code, error.message)
        return _wrong(code, error.message)
    except Exception as error:  # noqa: BLE001 - its message may quote what an engine said
        log.warning("uid %d: the observation crashed: %s", peer.uid, type(error).__name__)
        return _wrong("crashed", f"the observation crashed: {type(error).__name__}")


def _send(connection: Lines, said: dict[str, Json]) -> None:
    """Send the answer; with the open log where that was asked for."""
    if "hand" not in said:
        connection.send(json.dumps(said).encode(), timeout_s=REQUEST_S)
        return
    try:
        descriptor = kmsg.open_log()
    except FileTrouble as trouble:
        log.warning("%s", trouble.message)
        connection.send(json.dumps(_wrong(trouble.code, trouble.message)).encode(), timeout_s=REQUEST_S)
        return
    try:
        connection.send_descriptor(json.dumps(said).encode(), descriptor)
    finally:
        os.close(descriptor)


def _wrong(code: str, message: str) -> dict[str, Json]:
    return {"v": 1, "error": {"code": code, "message": message[:500]}}


def _observed(host: Host, question: Inspect) -> Json:
    """Observe. Raises UsageError for what may not be asked, and what the check raises."""
    check = plugin.checks().get(question.check)
    if check is None or not check.as_root:
        raise UsageError(f"{question.check} is not a check that observes as root", code="unknown-check")
    settings = config.load(host.files, owner=access.own_uid())
    target = settings.target(check, question.subject)
    if target is None:
        raise UsageError(f"{check.id} does not apply to {question.subject}", code="unknown-subject")
    before = None
    if question.before is not None:
        try:
            before = from_text(Observed, json.dumps(question.before))
        except StoreError as error:
            raise UsageError("`before` is not what this check observes", code="request-invalid") from error
    with _Deadline(check.timeout_s):
        observations = tuple(check.observe(host, target, before))
    said = [json.loads(to_text(each)) for each in observations]
    if len(json.dumps(said)) > ANSWER_LIMIT - 1024:
        raise HostError(f"{check.id} observed more than {ANSWER_LIMIT} bytes", code="too-large")
    return said


class _Deadline:
    """Ends an observation that takes longer than its check may: this process exists for this one question.

    A call that hangs in the kernel cannot be ended; then the caller's own deadline counts.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __enter__(self) -> None:
        signal.signal(signal.SIGALRM, self._late)
        signal.setitimer(signal.ITIMER_REAL, self._seconds)

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.0)

    def _late(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the signal module's contract
        raise HostError(f"not observed within {self._seconds:g} s", code="timeout")


if __name__ == "__main__":
    sys.exit(main())
