"""The real machine."""

from __future__ import annotations

from agent.host import Host
from agent.host.child import RealChild
from agent.host.clock import RealClock
from agent.host.commands import RealCommands
from agent.host.files import RealFiles
from agent.host.ipc import RealIpc
from agent.host.kmsg import RealKmsg
from agent.host.web import RealHttp


def real_host(root: str = "/") -> Host:
    """The machine we run on, its files seen below `root`. Programs, sockets and clocks are always the real ones."""
    files = RealFiles(root)
    own = files if root == "/" else RealFiles()
    ipc = RealIpc()
    return Host(files, RealCommands(), RealClock(own), RealHttp(), RealChild(own), ipc, RealKmsg(ipc))
