"""A forked child at the other end of a real socket: cheaper than a fresh program, and it can be killed like one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from agent import protocol
from agent.host import ipc
from agent.host.ipc import Lines
from agent.protocol import Event, Request


class Child:
    """A forked runner or recovery, with this process at the other end of its socket."""

    def __init__(self, act: Callable[[Lines], int]) -> None:
        self.here, there = ipc.pair()
        self.pid = os.fork()
        if self.pid == 0:
            code = 70
            try:
                self.here.close()
                code = act(there)
            finally:
                os._exit(code)
        there.close()

    def say(self, request: Request) -> None:
        assert self.here.send(protocol.line(request))

    def events(self) -> Iterator[Event]:
        while (line := self.here.receive(20.0)) is not None:
            yield Event.model_validate_json(line)

    def wait(self) -> int:
        """Its exit status, negative for a signal."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
