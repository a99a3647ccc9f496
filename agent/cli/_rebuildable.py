"""What `holdfast init` can learn of how an engine could be rebuilt here: its link, its releases, its source.

Only what is there is said: a server that runs through a link, and git repositories of llama.cpp beside that link.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Callable, Iterator, Mapping

from agent.errors import HostError
from agent.host import Host, llama_source
from agent.model import Json

SERVER = "/bin/llama-server"
NO_COMMIT = "0" * 40
_BUILT = re.compile(r"-([0-9a-f]{7,40})$")


def rebuild_settings(host: Host, program: str, version: Callable[[], str]) -> Mapping[str, Json]:
    """What `[engine.rebuild]` would say of a server that was started as `program`; empty when it runs through no link.

    version: asks the server what it is ("b9272-1d7ab2b94"). Without `source` or `commit` it is not complete.
    """
    current = program.removesuffix(SERVER)
    try:
        if current == program or not host.files.stat(current).is_link:
            return {}
        release = host.files.realpath(current)
        found: dict[str, Json] = {"releases": posixpath.dirname(release), "current": current}
        if any(name.startswith("libggml-cuda") for name in host.files.listdir(f"{release}/bin")):
            found["cmake"] = ["-DGGML_CUDA=ON"]
        for source in _sources(host, posixpath.dirname(current)):
            found["source"] = source
            commit = _commit(host, release, source, version)
            if commit:
                found["commit"] = commit
                break
    except HostError:
        return {}
    return found


def _sources(host: Host, folder: str) -> Iterator[str]:
    """Git repositories in a folder, with a work tree or without."""
    for name in host.files.listdir(folder):
        path = f"{folder}/{name}"
        if host.files.exists(f"{path}/.git") or (
            host.files.exists(f"{path}/HEAD") and host.files.exists(f"{path}/objects")
        ):
            yield path


def _commit(host: Host, release: str, source: str, version: Callable[[], str]) -> str:
    """The full hash of what serves, as far as this repository has it; "" when it has not."""
    try:
        named = str(json.loads(host.files.read_text(f"{release}/provenance.json"))["commit"])
    except (HostError, ValueError, KeyError, TypeError):
        built = _BUILT.search(version())
        named = built[1] if built else ""
    return llama_source.full_hash(host, source, named) if re.fullmatch(r"[0-9a-f]{7,40}", named) else ""


def lines(settings: Mapping[str, Json]) -> list[str]:
    """The table for the configuration, commented out where a person must add something."""
    complete = "source" in settings and "commit" in settings
    about = ["", "# How it is rebuilt when it does not fit the driver or the card any more; rehearsed in quiet hours."]
    known = {
        "source": settings.get("source", "/opt/llama.cpp/src"),
        "commit": settings.get("commit", NO_COMMIT),
        **{key: settings[key] for key in ("releases", "current", "cmake") if key in settings},
    }
    mark = "" if complete else "# "
    if not complete:
        about.append(
            "# Fill in a git repository that holdfast-build can read, and the full hash of a commit that serves."
        )
    return [*about, f"{mark}[engine.rebuild]", *(f"{mark}{key} = {json.dumps(value)}" for key, value in known.items())]
