"""Runs the command line: ``python -m benchmarks``."""

from benchmarks.cli import main
from train import allocator

if __name__ == "__main__":
    allocator.keep_freed()
    raise SystemExit(main())
