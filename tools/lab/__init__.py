"""The laboratory: benchmarks and the paper's studies. It is not installed."""
