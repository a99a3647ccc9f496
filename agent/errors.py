"""Every error a person may see, as one tree.

    HoldfastError                code, message, hint, where; exit code 70
    ├── UsageError               what was typed cannot be meant; 64
    ├── DaemonUnreachable        the daemon or a socket of ours does not answer; 69
    ├── InternalError            our bug; 70
    ├── PermissionRefused        the caller may not do this; 77
    │   └── Refused              the runner said no, with its reason and `not_before`
    ├── ConfigurationError       one or more mistakes in files a person wrote, all of them; 78
    ├── StoreError               the daemon's memory cannot be read or written; 70
    └── HostError                the machine did not do what was asked; 70
        ├── FileTrouble          a file is missing, unreadable, too large or malformed
        ├── CommandFailed        a program ended with an unexpected status, or not in time
        └── Unreachable          no complete answer over the network: refused, timeout, too-large, broken

One place turns them into exit codes (`agent.cli`), one renders them; `code` is stable and documented.
"""

from __future__ import annotations

from dataclasses import dataclass


class HoldfastError(Exception):
    """The root. `code` is stable kebab-case, `message` says what, `where` where, `hint` what to do."""

    exit_code = 70
    code = "error"

    def __init__(self, message: str, *, hint: str = "", where: str = "", code: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.where = where
        if code:
            self.code = code


class UsageError(HoldfastError):
    """What was typed cannot be meant: an unknown name, two options that exclude each other."""

    exit_code = 64
    code = "usage"


class DaemonUnreachable(HoldfastError):
    """The daemon, the runner or the inspector does not answer on its socket."""

    exit_code = 69
    code = "daemon-unreachable"


class InternalError(HoldfastError):
    """A mistake of ours."""

    exit_code = 70
    code = "internal"


class PermissionRefused(HoldfastError):
    """The caller may not do this."""

    exit_code = 77
    code = "permission"


class Refused(PermissionRefused):
    """The runner decided against a run. `not_before` is Unix seconds, None when waiting will not help."""

    code = "refused"

    def __init__(self, message: str, *, not_before: float | None = None, hint: str = "", code: str = "") -> None:
        super().__init__(message, hint=hint, code=code)
        self.not_before = not_before


@dataclass(frozen=True, slots=True)
class Mistake:
    """One thing wrong in a file: which file, the path inside it, what is wrong, what is allowed."""

    file: str
    path: str
    wrong: str
    allowed: str = ""

    def __str__(self) -> str:
        place = f"{self.file}: {self.path}: " if self.path else f"{self.file}: "
        return place + self.wrong + (f" (allowed: {self.allowed})" if self.allowed else "")


class ConfigurationError(HoldfastError):
    """All mistakes of a configuration, a runbook or a lock at once."""

    exit_code = 78
    code = "configuration"

    def __init__(self, mistakes: list[Mistake] | tuple[Mistake, ...], *, hint: str = "") -> None:
        self.mistakes = tuple(mistakes)
        super().__init__("\n".join(str(mistake) for mistake in self.mistakes), hint=hint)


class StoreError(HoldfastError):
    """The daemon's memory cannot be read or written."""

    code = "store"


class HostError(HoldfastError):
    """The machine did not do what was asked."""

    code = "host"


class FileTrouble(HostError):
    """A file is missing, unreadable, too large or malformed. `kind`: missing, denied, large, malformed, other."""

    code = "file"

    def __init__(self, message: str, *, kind: str, where: str = "") -> None:
        super().__init__(message, where=where)
        self.kind = kind


class CommandFailed(HostError):
    """A program ended with an unexpected status, could not be started, or did not end in time."""

    code = "command"


class Unreachable(HostError):
    """No complete HTTP answer. `kind`: refused, timeout, too-large, broken (anything else on the wire).

    unsent: there was never a connection, so the request cannot have had any effect.
    """

    code = "unreachable"

    def __init__(self, message: str, *, kind: str, where: str = "", unsent: bool = False) -> None:
        super().__init__(message, where=where)
        self.kind = kind
        self.unsent = unsent or kind == "refused"
