"""For every tier: the checkout is importable, so that `agent`, `checks` and `tests.support` are."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = str(Path(__file__).resolve().parents[1])
if ROOT not in sys.path:
    sys.path.insert(0, ROOT)
