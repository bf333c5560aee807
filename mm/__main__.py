"""`python -m mm` is the same program as `mm`."""

import sys

from mm.cli import main

if __name__ == "__main__":
    sys.exit(main())
