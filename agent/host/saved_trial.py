"""Tries a saved driver in a scratch root: a program of its own, in mount, network and pid namespaces of its own.

    unshare --mount --net --ipc --uts --pid --fork --kill-child python3 -IS saved_trial.py SET WORK RESULT PATH...

Over the host's file systems lie overlays, so that nothing of what follows reaches it. In there the driver is taken
away, packages, modules, kernel and linker, and put back from the set alone with the very commands of the repair. It
works when the kernel then has the module and the libraries of the saved version. Maintainer scripts run without a
network, without /run (no systemd, no D-Bus), with a handful of harmless devices, a read-only /proc, and without the
capabilities to load modules, mount, reboot, or set the clock.

RESULT gets one JSON object: proven, words, took_s, linked. Exit status 0 whatever it says.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = sys.argv[4:]

from agent.errors import CommandFailed, HoldfastError, HostError
from agent.host import Completed, Host, RunCommand, restoring, saved_driver
from agent.host.files import RealFiles
from agent.host.real import real_host
from agent.host.restoring import INSTALL_S
from agent.host.saved_driver import Saved

BELOW = ("/usr", "/etc", "/var", "/boot", "/lib", "/opt")
"""Where file systems of their own may be mounted that putting back writes to."""
PLAIN = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "zfs", "overlay", "tmpfs", "squashfs", "erofs"})
"""Kinds of file systems that overlayfs takes as a lower layer; FAT (/boot/efi) is left out, and empty in there."""
DEVICES = ("null", "zero", "full", "random", "urandom")
FORBIDDEN = (
    "sys_module", "sys_admin", "sys_boot", "sys_time", "sys_rawio", "sys_ptrace", "sys_nice", "sys_resource",
    "net_admin", "net_raw", "syslog", "mac_admin", "mac_override", "audit_control", "linux_immutable",
)  # fmt: skip
STUBS = ("update-grub", "grub-mkconfig", "update-initramfs", "systemctl", "udevadm", "modprobe", "rmmod", "insmod")
"""Programs that would look for a disk, a manager or the kernel, which are not there; none of them makes the driver."""
POLICY = "#!/bin/sh\nexit 101\n"


class NotTried(HoldfastError):
    """The scratch root cannot be made here: nothing is proven, and nothing is wrong."""


@dataclass(frozen=True, slots=True)
class _Inside:
    """The RunCommand primitive, within the scratch root and with few rights."""

    run: RunCommand
    root: str

    def __call__(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float,
        user: str | None = None,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        limit: int = 1 << 20,
        stopping: Callable[[], bool] | None = None,
    ) -> Completed:
        words = ("setpriv", "--bounding-set", ",".join(f"-{each}" for each in FORBIDDEN), "--no-new-privs")
        inner = ("env", f"--chdir={cwd}", *argv) if cwd else tuple(argv)
        done = self.run(
            ("chroot", self.root, *words, *inner),
            timeout_s=timeout_s,
            user=user,
            env=env,
            limit=limit,
            stopping=stopping,
        )
        if done.rc == 127:
            raise CommandFailed(f"{argv[0]}: not found", where=argv[0], code="command-not-found")
        return done


def main(set_folder: str, work: str, result: str) -> int:
    """Try the set and write the result; the exit status."""
    started, host = time.monotonic(), real_host()
    linked = False
    try:
        saved = Saved(set_folder, saved_driver.read(host, set_folder))
        inside = scratch(host, work)
        take_away(inside, saved)
        linked = put_back(inside, saved)
        proven, words = True, "put back from the set alone, without a network, in a scratch root"
        words += "; its modules were linked or built again" if linked else "; its modules are those that were saved"
    except NotTried as error:
        proven, words = False, f"not tried: {error.message}"
    except HoldfastError as error:
        proven, words = False, error.message
    said = {"proven": proven, "words": words[:600], "took_s": round(time.monotonic() - started, 1), "linked": linked}
    host.files.write_atomic(result, json.dumps(said), 0o640)
    return 0


def scratch(host: Host, work: str) -> Host:
    """The host within a scratch root. Raises NotTried where it cannot be made."""
    root = f"{work}/root"
    os.makedirs(root, exist_ok=True)
    _overlay(host, "/", root, f"{work}/upper-0")
    for number, place in enumerate(_mounted(host), start=1):
        _overlay(host, place, f"{root}{place}", f"{work}/upper-{number}")
    for place in ("run", "tmp", "dev", "sys"):
        os.makedirs(f"{root}/{place}", exist_ok=True)
        _mount(host, "--types", "tmpfs", "--options", "mode=0755", "tmpfs", f"{root}/{place}")
    os.chmod(f"{root}/tmp", 0o1777)  # noqa: S103, S108 - as every /tmp, within the scratch root
    for name in DEVICES:
        Path(f"{root}/dev/{name}").touch()
        _mount(host, "--bind", f"/dev/{name}", f"{root}/dev/{name}")
    for name, target in (("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        os.symlink(target, f"{root}/dev/{name}")
    os.makedirs(f"{root}/dev/shm")  # noqa: S108 - within the scratch root
    os.makedirs(f"{root}/run/lock")
    _mount(host, "--types", "proc", "--options", "ro", "proc", f"{root}/proc")
    files = RealFiles(root)
    files.write_atomic("/usr/sbin/policy-rc.d", POLICY, 0o755)
    return replace(host, files=files, run=_Inside(host.run, root))


def take_away(inside: Host, saved: Saved) -> None:
    """Remove the driver, its kernel and its linker from the scratch root. Raises CommandFailed when they stay."""
    release = saved.manifest.kernel
    there = [each for each in saved.manifest.packages if each.role in ("driver", "link")]
    names = [f"{each.name}:{each.architecture}" if each.architecture != "all" else each.name for each in there]
    # Before the stubs: a package's own removal may call these, and dpkg looks for some of them.
    removal = ("dpkg", "--force-all", "--remove", *names)
    inside.run(("env", "DEBIAN_FRONTEND=noninteractive", *removal), timeout_s=INSTALL_S)
    inside.run(("rm", "--recursive", "--force", f"/lib/modules/{release}", f"/boot/vmlinuz-{release}"), timeout_s=60)
    left = restoring.not_back(inside, saved.manifest)
    if len(left) != 3:
        raise CommandFailed("the driver could not be taken away in the scratch root, so nothing is proven")
    for name in STUBS:
        for folder in ("/usr/sbin", "/usr/bin", "/sbin", "/bin"):
            if inside.files.exists(f"{folder}/{name}"):
                inside.files.write_atomic(f"{folder}/{name}", "#!/bin/sh\nexit 0\n", 0o755)


def put_back(inside: Host, saved: Saved) -> bool:
    """The repair's own commands; whether the modules came out as saved by themselves. Raises HostError."""
    todo = restoring.restoration(inside, saved)
    outside = restoring.would_remove(inside, todo.simulate, saved.manifest, ())
    if outside:
        raise CommandFailed(f"apt-get would remove {', '.join(outside)}")
    done = inside.run(todo.install, timeout_s=INSTALL_S)
    if done.rc != 0:
        said = [line for line in (*done.stdout.splitlines(), *done.stderr.splitlines()) if line.strip()]
        errors = [line for line in said if line.startswith(("E:", "dpkg: error"))] or said[-2:]
        raise CommandFailed(f"apt-get ended with status {done.rc}: {'; '.join(errors[:3])}")
    linked = not restoring.modules_differ(inside, saved.manifest)
    if not linked:
        inside.run(todo.copy, timeout_s=120)
        inside.run(restoring.depmod(saved.manifest.kernel), timeout_s=120)
    why = restoring.back_or_why(inside, saved.manifest)
    if why:
        raise CommandFailed(f"after putting it back: {why}")
    return linked


