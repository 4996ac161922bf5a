"""Operators with a fast and a reference body (engine.kernels): convolution, mean, norm."""
