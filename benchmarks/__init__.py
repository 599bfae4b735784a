"""What things cost, ``python -m benchmarks``: ratios within one run, with candidates timed in turn."""