def _mounted(host: Host) -> list[str]:
    """Folders below the root on file systems of their own that putting back may write to, outermost first."""
    found = {}
    for line in host.files.read_text("/proc/self/mountinfo", 4 << 20).splitlines():
        fields, _, more = line.partition(" - ")
        place, kind = fields.split(" ")[4].replace("\\040", " "), more.split(" ")[0]
        if kind in PLAIN and any(place == each or place.startswith(f"{each}/") for each in BELOW):
            found[place] = os.path.isdir(place)
    return sorted(place for place, folder in found.items() if folder)


def _overlay(host: Host, lower: str, place: str, upper: str) -> None:
    """Lay an overlay over `lower` at `place`. What is written goes to `upper`. Raises NotTried."""
    os.makedirs(f"{upper}/upper", exist_ok=True)
    os.makedirs(f"{upper}/work", exist_ok=True)
    options = f"lowerdir={lower},upperdir={upper}/upper,workdir={upper}/work"
    _mount(host, "--types", "overlay", "--options", options, "overlay", place)


def _mount(host: Host, *words: str) -> None:
    done = host.run(("mount", *words), timeout_s=30)
    if done.rc != 0:
        last = (done.stderr.strip() or f"status {done.rc}").splitlines()[0]
        raise NotTried(f"a scratch root cannot be mounted here: {last}")


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:4]))
    except (HostError, OSError) as trouble:
        sys.exit(str(trouble))
