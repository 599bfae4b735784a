"""Runs the command line: ``python -m train``."""

import sys

from train import allocator

if __name__ == "__main__":
    # Only training: the attacks of an evaluation loop inside one program, which takes its memory once.
    if sys.argv[1:2] == ["fit"]:
        allocator.keep_freed()
    from train.cli import main

    raise SystemExit(main())
