"""`python -m simpo.cli VERB`: how launchers and sweeps start processes of their own."""

import sys

from simpo.cli import main

if __name__ == "__main__":
    sys.exit(main())
