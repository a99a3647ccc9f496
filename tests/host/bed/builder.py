"""Host trees in which llama.cpp can be built: the toolchain, and for the real source a warm ccache and a release.

The real source takes minutes to compile, so that is done once per machine, into ccache; a build in a scene then
configures, hashes and links for itself and takes the compiled objects from there. It is compiled at the place and with
the options with which Holdfast does it, because ccache only finds what was compiled with the same words.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from llama_build import cache_root

from agent.host import build_options
from bed import repository, rootfs

PACKAGES = ("ccache", "cmake", "g++", "git", "make")
SOURCE = "/opt/llama.cpp/source.git"
"""Where the tree has the real repository."""
RELEASE = "/opt/bed/b1"
"""What was built of the real b1: the program and its libraries."""
CCACHE = "/opt/bed/ccache"
WORK = "/var/cache/holdfast-build/chat/work"
"""Where Holdfast builds the engine `chat`."""
CMAKE = ("-DGGML_NATIVE=OFF", "-DLLAMA_OPENSSL=OFF")
"""What `[engine.rebuild]` says: the tree may be moved to another processor, and it has no libssl-dev."""
_WARM = f"""\
quietly() {{ "$@" >/tmp/log 2>&1 || {{ tail -n 20 /tmp/log; exit 1; }}; }}
work={WORK}
# A build unit has these; ccache finds nothing again that was compiled in another language.
export LC_ALL=C LANG=C.UTF-8
export CCACHE_DIR={CCACHE} CCACHE_COMPRESSLEVEL=1
mkdir -p $CCACHE_DIR $work
for tag in b1 b2; do
    mkdir $work/src
    commit=$(git -c safe.directory={SOURCE} -C {SOURCE} rev-parse $tag)
    git -c safe.directory={SOURCE} -C {SOURCE} archive $tag | tar -x -C $work/src
    quietly cmake -S $work/src -B $work/build "$@" -DLLAMA_BUILD_NUMBER=${{tag#b}} -DLLAMA_BUILD_COMMIT=$commit
    quietly cmake --build $work/build --target llama-server --parallel "$(nproc)"
    mkdir -p /opt/bed/$tag
    find $work/build/bin -name llama-server -o -name "lib*.so*" | xargs cp -a --target-directory=/opt/bed/$tag
    rm -rf $work/src $work/build
done
rm -rf /opt/bed/b2 /var/cache/holdfast-build /tmp/log
"""


def with_tools(suite: str = "bookworm") -> Path:
    """Return a tree with compiler, cmake, make, git and ccache."""
    return rootfs.rootfs(suite, PACKAGES)


def with_llama_cpp(suite: str = "bookworm") -> Path:
    """Return a tree with tools, the real repository, a ccache of its b1 and b2, and b1 built. Minutes at first."""
    source = repository.real()
    launchers = (f"-DCMAKE_{each}_COMPILER_LAUNCHER=ccache" for each in ("C", "CXX"))
    options = (*build_options.ALWAYS, *build_options.LINKED, *launchers, *CMAKE)
    words = "\0".join([source.name, *options, _WARM, *PACKAGES])
    key = hashlib.sha256(words.encode()).hexdigest()[:12]
    name = f"{suite}-{rootfs.RECIPE}-llama-{key}"
    # What an earlier tree has compiled need not be compiled again where only other words have changed.
    earlier = sorted(
        (cache_root() / "rootfs").glob(f"{suite}-*-llama-*{CCACHE}"), key=lambda path: path.stat().st_mtime
    )
    return rootfs.derived(
        name, with_tools(suite), _WARM, options, {source: SOURCE, **dict.fromkeys(earlier[-1:], CCACHE)}
    )
