"""Root file systems for disposable hosts: built once from the distribution's own archive, then only read.

The mirror is never named here. Debian's is the one this machine's apt already uses; Ubuntu's is the default
that debootstrap itself knows. Every tree is built beside its final name and renamed, so a half-built one is
never used.
"""

from __future__ import annotations

import gzip
import os
import re
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

from llama_build import cache_root, exclusively

from bed.errors import NotServedError, UnavailableError
from bed.prerequisites import ensure_commands

DEBIAN = ("bookworm", "trixie")
UBUNTU = ("jammy", "noble", "resolute")
SUITES = DEBIAN + UBUNTU
# Enough for the holdfast package and llama-server to install and run without any archive in reach.
INCLUDE = (
    "systemd", "systemd-sysv", "dbus", "ca-certificates", "python3", "apt-utils", "adduser", "procps", "kmod",
    "libgomp1", "libstdc++6",
)  # fmt: skip
RECIPE = "2"  # raise it when the steps below change: older trees are then built anew
_BUILD_TIMEOUT_S = 2100


def rootfs(suite: str, packages: Sequence[str] = ()) -> Path:
    """Return a root file system of a suite, with further packages if wanted; minutes when first asked for.

    Nobody may write into it. Raises UnavailableError when the suite's archive does not answer.
    """
    if suite not in SUITES:
        raise UnavailableError(f"no recipe for suite {suite!r}; known: {', '.join(SUITES)}")
    extra = "-" + re.sub(r"[^a-z0-9.+-]+", "_", "-".join(sorted(packages))) if packages else ""
    wanted = cache_root() / "rootfs" / f"{suite}-{RECIPE}{extra}"
    if wanted.exists():
        return wanted
    ensure_commands(("debootstrap", "unshare"))
    with exclusively(f"rootfs-{suite}{extra}"):
        if wanted.exists():
            return wanted
        wanted.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=wanted.parent, prefix=".building-") as name:
            tree = Path(name) / "root"
            try:
                _build(suite, packages, tree)
            except UnavailableError as error:
                if suite in UBUNTU:
                    raise NotServedError(str(error)) from error
                raise
            tree.chmod(0o755)
            tree.rename(wanted)
    return wanted


def derived(
    name: str, base: Path, script: str, arguments: Sequence[str] = (), files: Mapping[Path, str] | None = None
) -> Path:
    """Return a copy of a tree in which a shell script was run as root, with this machine's network; built once.

    The script sees /proc, and no service is started by what it installs. ``files`` are copied in before: local files
    or folders, and their places. Nobody may write into the tree. Raises UnavailableError with the script's last words
    when it fails.
    """
    wanted = cache_root() / "rootfs" / name
    if wanted.exists():
        return wanted
    with exclusively(f"rootfs-{name}"):
        if wanted.exists():
            return wanted
        with tempfile.TemporaryDirectory(dir=wanted.parent, prefix=".building-") as folder:
            tree = Path(folder) / "root"
            _run(["cp", "-a", "--reflink=auto", str(base), str(tree)], "copy the base tree")
            for local, place in (files or {}).items():
                inside = tree / place.lstrip("/")
                inside.parent.mkdir(parents=True, exist_ok=True)
                _run(["cp", "-a", "--reflink=auto", str(local), str(inside)], f"copy {local.name}")
            _run_inside(tree, script, arguments, f"build {name}")
            tree.rename(wanted)
    return wanted


def _build(suite: str, packages: Sequence[str], tree: Path) -> None:
    if packages:
        _run(["cp", "-a", "--reflink=auto", str(rootfs(suite)), str(tree)], "copy the base tree")
        _add_packages(tree, packages)
    else:
        _debootstrap(suite, tree)
        _neutral(tree)


def debian_mirror() -> str:
    """Return the Debian mirror this machine's apt uses. Raises UnavailableError when there is none."""
    done = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(SITE)\t$(ORIGIN)\t$(RELEASE)\t$(COMPONENT)"],
        text=True, check=False, capture_output=True, timeout=60,
    )  # fmt: skip
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    sites = [row[0] for row in rows if len(row) == 4 and row[3] == "main" and row[2] in (*DEBIAN, "sid")]
    if not sites:  # a Debian release that is none of ours, or lists never fetched
        sites = [row[0] for row in rows if len(row) == 4 and row[1] == "Debian" and "security" not in row[0]]
    if not sites:
        raise UnavailableError("apt on this machine knows no Debian archive to bootstrap from")
    return sites[0]


