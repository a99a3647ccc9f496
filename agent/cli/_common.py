"""What several verbs share: the configuration, runbooks by id, near misses of a name, and who may do what."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from agent.cli._session import Session, current
from agent.errors import FileTrouble, PermissionRefused, UsageError

if TYPE_CHECKING:
    from agent.config import Config

Force = Annotated[bool, typer.Option("--force", help="Do it although something speaks against it; only root may.")]


def configuration() -> Config:
    """The configuration as it is on disk now. Raises ConfigurationError with every mistake."""
    from agent import config

    try:
        return config.load(current().host.files)
    except FileTrouble as error:
        raise readable(error) from error


def readable(error: FileTrouble) -> Exception:
    """A file that the caller may not read, as what it is: a matter of permission."""
    if error.kind == "denied":
        return PermissionRefused(error.message, where=error.where, hint=as_root_hint())
    return error


def as_root_hint() -> str:
    """What someone types who lacks the rights to read."""
    return "use sudo, or join the group: sudo usermod -aG holdfast $USER"


def need_root(session: Session, command: str) -> None:
    """Raise PermissionRefused for anyone but root."""
    if not session.root:
        raise PermissionRefused("only root may do this", hint=f"sudo {command}")


def recorded_name(session: Session) -> str:
    """Who asked, in the form that runbooks take: a word that cannot carry anything else into a file."""
    import re

    return re.sub(r"[^A-Za-z0-9._@+-]", "_", session.caller)[:64] or "root"


def unknown(what: str, word: str, known: Iterable[str], *, list_with: str = "") -> NoReturn:
    """Raise UsageError for a name that does not exist, with the nearest one that does."""
    from difflib import get_close_matches

    names = sorted(known)
    close = get_close_matches(word, names, n=1)
    meant = f" (did you mean {close[0]!r}?)" if close else ""
    hint = f"known: {', '.join(names[:20])}" if names else "there is none yet"
    raise UsageError(f"unknown {what} {word!r}{meant}", hint=list_with or hint, code="unknown-name")


def seconds(text: str) -> float:
    """A duration as people type it ("45s", "2h", "1h30m", "1d") in seconds. Raises UsageError."""
    import re

    found = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m(?:in)?)?(?:(\d+)s)?", text.strip().lower().replace(" ", ""))
    parts = [int(part or 0) for part in found.groups()] if found else []
    total = sum(part * size for part, size in zip(parts, (86400, 3600, 60, 1), strict=False))
    if total <= 0:
        raise UsageError(f"{text!r} is no duration", hint="write for example 30m, 2h or 1d12h")
    return float(total)
