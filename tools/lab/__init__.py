"""The laboratory: benchmarks, the paper's CIFAR-10 study and the transfer trials. Not installed."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
"""Root folder of this clone."""
