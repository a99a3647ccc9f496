"""What holdfast-recover.service runs, at boot and after a runner died: finish or undo every run that was cut off."""

from __future__ import annotations

import logging
import signal
import sys
import threading

from agent import access, config, ledger, logs, recovery, verbs
from agent.errors import HoldfastError
from agent.host import Host
from agent.host.real import real_host
from agent.steps import StopAsked

log = logging.getLogger(__name__)


def main(host: Host | None = None) -> int:
    """Recover once; the process's exit code. Runs that still live are left alone."""
    logs.to_journal("info")
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    host = host or real_host()
    try:
        ledger.prepare(host)
        if not ledger.open_attempts(ledger.read(host).records, host.clock.now()):
            return 0
        verbs.preload()
        finished = recovery.recover(host, config.load(host.files, owner=access.own_uid()), stopping=stop.is_set)
    except StopAsked:
        log.warning("stopped before every cut-off run was finished; the next recovery goes on")
        return 0
    except HoldfastError as error:
        log.warning("%s: %s", error.code, error.message)
        return error.exit_code
    log.info("%d cut-off runs finished", len(finished))
    return 0


if __name__ == "__main__":
    sys.exit(main())
