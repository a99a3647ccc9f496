"""Git repositories of llama.cpp for booted hosts: the real source, and a stand-in that builds in a second.

A commit's hash follows from its content alone (names and dates are fixed), so it is the same on every machine. The
tags are those that llama.cpp would give: b and the number of commits.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import llama_build
from llama_build import cache_root, exclusively

from bed.errors import BedError, UnavailableError
from bed.prerequisites import ensure_commands

RECIPE = "1"  # raise it when the real repository is made otherwise
STANDIN = Path(__file__).with_name("standin")
_IDENTITY = {
    "GIT_AUTHOR_NAME": "bed", "GIT_AUTHOR_EMAIL": "bed@localhost", "GIT_AUTHOR_DATE": "2026-10-01T12:00:00Z",
    "GIT_COMMITTER_NAME": "bed", "GIT_COMMITTER_EMAIL": "bed@localhost", "GIT_COMMITTER_DATE": "2026-10-01T12:00:00Z",
    "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null",
}  # fmt: skip
Edit = Callable[[Path], None]


def real() -> Path:
    """Return a bare repository of the pinned llama.cpp: b1 as it is, b2 with a line more in its smallest source.

    Raises UnavailableError when the source cannot be fetched.
    """
    try:
        tree = llama_build.source()
    except llama_build.BuildError as error:
        raise UnavailableError(f"no source of llama.cpp: {error}") from error
    return _made(f"llama-{llama_build.CURRENT}-{RECIPE}", tree, [("as it was released", _same), ("one line", _say_b2)])


def standin() -> Path:
    """Return a bare repository of the stand-in (bed/standin). Its commits are described at STANDIN_COMMITS."""
    files = (*sorted(STANDIN.iterdir()), Path(__file__))
    key = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]
    return _made(f"standin-{key}", STANDIN, list(STANDIN_COMMITS))


def commits(repository: Path) -> dict[str, str]:
    """Return the full hash of each tag."""
    lines = _git(repository, "for-each-ref", "--format=%(refname:short) %(objectname)", "refs/tags").splitlines()
    return dict(line.split() for line in lines)


def _same(tree: Path) -> None:
    assert (tree / "CMakeLists.txt").exists()


def _say_b2(tree: Path) -> None:
    _replace(tree / "tools/server/main.cpp", "    return", '    fprintf(stderr, "this is b2\\n");\n    return')
    _replace(tree / "tools/server/main.cpp", "int llama_server", "#include <cstdio>\n\nint llama_server")


def _one_line(tree: Path) -> None:
    _replace(tree / "main.cpp", "a stand-in", "a newer stand-in")


def _refuses(tree: Path) -> None:
    _replace(tree / "main.cpp", 'refused = ""', 'refused = "--slots"')


def _does_not_compile(tree: Path) -> None:
    _replace(tree / "main.cpp", "return BUILD;", "another_name();\n    return no_such_name;")


def _writes_elsewhere(tree: Path) -> None:
    script = (
        "foreach(place /etc/holdfast/runbooks.d/own.yaml /opt/llama.cpp/current/bin/llama-server /usr/bin/own\n"
        "        /var/lib/holdfast-runner/own /home/own /root/own)\n"
        '    execute_process(COMMAND sh -c "echo own >${place}" RESULT_VARIABLE failed ERROR_QUIET)\n'
        '    message(STATUS "writing ${place}: ${failed}")\n'
        "endforeach()\n"
        "file(WRITE /etc/own.conf own)\n"
    )
    _replace(tree / "CMakeLists.txt", "project(standin CXX)\n", f"project(standin CXX)\n{script}")


def _writes_quietly(tree: Path) -> None:
    _writes_elsewhere(tree)
    _replace(tree / "CMakeLists.txt", "file(WRITE /etc/own.conf own)\n", "")


def _dies_in_the_unit(tree: Path) -> None:
    script = (
        "bool unit = false, version = false;\n"
        "    for (int i = 1; i < argc; i++) {\n"
        '        unit = unit || strcmp(argv[i], "8080") == 0;\n'
        '        version = version || strcmp(argv[i], "--version") == 0;\n'
        "    }\n"
        "    if (unit && !version) {\n"
        "        return 1;\n"
        "    }\n"
    )
    _replace(tree / "main.cpp", "return llama_server(argc, argv);", f"{script}    return llama_server(argc, argv);")


def _dies_later(tree: Path) -> None:
    script = (
        "std::thread([] {\n"
        '        while (access("/run/bed-dies", F_OK) != 0) {\n'
        "            usleep(50000);\n"
        "        }\n"
        "        _exit(1);\n"
        "    }).detach();\n"
    )
    _replace(tree / "main.cpp", "return llama_server(argc, argv);", f"{script}    return llama_server(argc, argv);")
    _replace(tree / "main.cpp", "#include <unistd.h>\n", "#include <thread>\n#include <unistd.h>\n")


STANDIN_COMMITS: tuple[tuple[str, Edit], ...] = (
    ("b1", _same),
    ("b2", _one_line),
    ("b3: refuses --slots, as newer ones refuse what older ones took", _refuses),
    ("b4: does not compile", _does_not_compile),
    ("b5: writes outside its directory", _writes_elsewhere),
    ("b6: tries to write outside its directory, and goes on when it may not", _writes_quietly),
    ("b7: dies at once, but only at the port of the unit", _dies_in_the_unit),
    ("b8: serves, and dies when a test says so", _dies_later),
)
"""What each commit of the stand-in is; each one is b1 with one change."""


def _replace(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    if text.count(old) != 1:
        raise BedError(f"{path.name} has {text.count(old)} times {old!r}")
    path.write_text(text.replace(old, new), encoding="utf-8")


def _made(name: str, tree: Path, edits: list[tuple[str, Edit]]) -> Path:
    wanted = cache_root() / "repositories" / f"{name}.git"
    if wanted.exists():
        return wanted
    ensure_commands(("git",))
    with exclusively(f"repository-{name}"):
        if wanted.exists():
            return wanted
        wanted.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=wanted.parent, prefix=".making-") as folder:
            work = Path(folder) / "work"
            shutil.copytree(tree, work, symlinks=True, ignore=shutil.ignore_patterns(".git"))
            _git(work, "init", "--quiet", "--initial-branch=main")
            _git(work, "add", "--force", "--all")
            base = _git(work, "write-tree").strip()
            for number, (said, edit) in enumerate(edits, 1):
                _git(work, "read-tree", "--reset", "-u", base)
                edit(work)
                _git(work, "add", "--force", "--all")
                _git(work, "commit", "--quiet", "--allow-empty", "--message", said)
                _git(work, "tag", f"b{number}")
            _git(work, "clone", "--quiet", "--bare", "--no-hardlinks", str(work), str(Path(folder) / "bare.git"))
            bare = Path(folder) / "bare.git"
            _git(bare, "repack", "-a", "-d", "--quiet")
            _git(bare, "remote", "remove", "origin")
            subprocess.run(["chmod", "-R", "a+rX", str(bare)], check=True)
            bare.rename(wanted)
    return wanted


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], text=True, check=False, capture_output=True, timeout=600,
        env={**os.environ, **_IDENTITY},
    )  # fmt: skip
    if done.returncode != 0:
        raise BedError(f"git {arguments[0]}: {done.stderr[-1000:]}")
    return done.stdout
