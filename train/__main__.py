"""Runs the command line: ``python -m train``."""

import sys

from train import allocator
from train.cli import main

if __name__ == "__main__":
    # Training gains a tenth to a half of its time; the attacks of an evaluation loop inside one program and gain none.
    if sys.argv[1:2] == ["fit"]:
        allocator.keep_freed()
    raise SystemExit(main())
