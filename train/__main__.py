"""Runs the command line: ``python -m train``."""

import sys

from train import allocator

if __name__ == "__main__":
    # Only for training: the attacks of an evaluation loop inside one program, which takes its memory once.
    if sys.argv[1:2] == ["fit"]:
        allocator.keep_freed()
    from train.commands import main

    raise SystemExit(main())
