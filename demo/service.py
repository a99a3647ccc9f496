"""Starts one process of the product on the demonstration's host: `python -m demo.service WHICH ROOT`.

The product's own entry points take a Host; nothing of the product is changed.
"""

from __future__ import annotations

import sys
from pathlib import Path

from demo.host import demo_host, place

# ruff: noqa: PLC0415 - each process imports what it is, so that a run begins as soon as it does under systemd


def main() -> int:
    """Be the daemon, or answer the one connection on fd 0 as the runner or the inspector does."""
    which, root = sys.argv[1], Path(sys.argv[2])
    host = demo_host(root)
    if which == "runner":
        from agent import runner

        return runner.main(host)
    if which == "inspector":
        from agent import inspector

        return inspector.main(host)
    from agent import logs, store
    from agent.daemon import Daemon, Paths

    logs.to_journal("info")
    paths = Paths(store=str(place(root, store.PATH)), control=str(place(root, Paths().control)), group=None)
    Daemon(host, paths).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
