"""The NVIDIA module that a given kernel would load: its file, its version, and what would keep it from loading.

Found as modprobe finds it, in depmod's `modules.dep`, because a package that is installed is no module: Ubuntu links
its proprietary module after unpacking, DKMS builds without complaint only where headers are. What cannot be read is a
`problem`; a module that is not there is `absent`, with the reason.

What costs time (modinfo, a listing of the initial ramdisk) is remembered by inode, size and modification time in a
`Known` that the caller carries on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass, replace
from typing import TypeAlias

from agent.errors import CommandFailed, FileTrouble, HostError
from agent.host import Host
from agent.model import Json

MODULES = "/lib/modules"
FIRMWARE_FOLDERS = ("/lib/firmware/updates", "/lib/firmware")
"""Where the kernel looks for firmware (drivers/base/firmware_loader/main.c); each also with the kernel's release."""
MODPROBE_FOLDERS = ("/etc/modprobe.d", "/run/modprobe.d", "/usr/local/lib/modprobe.d", "/lib/modprobe.d")
"""modprobe.d(5): a file of the same name in an earlier one hides those in later ones."""
MODINFO_S = 10.0
INITRAMFS_S = 60.0
TRUSTED_SIGNERS = ("Canonical Ltd. Kernel Module Signing",)
"""Keys that every kernel of Ubuntu is built with (debian/certs of Ubuntu's linux source)."""
_DEP_LIMIT = 16 << 20
_NAME = re.compile(r"^nvidia(?:(?:-[a-z0-9]+)*-current)?$")
_MODULE_LINE = re.compile(r"^(\S*?([^/\s]+))\.ko(\.(?:xz|zst|gz))?:", re.MULTILINE)
_IN_INITRAMFS = re.compile(r"(?:^|/|\s)nvidia(?:(?:-[a-z0-9]+)*-current)?\.ko(?:\.(?:xz|zst|gz))?$", re.MULTILINE)
_REFUSED = re.compile(r"^(?:/usr)?(?:/bin/)?(?:false|true|:)\b")
_COMPRESSIONS = ("", ".zst", ".xz")

Known: TypeAlias = MutableMapping[str, Json]
"""What was read before, by path: {"stamp": "inode:size:mtime", "facts": {...}}. Plain JSON, so that it can be kept."""


@dataclass(frozen=True, slots=True)
class KernelDriver:
    """What one kernel would load as its NVIDIA driver.

    version: None when nothing would load. absent: why nothing would. stale: why something else than this file may be
    loaded. problem: why it cannot be told; then nothing else counts. signer: "" for an unsigned module.
    """

    release: str
    version: str | None = None
    path: str = ""
    open: bool = False
    signer: str = ""
    absent: str = ""
    stale: str = ""
    problem: str = ""


def kernel_driver(
    host: Host,
    release: str,
    *,
    parameters: str = "",
    initrd: str = "",
    secure_boot: bool | None = False,
    known: Known | None = None,
) -> KernelDriver:
    """What this kernel would load. Never raises.

    parameters: its command line. initrd: its initial ramdisk's file name in /boot, "" to leave that out.
    secure_boot: whether signatures count, None when that cannot be told. known: what was read before, updated.
    """
    known = {} if known is None else known
    try:
        found = _module(host, release, parameters, known)
        if not found.version:
            return found
        enforced = True if re.search(r"(?:^|\s)module\.sig_enforce(?:=[1yY]\w*)?(?:\s|$)", parameters) else secure_boot
        found = _signed(host, found, enforced)
        if not found.absent and not found.problem and initrd:
            found = _in_initramfs(host, found, f"/boot/{initrd}", known)
    except HostError as error:
        return KernelDriver(release, problem=error.message)
    return found


def still_there(host: Host, known: Known) -> Known:
    """What was read of files that still exist, so that the memory does not grow with every kernel that comes."""
    return {path: facts for path, facts in known.items() if host.files.exists(path)}


def module_names(host: Host) -> tuple[tuple[str, ...], str]:
    """The names that `modprobe nvidia` stands for, best first, and why it is refused ("" when it is not).

    Debian says `install nvidia modprobe -i nvidia-current`. Raises FileTrouble when a file cannot be read.
    """
    names: list[str] = []
    for path in _modprobe_files(host):
        for line in host.files.read_text(path).splitlines():
            words = line.split()
            if words[:2] != ["install", "nvidia"]:
                continue
            command = " ".join(words[2:])
            if _REFUSED.match(command):
                return (), f"{path} says: install nvidia {command}"
            names += [word for word in words[3:] if _NAME.match(word) and word not in names]
    return (*names, "nvidia"), ""


