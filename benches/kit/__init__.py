"""What the benchmarks share: a server of their own, medians of alternating runs, results as data and as tables."""
