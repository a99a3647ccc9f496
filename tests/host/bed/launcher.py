"""Process 1 of a disposable host's outer namespaces: prepare them, run systemd-nspawn, end with its owner.

Started by host.py as a program of its own under ``unshare --mount --pid --net``. It watches its standard input,
a pipe whose other end the test run holds: when that closes, however the test run died, this process exits and
the kernel kills everything in the pid namespace with it.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
import subprocess
import sys
from pathlib import Path

SIOCSIFFLAGS = 0x8914
IFF_UP_RUNNING = 0x1 | 0x40


def loopback_up() -> None:
    """Bring up lo, the only interface: nothing leaves the host and no two hosts share a port."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", IFF_UP_RUNNING))


def fresh_cgroups(name: str, kept: str, place: str) -> None:
    """Show nspawn a unified cgroup tree, and stand in a group of our own so that hosts do not meet in the root.

    ``kept`` is a group of the cgroup v1 cpu tree (empty: there is none) that stays in reach at ``place``.
    """
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    if kept:
        subprocess.run(["mount", "--bind", kept, place], check=True)
    subprocess.run(["umount", "-R", "/sys/fs/cgroup"], check=False, stderr=subprocess.DEVNULL)
    subprocess.run(["mount", "-t", "cgroup2", "none", "/sys/fs/cgroup"], check=True)
    group = Path("/sys/fs/cgroup", name)
    group.mkdir(exist_ok=True)
    (group / "cgroup.procs").write_text("0", encoding="ascii")


def main() -> int:
    """Run ``launcher.py NAME KEPT PLACE ARGV…`` until nspawn ends or standard input closes."""
    name, kept, place, *argv = sys.argv[1:]
    fresh_cgroups(name, kept, place)
    loopback_up()
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL) as nspawn:
        ended = os.pidfd_open(nspawn.pid)
        ready = select.select([ended, 0], [], [])[0]
        if ended in ready:
            return nspawn.wait()
        os._exit(1)  # our owner is gone: as process 1 we take everything with us, at once


if __name__ == "__main__":
    sys.exit(main())