def modinfo(host: Host, path: str) -> Mapping[str, tuple[str, ...]]:
    """The fields of a module file, each with its values. Raises CommandFailed."""
    answer = host.run(["modinfo", path], timeout_s=MODINFO_S)
    if answer.rc != 0:
        reason = answer.stderr.strip().splitlines()
        raise CommandFailed(f"modinfo {path}: {reason[-1] if reason else f'status {answer.rc}'}", where=path)
    fields: dict[str, tuple[str, ...]] = {}
    for line in answer.stdout.splitlines():
        name, colon, value = line.partition(":")
        if colon and not name[:1].isspace():
            fields[name] = (*fields.get(name, ()), value.strip())
    return fields


def _module(host: Host, release: str, parameters: str, known: Known) -> KernelDriver:
    """The module file and whether it could load, before signatures. Raises HostError."""
    path, absent = _module_path(host, release, parameters)
    found = KernelDriver(release, path=path, absent=absent)
    if absent:
        return found
    facts = _facts(host, path, known)
    if not facts["version"]:
        return replace(found, problem=f"{path} does not say its version")
    if facts["release"] not in ("", release):
        return replace(found, absent=f"{path} was built for {facts['release']}")
    missing = [each for each in facts["firmware"] if not _firmware(host, release, each)] if facts["open"] else []
    if missing:
        return replace(found, absent=f"the open module needs /lib/firmware/{missing[0]}, which is missing")
    return replace(found, version=str(facts["version"]), open=bool(facts["open"]), signer=str(facts["signer"]))


def _module_path(host: Host, release: str, parameters: str) -> tuple[str, str]:
    """The file that modprobe would load, or why it would load none. Raises FileTrouble."""
    folder = f"{MODULES}/{release}"
    if not host.files.exists(f"{folder}/modules.dep"):
        return "", f"{folder} does not exist" if not host.files.exists(folder) else f"depmod never ran for {release}"
    forbidden = _forbidden(parameters)
    names, refused = module_names(host)
    if forbidden or refused:
        return "", forbidden or refused
    listed = _listed(host.files.read_text(f"{folder}/modules.dep", _DEP_LIMIT))
    # Without an install line Debian's module is still loaded, by the aliases of its devices.
    name = next((each for each in (*names, *sorted(listed)) if each in listed), None)
    if name is None:
        return "", f"kernel {release} has no nvidia module"
    path = listed[name] if listed[name].startswith("/") else f"{folder}/{listed[name]}"
    return path, "" if host.files.exists(path) else f"{path} is listed but does not exist"


def _facts(host: Host, path: str, known: Known) -> Mapping[str, Json]:
    """What modinfo says of a module, as far as it matters here."""

    def read() -> Mapping[str, Json]:
        fields = modinfo(host, path)
        # "6.8.0-31-generic SMP preempt mod_unload modversions"
        built_for = " ".join(fields.get("vermagic", ())).split()
        return {
            "version": (fields.get("version") or ("",))[0],
            "open": any("GPL" in licence for licence in fields.get("license", ())),
            "signer": (fields.get("signer") or ("",))[0],
            "firmware": list(fields.get("firmware", ())),
            # With symbol versions the kernel does not compare the release (same_magic in kernel/module/version.c).
            "release": built_for[0] if built_for and "modversions" not in built_for else "",
        }

    return _remembered(host, path, known, read)


def _signed(host: Host, found: KernelDriver, secure_boot: bool | None) -> KernelDriver:
    """The driver, judged by its signature where signatures count."""
    if secure_boot is False or found.signer in TRUSTED_SIGNERS:
        return found
    if secure_boot is None:
        return KernelDriver(found.release, problem="whether Secure Boot is on cannot be read")
    if not found.signer:
        return replace(found, version=None, absent=f"Secure Boot is on, and {found.path} is not signed")
    if _trusted(host, found.signer):
        return found
    words = f"Secure Boot is on, and {found.path} is signed by {found.signer!r}, a key that is not enrolled"
    return replace(found, version=None, absent=words)


