"""What things cost: ``python -m benchmarks``. Comparisons are ratios inside one run, taken in turn."""
