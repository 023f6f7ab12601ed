"""`python -m attneck`: the command line by a Python of one's choice, as torchrun starts it."""

import sys

from attneck.cli import main

if __name__ == "__main__":  # data workers that are spawned import this file again
    sys.exit(main())
