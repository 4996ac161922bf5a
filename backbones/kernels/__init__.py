"""Convolution, mean and group norm with a fast and a reference implementation (engine.kernels)."""
