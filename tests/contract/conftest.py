"""What contract tests share."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

import pytest

from tests.support.child import Child
from tests.support.loopback import Serve, serving


@pytest.fixture
def children() -> Iterator[list[Child]]:
    """Every child of a test; whichever still lives at its end is killed."""
    born: list[Child] = []
    yield born
    for child in born:
        child.here.close()
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(child.pid, signal.SIGKILL)
            child.wait()


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts a server on loopback: each connection is handed to a function, in a thread."""
    yield from serving()
