"""The git repository that llama.cpp is built from: asked as the build user, offline, and never obeyed.

No hook ever runs, because none of these commands has one; nothing is fetched; replaced objects and the configuration
of users and of the system do not count. With `--git-dir` git does not mind that the repository is somebody else's.
A tag is a name for people: only the full hash says what is built.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from agent.errors import CommandFailed, FileTrouble
from agent.host import Completed, Host
from agent.host.recipe import BUILD_USER, Recipe, asker

ASK_S = 60.0
"""Walking llama.cpp's whole history takes a tenth of a second, on a cold slow disk much longer."""
_ENVIRONMENT = ("env", "HOME=/nonexistent", "GIT_CONFIG_NOSYSTEM=1")
_PINNED = ("-c", "core.autocrlf=false", "-c", "protocol.allow=never")
"""No line endings are changed on the way, and what a partial clone lacks is not fetched but missing."""
_TAG = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
_NUMBERED = re.compile(r"^b(\d{1,7})$")


@dataclass(frozen=True, slots=True)
class Identity:
    """What a commit is called. number: llama.cpp's build number, the commits up to it; 0 where that cannot be told."""

    tag: str
    number: int


def git(host: Host, recipe: Recipe, *words: str) -> tuple[str, ...]:
    """A git command on the recipe's repository, for the build user. Raises FileTrouble."""
    return _git(host, recipe.source, *words)


def full_hash(host: Host, source: str, commit: str) -> str:
    """The full hash of a commit of which some digits are known; "" when this repository has no such commit."""
    try:
        argv = _git(host, source, "rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}")
        answer = host.run(argv, timeout_s=ASK_S, user=asker())
    except CommandFailed:
        return ""
    found = answer.stdout.strip()
    return found if answer.rc == 0 and re.fullmatch(r"[0-9a-f]{40}", found) else ""


def _git(host: Host, source: str, *words: str) -> tuple[str, ...]:
    return (*_ENVIRONMENT, "git", "--no-replace-objects", f"--git-dir={git_dir(host, source)}", *_PINNED, *words)


def git_dir(host: Host, source: str) -> str:
    """Where the repository itself is: below its work tree, or the source itself when that is bare."""
    inside = f"{source}/.git"
    try:
        return inside if host.files.exists(inside) else source
    except FileTrouble:
        return inside


def tag(host: Host, recipe: Recipe, commit: str) -> str:
    """The configured tag, else one that points at the commit (bNNNN first); "" for none. Never raises for git."""
    return (recipe.tag if commit == recipe.commit else "") or _tag_at(host, recipe, commit)


def identity(host: Host, recipe: Recipe, commit: str) -> Identity:
    """What the commit is called. Never raises for what git does: what cannot be told is "" and 0."""
    name = tag(host, recipe, commit)
    shallow = _ask(host, recipe, "rev-parse", "--is-shallow-repository")
    counted = _ask(host, recipe, "rev-list", "--count", commit) if shallow.strip() == "false" else ""
    if counted.strip().isdecimal():
        return Identity(name, int(counted))
    numbered = _NUMBERED.match(name)
    return Identity(name, int(numbered[1]) if numbered else 0)


def moved_tag(host: Host, recipe: Recipe, commit: str) -> str:
    """Where the configured tag points by now, when that is not the commit: its full hash, or "nowhere"; else ""."""
    if not recipe.tag or commit != recipe.commit:
        return ""
    found = _ask(host, recipe, "rev-parse", "--verify", "--quiet", f"refs/tags/{recipe.tag}^{{commit}}").strip()
    return "" if found == commit else found or "nowhere"


def problem(host: Host, recipe: Recipe, commit: str) -> str:
    """Why this commit cannot be built from here, offline, by the build user; "" when it can."""
    try:
        kind = _run(host, recipe, "cat-file", "-t", commit)
    except CommandFailed as error:
        return f"git cannot be run as {BUILD_USER}: {error.message}"
    if kind.rc != 0:
        return _why_not(recipe, commit, kind.stderr)
    if kind.stdout.strip() != "commit":
        return f"{commit} is a {kind.stdout.strip()[:20]} in {recipe.source}, not a commit"
    try:
        listed = _run(host, recipe, "rev-list", "--objects", "--missing=print", f"{commit}^{{tree}}")
    except CommandFailed as error:
        return f"the tree of {commit[:12]} cannot be read: {error.message}"
    missing = sum(line.startswith("?") for line in listed.stdout.splitlines())
    if listed.rc != 0 or missing:
        count = f"{missing} of its objects are" if missing else "something of it is"
        return (
            f"commit {commit[:12]} is in {recipe.source}, but {count} missing or damaged (a partial clone?): "
            "fetch it whole while the network is there"
        )
    return ""


def _why_not(recipe: Recipe, commit: str, said: str) -> str:
    words = said.lower()
    if "not a git repository" in words or "permission denied" in words or "unable to" in words:
        return f"{recipe.source} is no git repository that {BUILD_USER} can read"
    return f"commit {commit} is not in {recipe.source}: fetch it there while the network is there"


def _tag_at(host: Host, recipe: Recipe, commit: str) -> str:
    names = [name for name in _ask(host, recipe, "tag", "--points-at", commit).split() if _TAG.match(name)]
    return min(names, key=lambda name: (_NUMBERED.match(name) is None, name), default="")


def _ask(host: Host, recipe: Recipe, *words: str) -> str:
    """What git says, "" when it cannot say it."""
    try:
        answer = _run(host, recipe, *words)
    except CommandFailed:
        return ""
    return answer.stdout if answer.rc == 0 else ""


def _run(host: Host, recipe: Recipe, *words: str) -> Completed:
    return host.run(git(host, recipe, *words), timeout_s=ASK_S, user=asker(), limit=16 << 20)
