"""`python -m etude`."""

import sys

from etude.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
