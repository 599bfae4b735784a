"""Runs the command line: ``python -m train``."""

from train import allocator
from train.cli import main

if __name__ == "__main__":
    allocator.keep_freed()
    raise SystemExit(main())