def _trusted(host: Host, signer: str) -> bool:
    """Whether the kernel or the firmware's owner knows this signer. Raises HostError when neither can be asked.

    /proc/keys names the keys of the running kernel (proc_pid_keys(5)); mokutil those enrolled for the next boot.
    """
    trouble: HostError | None = None
    try:
        if any(f" asymmetri {signer}: " in line for line in host.files.read_text("/proc/keys").splitlines()):
            return True
    except FileTrouble as error:
        trouble = error
    try:
        answer = host.run(["mokutil", "--list-enrolled"], timeout_s=MODINFO_S)
        names = re.findall(r"^\s*Subject:.*?\bCN\s*=\s*([^,/\n]+)", answer.stdout, re.MULTILINE)
        if answer.rc == 0 or names:
            return signer in (name.strip() for name in names)
    except CommandFailed as error:
        trouble = trouble or error
    if trouble is not None:
        raise HostError(f"which signing keys are enrolled cannot be read: {trouble.message}")
    return False


def _in_initramfs(host: Host, found: KernelDriver, path: str, known: Known) -> KernelDriver:
    """The driver, with a warning when the initial ramdisk holds a copy that is older than the file.

    The folder counts as well: a package's file keeps the time of its build.
    """
    if not host.files.exists(path):
        return found
    real = host.files.realpath(path)
    written = host.files.stat(real).mtime
    module = host.files.realpath(found.path)
    changed = max(host.files.stat(module).mtime, host.files.stat(module.rpartition("/")[0]).mtime)
    if written >= changed:
        return found
    copies = _remembered(host, real, known, lambda: {"nvidia": _listing_has_driver(host, real)})
    if not copies["nvidia"]:
        return found
    return replace(found, stale=f"{path} holds a copy of the module that is older than {found.path}")


def _listing_has_driver(host: Host, path: str) -> bool:
    """Whether an initial ramdisk holds an nvidia module. Raises CommandFailed when nothing here can list it."""
    trouble = ""
    for command in ("lsinitramfs", "lsinitrd"):
        try:
            answer = host.run([command, path], timeout_s=INITRAMFS_S, limit=16 << 20)
        except CommandFailed as error:
            if error.code != "command-not-found":
                raise
            trouble = trouble or error.message
            continue
        if answer.rc == 0:
            return _IN_INITRAMFS.search(answer.stdout) is not None
        trouble = f"{command} {path} ended with status {answer.rc}"
    raise CommandFailed(f"what {path} holds cannot be read: {trouble}", where=path)


def _remembered(host: Host, path: str, known: Known, read: Callable[[], Mapping[str, Json]]) -> Mapping[str, Json]:
    """What `read` says of a file, asked again only when the file is another one."""
    seen = host.files.stat(host.files.realpath(path))
    stamp = f"{seen.inode}:{seen.size}:{seen.mtime!r}"
    before = known.get(path)
    if isinstance(before, dict) and before.get("stamp") == stamp and isinstance(before.get("facts"), dict):
        facts: Mapping[str, Json] = before["facts"]
        return facts
    fresh = read()
    known[path] = {"stamp": stamp, "facts": dict(fresh)}
    return fresh


def _listed(text: str) -> dict[str, str]:
    """The nvidia modules in modules.dep: name to path."""
    return {match[2]: match[0].removesuffix(":") for match in _MODULE_LINE.finditer(text) if _NAME.match(match[2])}


def _forbidden(parameters: str) -> str:
    for word in parameters.split():
        name, _, value = word.partition("=")
        if name == "module_blacklist" and "nvidia" in value.split(","):
            return f"its command line says {word}"
    return ""


def _firmware(host: Host, release: str, name: str) -> bool:
    return any(
        host.files.exists(f"{folder}{place}/{name}{compression}")
        for folder in FIRMWARE_FOLDERS
        for place in (f"/{release}", "")
        for compression in _COMPRESSIONS
    )


def _modprobe_files(host: Host) -> Iterable[str]:
    """The files of modprobe.d in the order in which they are read: by name, whatever their folder."""
    places: dict[str, str] = {}
    for folder in MODPROBE_FOLDERS:
        try:
            names = host.files.listdir(folder)
        except FileTrouble as trouble:
            if trouble.kind != "missing":
                raise
            continue
        for name in names:
            if name.endswith(".conf"):
                places.setdefault(name, f"{folder}/{name}")
    return [path for name in sorted(places) if host.files.exists(path := places[name])]
