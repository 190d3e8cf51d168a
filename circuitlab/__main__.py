"""`python -m circuitlab` is the `circuitlab` command."""

import sys

from circuitlab.cli import main

if __name__ == "__main__":
    sys.exit(main())
