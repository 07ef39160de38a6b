"""Run the command line with ``python -m fampe_fast``."""

import sys

from .cli import main

sys.exit(main())
