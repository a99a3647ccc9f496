"""What we say in the journal: one line through stderr, with systemd's level prefix and a redaction filter in front."""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from types import TracebackType
from typing import TextIO

from agent.host.process import redact_argv

log = logging.getLogger(__name__)

_PREFIX = {
    logging.DEBUG: "<7>",
    logging.INFO: "<6>",
    logging.WARNING: "<4>",
    logging.ERROR: "<3>",
    logging.CRITICAL: "<2>",
}


class _JournalFormatter(logging.Formatter):
    """One line: level for journald (sd-daemon(3)), text with everything that looks like a secret taken out."""

    def format(self, record: logging.LogRecord) -> str:
        words = " ".join(record.getMessage().split())
        return _PREFIX.get(record.levelno, "<5>") + " ".join(redact_argv(words.split(" ")))


def to_journal(level: str, stream: TextIO | None = None) -> None:
    """Send everything from `level` ("debug", "info", "warning", "error") on to the journal, which is stderr."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_JournalFormatter())
    logging.basicConfig(handlers=[handler], force=True)
    # A record that cannot be formatted or written would otherwise be printed raw, before the redaction.
    logging.raiseExceptions = False
    set_level(level)
    sys.excepthook = lambda kind, _, trace: log.critical("crashed: %s", _place(kind, trace))
    threading.excepthook = lambda args: log.critical("a thread crashed: %s", _place(args.exc_type, args.exc_traceback))
    for noisy in ("apscheduler", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


def _place(kind: type[BaseException], trace: TracebackType | None) -> str:
    """What a bug of ours was and the way to it; not its message, which may quote what an engine said."""
    way = (f"{frame.filename.rsplit('/', 2)[-1]}:{frame.lineno}" for frame in traceback.extract_tb(trace))
    return " > ".join((kind.__name__, *way))


def set_level(level: str) -> None:
    """Say everything from `level` on, from now on."""
    logging.getLogger().setLevel(level.upper())