def _debootstrap(suite: str, tree: Path) -> None:
    argv = ["debootstrap", "--variant=minbase", f"--include={','.join(INCLUDE)}"]
    if suite in DEBIAN:
        argv += [suite, str(tree), debian_mirror()]
    else:
        script = _ubuntu_script(suite)
        mirror = ubuntu_archive(suite)
        argv += [f"--keyring={_ubuntu_keyring(mirror)}", "--components=main,restricted,universe,multiverse"]
        argv += [suite, str(tree), mirror, str(script)]
    _run(argv, f"debootstrap {suite}")


def _ubuntu_script(suite: str) -> Path:
    scripts = Path("/usr/share/debootstrap/scripts")
    return scripts / (suite if (scripts / suite).exists() else "gutsy")


def ubuntu_archive(suite: str) -> str:
    """Return the first mirror in debootstrap's own script for Ubuntu that has the suite.

    Raises UnavailableError when none answers.
    """
    reasons = []
    text = _ubuntu_script(suite).read_text(encoding="utf-8")
    for mirror in dict.fromkeys(re.findall(r"default_mirror\s+(\S*ubuntu\S*)", text)):
        try:
            _fetch(f"{mirror}/dists/{suite}/Release", f"the Ubuntu archive for {suite}")
        except UnavailableError as error:
            reasons.append(str(error))
        else:
            return str(mirror)
    raise UnavailableError("; ".join(reasons) or "debootstrap on this machine knows no Ubuntu archive")


def _ubuntu_keyring(mirror: str) -> Path:
    """Return Ubuntu's archive keys: installed here, or out of Ubuntu's own ubuntu-keyring package."""
    installed = Path("/usr/share/keyrings/ubuntu-archive-keyring.gpg")
    kept = cache_root() / "archives" / installed.name
    for path in (installed, kept):
        if path.exists():
            return path
    index = gzip.decompress(_fetch(f"{mirror}/dists/noble/main/binary-amd64/Packages.gz", "Ubuntu's index")).decode()
    found = re.search(r"^Filename: (\S*/ubuntu-keyring_\S+\.deb)$", index, re.MULTILINE)
    if not found:
        raise UnavailableError("Ubuntu's index lists no ubuntu-keyring package")
    package = _fetch(f"{mirror}/{found.group(1)}", "ubuntu-keyring")
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as name:
        deb = Path(name) / "keyring.deb"
        deb.write_bytes(package)
        _run(["dpkg-deb", "-x", str(deb), f"{name}/x"], "unpack ubuntu-keyring")
        shutil.move(f"{name}/x{installed}", kept)
    return kept


def _neutral(tree: Path) -> None:
    """Take out what would make every host of a suite the same machine, or make it wait for a network."""
    (tree / "etc/machine-id").write_text("", encoding="utf-8")
    (tree / "var/lib/dbus/machine-id").unlink(missing_ok=True)
    (tree / "var/lib/dbus/machine-id").symlink_to("/etc/machine-id")
    (tree / "etc/hostname").write_text("host\n", encoding="utf-8")
    (tree / "etc/hosts").write_text("127.0.0.1 localhost\n::1 localhost\n", encoding="utf-8")
    shutil.rmtree(tree / "var/cache/apt/archives", ignore_errors=True)
    (tree / "var/cache/apt/archives/partial").mkdir(parents=True)
    # apt's and dpkg's daily timers would run at a random moment of a test; tests that want them enable them.
    for timer in ("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer"):
        (tree / "etc/systemd/system/timers.target.wants" / timer).unlink(missing_ok=True)


def _add_packages(tree: Path, packages: Sequence[str]) -> None:
    script = 'apt-get -q update; apt-get -q install -y --no-install-recommends "$@"; apt-get clean'
    _run_inside(tree, script, packages, f"install {' '.join(packages)}")


def _run_inside(tree: Path, script: str, arguments: Sequence[str], what: str) -> None:
    """Run a shell script as root in a tree, with this machine's network. Raises UnavailableError when it fails."""
    shutil.copy("/etc/resolv.conf", tree / "etc/resolv.conf")
    policy = tree / "usr/sbin/policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n", encoding="ascii")
    policy.chmod(0o755)
    inside = ["sh", "-euc", f"mount -t proc proc /proc\n{script}", "sh", *arguments]
    _run(["unshare", "--mount", "--pid", "--fork", "chroot", str(tree), *inside], what)
    policy.unlink()


def _fetch(url: str, what: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            body: bytes = answer.read()
    except (urllib.error.URLError, OSError) as error:
        raise UnavailableError(f"{what} does not answer: {error}") from error
    return body


def _run(argv: Sequence[str], what: str) -> None:
    environment = {
        **os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8",
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    }  # fmt: skip
    try:
        done = subprocess.run(
            argv, env=environment, text=True, check=False, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, timeout=_BUILD_TIMEOUT_S,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(f"{what}: {error}") from error
    if done.returncode != 0:
        raise UnavailableError(f"{what}: exit {done.returncode}: {done.stdout[-800:]}")
