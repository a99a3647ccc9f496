"""Which kernel boots next: a kernel loaded for kexec, GRUB's menu, systemd-boot's, or plainly the newest one.

`/boot/vmlinuz` is not asked: no boot loader of Debian or Ubuntu reads it. What cannot be read is a `problem`, never a
guess.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace

from agent.errors import CommandFailed, FileTrouble
from agent.host import Host, grub
from agent.host.debian_version import newest_last

GRUB_FOLDERS = ("/boot/grub", "/boot/grub2")
KEXEC_LOADED = "/sys/kernel/kexec_loaded"
LOADER_INFO = "/sys/firmware/efi/efivars/LoaderInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
"""Who loaded this boot, as systemd-boot and others say it (systemd's Boot Loader Interface)."""
SECURE_BOOT = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
"""Four bytes of attributes, then one byte: 1 while Secure Boot is on (UEFI specification 2.10, section 3.3)."""
BOOTCTL_S = 10.0
MODULES = "/lib/modules"
_CONFIGURATION_LIMIT = 8 << 20


@dataclass(frozen=True, slots=True)
class NextBoot:
    """The kernel that boots next. `release` is None when that cannot be told; then `problem` says why.

    by: kexec, GRUB, systemd-boot, newest or container. how: what made it this entry ("one-shot entry"). entry: its
    title, submenus first. parameters: its command line, "" when unknown. initrd: its file name, "" when unknown.
    pinned: the entry is named and is this kernel's own, so that it stays the next when another kernel comes.
    """

    release: str | None
    by: str = ""
    how: str = ""
    entry: str = ""
    parameters: str = ""
    initrd: str = ""
    problem: str = ""
    pinned: bool = False


def running_release(host: Host) -> str | None:
    """The release of the kernel that runs now, None when it cannot be read."""
    try:
        return host.files.read_text("/proc/sys/kernel/osrelease").strip() or None
    except FileTrouble:
        return None


def next_boot(host: Host) -> NextBoot:
    """The kernel that boots next. Never raises: what cannot be read is said in `problem`."""
    try:
        return _next_boot(host)
    except FileTrouble as trouble:
        return NextBoot(None, by="GRUB" if "grub" in trouble.where else "", problem=trouble.message)


def secure_boot(host: Host) -> bool | None:
    """Whether the firmware enforces signatures; None when that cannot be read."""
    try:
        if not host.files.exists("/sys/firmware/efi"):
            return False
        if host.files.exists(SECURE_BOOT):
            return host.files.read_text(SECURE_BOOT)[-1:] == "\x01"
        # Without the variable but with others, this firmware has no Secure Boot; without any, they are not mounted.
        return False if _names(host, "/sys/firmware/efi/efivars") else None
    except FileTrouble:
        return None


def _next_boot(host: Host) -> NextBoot:
    if _first_word(host, KEXEC_LOADED) == "1":
        return NextBoot(None, by="kexec", problem=f"a kernel is loaded for kexec ({KEXEC_LOADED}); nobody says which")
    if "systemd-boot" in _loader(host):
        return _systemd_boot(host)
    for folder in GRUB_FOLDERS:
        if host.files.exists(f"{folder}/grub.cfg"):
            return _grub(host, folder)
    return _newest(host)


def grub_text(host: Host, folder: str) -> str:
    """GRUB's whole configuration in this folder. Raises FileTrouble."""
    text = host.files.read_text(f"{folder}/grub.cfg", _CONFIGURATION_LIMIT)
    if host.files.exists(f"{folder}/custom.cfg"):  # 41_custom reads it last, where it is there
        text += "\n" + host.files.read_text(f"{folder}/custom.cfg", _CONFIGURATION_LIMIT)
    return text


def _grub(host: Host, folder: str) -> NextBoot:
    """GRUB's choice. Raises FileTrouble."""
    text = grub_text(host, folder)
    variables: dict[str, str] = {}
    if host.files.exists(f"{folder}/grubenv"):
        variables = grub.environment(host.files.read_text(f"{folder}/grubenv"))
    choice = grub.choose(grub.menu(text), variables)
    title = " > ".join(choice.path)
    if not choice.entry.kernel:
        raise grub.unclear(f"the entry {title!r} loads no Linux kernel")
    release = grub.kernel_release(choice.entry.kernel) or _linked(host, choice.entry.kernel)
    if release is None:
        raise grub.unclear(f"the entry {title!r} loads {choice.entry.kernel}, which names no version")
    found = NextBoot(
        release,
        by="GRUB",
        how=choice.why,
        entry=title,
        parameters=choice.entry.parameters,
        initrd=choice.entry.initrd.rpartition("/")[2],
        # The entry of the distribution's name alone is always the newest kernel's.
        pinned=choice.named and release in choice.path[-1],
    )
    if not any(grub.kernel_release(name) == release for name in _names(host, "/boot")):
        return replace(found, release=None, problem=f"GRUB would load {choice.entry.kernel}, which is not in /boot")
    return found


def _linked(host: Host, path: str) -> str | None:
    """The release behind a link without a version (/vmlinuz), seen from / and, with a /boot of its own, from there."""
    for place in (path, f"/boot{path}"):
        try:
            found = grub.kernel_release(host.files.realpath(place))
        except FileTrouble:
            continue
        if found:
            return found
    return None


def _systemd_boot(host: Host) -> NextBoot:
    """What bootctl calls the default, which the one-shot entry overrides (systemd's boot_entries_select_default)."""
    unclear = NextBoot(None, by="systemd-boot")
    try:
        answer = host.run(["bootctl", "list", "--json=short"], timeout_s=BOOTCTL_S)
        entries = json.loads(answer.stdout) if answer.rc == 0 else None
    except CommandFailed as error:
        return replace(unclear, problem=f"systemd-boot's menu cannot be read: {error.message}")
    except ValueError:
        entries = None
    if not isinstance(entries, list):
        return replace(unclear, problem="systemd-boot's menu cannot be read: bootctl list gave no JSON")
    chosen = next((each for each in entries if isinstance(each, dict) and each.get("isDefault")), None)
    if chosen is None:
        return replace(unclear, problem="systemd-boot's menu has no default entry")
    title = str(chosen.get("title") or chosen.get("id") or "")
    release = _release_in(host, [str(chosen.get(name) or "") for name in ("version", "linux", "id")])
    if release is None:
        return replace(
            unclear, entry=title, problem=f"the entry {title!r} of systemd-boot names no kernel in {MODULES}"
        )
    initrd = chosen.get("initrd")
    return NextBoot(
        release,
        by="systemd-boot",
        how="default or one-shot entry",
        entry=title,
        parameters=str(chosen.get("options") or ""),
        initrd=str(initrd[-1]) if isinstance(initrd, list) and initrd else "",
    )


def _release_in(host: Host, texts: list[str]) -> str | None:
    """The installed release that one of these texts names; the longest, because 6.8 is a part of 6.8.0-31-generic."""
    known = sorted(_names(host, MODULES), key=len, reverse=True)
    for text in texts:
        for release in known:
            if re.search(rf"(?<![0-9A-Za-z.]){re.escape(release)}(?![0-9A-Za-z]|\.[0-9])", text):
                return release
    return None


def _newest(host: Host) -> NextBoot:
    releases = [release for name in _names(host, "/boot") if (release := grub.kernel_release(name))]
    releases = [release for release in releases if not release.endswith((".old", ".dpkg-bak", ".dpkg-new"))]
    if releases:
        return NextBoot(max(releases, key=newest_last), by="newest", how="newest kernel in /boot, no boot loader found")
    if _in_container(host):
        return NextBoot(None, by="container", problem="this is a container: its host decides which kernel boots")
    return NextBoot(None, problem="there is neither a boot loader's configuration nor a kernel in /boot")


def _in_container(host: Host) -> bool:
    """The marks that systemd-detect-virt, Docker and Podman leave."""
    return any(_there(host, path) for path in ("/run/systemd/container", "/.dockerenv", "/run/.containerenv"))


def _loader(host: Host) -> str:
    """The boot loader's name. The variable is UTF-16 behind four bytes; its letters are ASCII."""
    try:
        return host.files.read_text(LOADER_INFO).replace("\0", "")
    except FileTrouble as trouble:
        if trouble.kind != "missing":
            raise
        return ""


def _first_word(host: Host, path: str) -> str:
    try:
        return host.files.read_text(path).strip()
    except FileTrouble:
        return ""


def _there(host: Host, path: str) -> bool:
    try:
        return host.files.exists(path)
    except FileTrouble:
        return False


def _names(host: Host, path: str) -> list[str]:
    """The names in a folder that may be missing. Raises FileTrouble when it may not be read."""
    try:
        return host.files.listdir(path)
    except FileTrouble as trouble:
        if trouble.kind != "missing":
            raise
        return []
