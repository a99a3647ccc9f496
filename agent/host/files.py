"""Files below one movable root: bounded reads, atomic and durable writes, and never a hang on a FIFO.

With a root other than "/", every link is resolved inside it, as chroot would, so that a fixture tree answers like
the host it was recorded from and nothing outside it is read by mistake.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat as modes
from collections.abc import Iterator
from pathlib import Path

from agent.errors import FileTrouble
from agent.host import Space, Stat

_CHUNK = 1 << 16
_MAX_LINKS = 40  # the kernel's own limit (path_resolution(7))
_KINDS = {
    errno.ENOENT: "missing",
    errno.ENOTDIR: "missing",
    errno.ESRCH: "missing",  # a process that ended between open and read of its /proc file
    errno.ENODEV: "missing",  # the same for a control group
    errno.EACCES: "denied",
    errno.EPERM: "denied",
    errno.EROFS: "denied",
}


class RealFiles:
    """The `Files` primitive on the real file system."""

    def __init__(self, root: str | Path = "/") -> None:
        self.root = Path(root)
        # Not resolved: /proc/PID/root is a link that reads "/" and leads elsewhere.
        self._prefix = "" if str(self.root) == "/" else os.path.abspath(self.root)

    def read_text(self, path: str, limit: int = 1 << 20) -> str:
        """The text of a regular file (/proc and /sys included); FileTrouble(large) above `limit` bytes.

        Anything that is not a regular file is FileTrouble(other): opening a FIFO or a device can block or act.
        """
        with _trouble(path):
            place = self._place(path)
            if not modes.S_ISREG(os.stat(place).st_mode):
                raise FileTrouble(f"{path} is not a regular file", kind="other", where=path)
            descriptor = os.open(place, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
            try:
                known = os.fstat(descriptor)
                if not modes.S_ISREG(known.st_mode):
                    raise FileTrouble(f"{path} is not a regular file", kind="other", where=path)
                if known.st_size > limit and known.st_blocks:  # /sys says 4096 for everything, without blocks
                    raise _too_large(path, limit)
                return _read(descriptor, path, limit).decode("utf-8", "replace")
            finally:
                os.close(descriptor)

    def exists(self, path: str) -> bool:
        """Whether the path exists (a dangling link does not). FileTrouble(denied) when that cannot be told."""
        try:
            with _trouble(path):
                os.stat(self._place(path))
        except FileTrouble as trouble:
            if trouble.kind == "missing":
                return False
            raise
        return True

    def listdir(self, path: str) -> list[str]:
        """The names in a directory, sorted."""
        with _trouble(path):
            return sorted(os.listdir(self._place(path)))

    def readlink(self, path: str) -> str:
        """What a symbolic link says."""
        with _trouble(path):
            return os.readlink(self._place(path, follow=False))

    def realpath(self, path: str) -> str:
        """The path with every link resolved, as seen from `root`; FileTrouble(missing) when it leads nowhere."""
        with _trouble(path):
            place = self._place(path)
            if not self._prefix:
                return os.path.realpath(place, strict=True)
            os.lstat(place)
        return place[len(self._prefix) :] or "/"

    def stat(self, path: str) -> Stat:
        """What is known of the path itself (links are not followed)."""
        with _trouble(path):
            known = os.lstat(self._place(path, follow=False))
        return Stat(
            size=known.st_size,
            mode=modes.S_IMODE(known.st_mode),
            uid=known.st_uid,
            gid=known.st_gid,
            mtime=known.st_mtime,
            inode=known.st_ino,
            is_dir=modes.S_ISDIR(known.st_mode),
            is_link=modes.S_ISLNK(known.st_mode),
        )

    def space(self, path: str) -> Space:
        """The room on the file system that holds the path."""
        with _trouble(path):
            known = os.statvfs(self._place(path))
        return Space(
            bytes_total=known.f_blocks * known.f_frsize,
            bytes_free=known.f_bavail * known.f_frsize,
            inodes_total=known.f_files,
            inodes_free=known.f_favail,
            read_only=bool(known.f_flag & os.ST_RDONLY),
        )

    def write_atomic(self, path: str, text: str, mode: int = 0o644, *, group: str | None = None) -> None:
        """Replace a file in one step: temporary file beside it, fsync, rename, fsync of the directory.

        A link at `path` is replaced, not followed. On any failure the old file stays as it was.
        """
        with _trouble(path):
            folder, name = self._split(path)
            gid = _gid(group, path)
            temporary = os.path.join(folder, f".{name}.{secrets.token_hex(6)}")
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                try:
                    _own(descriptor, mode, gid)
                    _write(descriptor, text.encode("utf-8", "surrogateescape"))
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
                os.replace(temporary, os.path.join(folder, name))
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
                raise
            _sync_directory(folder)

    def append_durable(self, path: str, line: str, mode: int = 0o640, *, group: str | None = None) -> None:
        """Append one line and fsync before returning. Nothing of the line stays when it cannot be written whole.

        A last line that a crash tore off is closed first, so that it cannot swallow this one. FileTrouble
        (malformed) when `line` holds a line break of its own.
        """
        if "\n" in line.removesuffix("\n"):
            raise FileTrouble(f"a line for {path} holds a line break", kind="malformed", where=path)
        with _trouble(path):
            folder, name = self._split(path)
            descriptor, created = _open_to_append(os.path.join(folder, name), path)
            try:
                if created:
                    _own(descriptor, mode, _gid(group, path))
                data = line.removesuffix("\n").encode("utf-8", "surrogateescape") + b"\n"
                size = os.fstat(descriptor).st_size
                if size and os.pread(descriptor, 1, size - 1) != b"\n":
                    data = b"\n" + data
                try:
                    _write(descriptor, data)
                    os.fsync(descriptor)
                except OSError:
                    # A full disk may take half a line. Take it back, unless someone else has appended since.
                    if os.fstat(descriptor).st_size <= size + len(data):
                        os.ftruncate(descriptor, size)
                    raise
            finally:
                os.close(descriptor)
            if created:
                _sync_directory(folder)

    def remove(self, path: str) -> None:
        """Remove a file; nothing happens when it is not there."""
        with _trouble(path), contextlib.suppress(FileNotFoundError):
            os.unlink(self._place(path, follow=False))

    def mkdir(self, path: str, mode: int = 0o755, *, group: str | None = None) -> None:
        """Make a directory (with `mode` and `group`) and its parents (0755); nothing happens when it is there."""
        with _trouble(path):
            place = self._place(path)
            if os.path.isdir(place):
                return
            parent = os.path.dirname(place)
            os.makedirs(parent, mode=0o755, exist_ok=True)
            gid = _gid(group, path)
            try:
                os.mkdir(place, 0o700)
            except FileExistsError:
                if os.path.isdir(place):
                    return
                raise
            if gid is not None:
                os.chown(place, -1, gid)
            os.chmod(place, mode)
            _sync_directory(parent)

    def _split(self, path: str) -> tuple[str, str]:
        """Where a file lies, links in its directory resolved, and its name."""
        folder, name = os.path.split(os.path.normpath(path))
        if not name:
            raise FileTrouble(f"{path} is not a file name", kind="other", where=path)
        return self._place(folder), name

    def _place(self, path: str, *, follow: bool = True) -> str:
        """Where `path` is in the real tree. With a root of its own, every link is resolved inside that root."""
        if not path.startswith("/"):
            raise FileTrouble(f"{path!r} is not an absolute path", kind="other", where=path)
        if not self._prefix:
            return path
        parts = path.split("/")[::-1]
        place: list[str] = []
        links = 0
        while parts:
            part = parts.pop()
            if part in ("", "."):
                continue
            if part == "..":
                place = place[:-1]
                continue
            here = "/".join((self._prefix, *place, part))
            last = not any(rest not in ("", ".") for rest in parts)
            if (follow or not last) and os.path.islink(here):
                links += 1
                if links > _MAX_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                target = os.readlink(here)
                if target.startswith("/"):
                    place = []
                parts.extend(target.split("/")[::-1])
            else:
                place.append(part)
        return "/".join((self._prefix, *place))


@contextlib.contextmanager
def _trouble(path: str) -> Iterator[None]:
    """Turns what the system says into FileTrouble."""
    try:
        yield
    except OSError as error:
        kind = _KINDS.get(error.errno or 0, "other")
        words = os.strerror(error.errno) if error.errno else str(error)
        raise FileTrouble(f"{path}: {words}", kind=kind, where=path) from error
    except ValueError as error:  # a NUL byte or a lone surrogate in the path
        raise FileTrouble(f"{path!r} is not a path", kind="other", where=repr(path)) from error


def _too_large(path: str, limit: int) -> FileTrouble:
    return FileTrouble(f"{path} is larger than {limit} bytes", kind="large", where=path)


def _read(descriptor: int, path: str, limit: int) -> bytes:
    found = bytearray()
    while chunk := os.read(descriptor, min(_CHUNK, limit + 1 - len(found))):
        found += chunk
        if len(found) > limit:
            raise _too_large(path, limit)
    return bytes(found)


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _open_to_append(place: str, path: str) -> tuple[int, bool]:
    """The open file, and whether it was made just now."""
    flags = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        descriptor, created = os.open(place, flags), False
    except FileNotFoundError:
        try:
            return os.open(place, flags | os.O_CREAT | os.O_EXCL, 0o600), True
        except FileExistsError:  # someone else made it in between
            descriptor, created = os.open(place, flags), False
    if not modes.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileTrouble(f"{path} is not a regular file", kind="other", where=path)
    return descriptor, created


def _gid(group: str | None, path: str) -> int | None:
    if group is None:
        return None
    import grp  # noqa: PLC0415 - most readers never need it

    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise FileTrouble(f"{path}: there is no group {group!r}", kind="other", where=path) from None


def _own(descriptor: int, mode: int, gid: int | None) -> None:
    if gid is not None:
        os.fchown(descriptor, -1, gid)
    os.fchmod(descriptor, mode)  # after the change of owner, which clears bits; and past the umask


def _sync_directory(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
