#!/usr/bin/env python3
"""Build a real llama-server for the tests and keep it in the cache.

The source distribution of ``llama-cpp-python`` carries the whole llama.cpp tree, so a package index is all
that is needed. The archive is pinned by hash; its own build backend is never run: pip insists on asking a
backend for metadata even when it only downloads, so it is given a stub that answers name and version.

The result is relocatable (``$ORIGIN`` as the library path): the directory may be bind-mounted or copied
anywhere. It runs on the C library of the machine that built it, or a newer one.

Command line: ``python tests/engine/llama_build.py [--release 0.3.36] [--source-only]`` prints the directory.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

PACKAGE = "llama-cpp-python"
CURRENT = "0.3.36"
OLDER = "0.3.16"
SHA256 = {
    CURRENT: "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e",
    OLDER: "34ed0f9bd9431af045bb63d9324ae620ad0536653740e9bb163a2e1fcb973be6",
}
OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DGGML_NATIVE=OFF",  # the cache may be shared by machines with different processors
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_CURL=OFF",  # no downloads, and no libcurl to install on the host under test
    "-DLLAMA_OPENSSL=OFF",
    "-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON",
    "-DCMAKE_INSTALL_RPATH=$ORIGIN",
)

_STUB_BACKEND = '''\
"""Answers pip's question for metadata while it downloads; builds nothing."""
import os

def prepare_metadata_for_build_wheel(directory, config_settings=None):
    version = os.environ["HOLDFAST_STUB_VERSION"]
    name = f"llama_cpp_python-{version}.dist-info"
    os.makedirs(os.path.join(directory, name), exist_ok=True)
    with open(os.path.join(directory, name, "METADATA"), "w", encoding="utf-8") as file:
        file.write(f"Metadata-Version: 2.1\\nName: llama-cpp-python\\nVersion: {version}\\n")
    return name

def get_requires_for_build_wheel(config_settings=None):
    return []

def build_wheel(*args, **kwargs):
    raise SystemExit("the stub builds nothing")
'''


class BuildError(Exception):
    """The engine could not be fetched or built; the message says which step and why."""


def cache_root() -> Path:
    """Return the folder that outlives test runs: $HOLDFAST_CACHE, or ~/.cache/holdfast."""
    return Path(os.environ.get("HOLDFAST_CACHE") or Path.home() / ".cache" / "holdfast")


@contextlib.contextmanager
def exclusively(name: str) -> Iterator[None]:
    """Hold the cache's lock of that name, so that two test runs do not build the same thing twice."""
    folder = cache_root() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def archive(release: str = CURRENT) -> Path:
    """Return the pinned source archive, downloaded once. Raises BuildError when the index does not answer."""
    folder = cache_root() / "archives"
    wanted = folder / f"llama_cpp_python-{release}.tar.gz"
    with exclusively(f"archive-{release}"):
        if wanted.exists() and _sha256(wanted) == SHA256[release]:
            return wanted
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as name:
            work = Path(name)
            backend = work / "stub" / "scikit_build_core"
            backend.mkdir(parents=True)
            (backend / "__init__.py").write_text("", encoding="utf-8")
            (backend / "build.py").write_text(_STUB_BACKEND, encoding="utf-8")
            requirements = work / "requirements.txt"
            requirements.write_text(f"{PACKAGE}=={release} --hash=sha256:{SHA256[release]}\n", encoding="utf-8")
            _run(
                [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:",
                 "--no-build-isolation", "--require-hashes", "--dest", str(work), "-r", str(requirements)],
                "download the source archive",
                environment={"PYTHONPATH": str(work / "stub"), "HOLDFAST_STUB_VERSION": release},
            )  # fmt: skip
            found = list(work.glob("*.tar.gz"))
            if len(found) != 1 or _sha256(found[0]) != SHA256[release]:
                raise BuildError(f"download of {PACKAGE} {release}: not the pinned archive")
            found[0].rename(wanted)
    return wanted


def source(release: str = CURRENT) -> Path:
    """Return the llama.cpp tree of a release, unpacked once and never written to. It has no git history."""
    wanted = cache_root() / "llama-source" / release
    packed = archive(release)
    with exclusively(f"source-{release}"):
        if wanted.exists():
            return wanted
        wanted.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=wanted.parent) as name:
            _unpack(packed, Path(name))
            trees = list(Path(name).glob("*/vendor/llama.cpp"))
            if len(trees) != 1:
                raise BuildError(f"{packed.name} carries no vendor/llama.cpp")
            trees[0].rename(wanted)
    return wanted


def server(release: str = CURRENT, options: Sequence[str] = OPTIONS) -> Path:
    """Return a folder with llama-server and its libraries, built on first use (minutes on two cores)."""
    key = hashlib.sha256("\0".join([SHA256[release], *options]).encode()).hexdigest()[:12]
    wanted = cache_root() / "llama-server" / f"{release}-{key}"
    if wanted.exists():
        return wanted
    tree = source(release)
    with exclusively(f"server-{release}-{key}"):
        if wanted.exists():
            return wanted
        wanted.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=wanted.parent) as name:
            build, result = Path(name) / "build", Path(name) / "result"
            generator = ["-G", "Ninja"] if shutil.which("ninja") else []
            _run(["cmake", "-S", str(tree), "-B", str(build), *generator, *options], "configure")
            jobs = str(os.cpu_count() or 2)
            _run(["cmake", "--build", str(build), "--target", "llama-server", "-j", jobs], "compile")
            result.mkdir()
            for built in (build / "bin").iterdir():
                if built.name == "llama-server" or ".so" in built.name:
                    shutil.copy2(built, result / built.name, follow_symlinks=False)
            result.chmod(0o755)
            result.rename(wanted)
    return wanted


def _unpack(packed: Path, folder: Path) -> None:
    with tarfile.open(packed) as tar:
        if hasattr(tarfile, "data_filter"):
            tar.extractall(folder, filter="data")
        else:  # Python before 3.10.12; the archive is pinned by hash
            tar.extractall(folder)  # noqa: S202


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def _run(argv: Sequence[str], what: str, environment: dict[str, str] | None = None) -> None:
    try:
        done = subprocess.run(
            argv, env={**os.environ, **(environment or {})}, text=True, check=False,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=3600,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{what}: {error}") from error
    if done.returncode != 0:
        raise BuildError(f"{what}: exit {done.returncode}\n{done.stdout[-2000:]}")


def main() -> int:
    """Build, or only unpack, one release and print where it is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--release", choices=sorted(SHA256), default=CURRENT)
    parser.add_argument("--source-only", action="store_true")
    arguments = parser.parse_args()
    try:
        print(source(arguments.release) if arguments.source_only else server(arguments.release))
    except BuildError as error:
        print(f"cannot build llama-server: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
