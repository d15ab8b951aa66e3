"""The command `probe`, for machines on which that name is something else."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
