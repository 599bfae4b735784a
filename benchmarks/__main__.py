"""Runs the command line: ``python -m benchmarks``."""

from train import allocator

if __name__ == "__main__":
    allocator.keep_freed()
    from benchmarks.cli import main

    raise SystemExit(main())
