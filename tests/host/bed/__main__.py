"""Fill the cache ahead of the tests: ``PYTHONPATH=tests/host python -m bed [SUITE…]`` (default: Debian's two)."""

from __future__ import annotations

import sys

from bed import UnavailableError, ensure, nvml_library
from bed.engine import llama_server, models
from bed.rootfs import DEBIAN


def main() -> int:
    """Build what is missing; 1 when something is not to be had here."""
    try:
        ensure(*(sys.argv[1:] or DEBIAN))
        for made in (nvml_library(), models(), llama_server(), llama_server(older=True)):
            print(made)
    except UnavailableError as error:
        print(f"the bed is not to be had on this machine: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
