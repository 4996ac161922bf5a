"""Fast implementations of the operators in detection.ops."""
