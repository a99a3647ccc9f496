"""The daemon's control socket: acknowledge, check now, test the pager. It changes nothing on the machine.

Anyone whom the socket's permissions let through may ask: root and the members of group holdfast. Who acknowledged is
what the kernel says of the peer; only root is believed when it says for whom it asks (sudo).
"""

from __future__ import annotations

import json
import logging
import pwd
import threading
from collections.abc import Callable, Mapping

from agent.errors import HoldfastError, UsageError
from agent.host import Peer
from agent.host.ipc import Lines, Server
from agent.model import Json
from agent.protocol import Control, parse

log = logging.getLogger(__name__)

READ_S = 5.0
ACCEPT_S = 1.0

Handle = Callable[[Control, str], Mapping[str, Json]]
"""Answers one request; the second argument is who asked. Raises HoldfastError to refuse."""


class ControlServer:
    """Serves the control socket from a thread of its own, one short request for each connection."""

    def __init__(self, path: str, group: str | None, handle: Handle) -> None:
        self._server = Server(path, group)
        self._handle = handle
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="control", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop serving and remove the socket."""
        self._stopping.set()
        self._thread.join(2 * ACCEPT_S)
        self._server.close()

    def _serve(self) -> None:
        while not self._stopping.is_set():
            try:
                connection = self._server.accept(ACCEPT_S)
                if connection is None:
                    continue
                with connection:
                    connection.send(json.dumps(self._answer(connection)).encode())
            except HoldfastError as error:
                log.warning("control socket: %s", error.message)
            except Exception as error:  # noqa: BLE001 - one odd request must not end the socket
                log.error("control socket: %s", type(error).__name__)

    def _answer(self, connection: Lines) -> dict[str, Json]:
        asked = connection.receive(READ_S)
        if asked is None:
            return {"v": 1, "code": "request-invalid", "error": "no request came"}
        try:
            request = parse(Control, asked)
            return {"v": 1, "id": request.id, **self._handle(request, _name(connection.peer()))}
        except HoldfastError as error:
            return {"v": 1, "code": error.code, "error": error.message, "hint": error.hint}


def _name(peer: Peer) -> str:
    try:
        return pwd.getpwuid(peer.uid).pw_name
    except KeyError:
        return f"uid {peer.uid}"


def on_behalf_of(who: str, claimed: object) -> str:
    """Who really asks: root may name the person behind sudo, anybody else is who the kernel says."""
    if who == "root" and isinstance(claimed, str) and claimed.isprintable():
        return claimed[:64] or who
    return who


def unknown(what: str) -> UsageError:
    """The refusal of a request that names nothing we have."""
    return UsageError(f"there is no {what}", code="unknown")
