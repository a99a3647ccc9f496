"""The command line: one file per verb, discovered. `main` runs one command line and returns its exit code."""

from agent.cli._main import main

__all__ = ["main"]
