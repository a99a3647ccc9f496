"""`python -m agent.cli` from a checkout."""

import sys

from agent.cli import main

sys.exit(main())
