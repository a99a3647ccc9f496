"""`holdfast completion`: the shell's completion script, to install by hand; the package ships all three."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

from agent.cli._result import Result, plain
from agent.cli._verb import Verb


class Shell(str, Enum):
    """A shell that can complete our words."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def completion(
    shell: Annotated[Shell, typer.Argument(metavar="SHELL", help="The shell: bash, zsh or fish.")],
) -> Result:
    """Print the completion script of a shell."""
    script = completion_script(shell.value)
    return Result("completion", {"shell": shell.value, "script": script}, plain(script))


def completion_script(shell: str) -> str:
    """The script that makes `shell` ask the installed `holdfast` for completions."""
    from typer._completion_shared import get_completion_script

    script = str(get_completion_script(prog_name="holdfast", complete_var="_HOLDFAST_COMPLETE", shell=shell))
    return script.replace(_ZSH_SOURCED, _ZSH_BOTH) + "\n"


_ZSH_SOURCED = "compdef _holdfast_completion holdfast"
_ZSH_BOTH = """if [ "$funcstack[1]" = "_holdfast" ]; then
  _holdfast_completion "$@"  # found through fpath: the file is the function, and must complete at once
else
  compdef _holdfast_completion holdfast  # sourced
fi"""


VERB = Verb(commands=(completion,))
