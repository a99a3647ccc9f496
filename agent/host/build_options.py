"""What cmake is told: a release build of the server alone, relocatable, without downloads, for named cards.

The recipe's own options come last, so that they win. Names that a tree does not know (they have changed over the
years) cost only a warning.
"""

from __future__ import annotations

from agent.host import Host, builds, llama_source, toolchain
from agent.host.recipe import Recipe

TARGET = "llama-server"
ALWAYS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    # Both: with the user interface off, a prebuilt one would still be fetched while building.
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    # From b5064 to b8072 it is on by default, and stops the build where the library's headers are missing.
    "-DLLAMA_CURL=OFF",
)
"""What every build is told."""
LINKED = ("-DBUILD_SHARED_LIBS=ON", "-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON", "-DCMAKE_INSTALL_RPATH=$ORIGIN")
"""Its libraries lie beside the server, wherever that is moved to; cmake's own run path is the build tree."""
_ALONE = ("-DBUILD_SHARED_LIBS=OFF",)


def options(host: Host, recipe: Recipe, commit: str) -> tuple[str, ...]:
    """Every -D for this commit on this host. What cannot be told now is left out. Raises CommandFailed for NVML."""
    known = llama_source.identity(host, recipe, commit)
    named = [f"-DLLAMA_BUILD_COMMIT={commit[:12]}", f"-DLLAMA_BUILD_NUMBER={known.number}"]
    cached = [f"-DCMAKE_{each}_COMPILER_LAUNCHER=ccache" for each in _languages(host, recipe)]
    cuda = []
    if recipe.cuda:
        kit = toolchain.cuda(host, recipe)
        cuda += [f"-DCMAKE_CUDA_COMPILER={kit.nvcc}"] if kit is not None and "/" in kit.nvcc else []
        cards = toolchain.architectures(host, recipe)
        # Never left to cmake: without a card in sight it would build for none.
        cuda += [f"-DCMAKE_CUDA_ARCHITECTURES={';'.join(cards)}"] if cards else []
    return (*ALWAYS, *(LINKED if recipe.install == "link" else _ALONE), *named, *cached, *cuda, *recipe.cmake)


def _languages(host: Host, recipe: Recipe) -> tuple[str, ...]:
    """The languages whose compilers go through ccache; none where it is not installed."""
    if toolchain.tool(host, "ccache") is None:
        return ()
    return ("C", "CXX", "CUDA") if recipe.cuda else ("C", "CXX")


def configure(host: Host, recipe: Recipe, commit: str) -> tuple[str, ...]:
    """The command that configures."""
    generator = toolchain.generator(host) or "Unix Makefiles"
    places = ("-S", builds.source_tree(recipe), "-B", builds.build_tree(recipe), "-G", generator)
    return ("cmake", *places, *options(host, recipe, commit))


def compile_and_link(recipe: Recipe, jobs: int) -> tuple[str, ...]:
    """The command that builds."""
    return ("cmake", "--build", builds.build_tree(recipe), "--target", TARGET, "--parallel", str(jobs))
