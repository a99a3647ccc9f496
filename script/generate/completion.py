"""Prints the completion script of one shell."""

import sys

from agent.cli.completion import Shell, completion_script

if __name__ == "__main__":
    shells = [shell.value for shell in Shell]
    if len(sys.argv) != 2 or sys.argv[1] not in shells:
        sys.exit(f"usage: gen-completion {'|'.join(shells)}")
    sys.stdout.write(completion_script(sys.argv[1]))
