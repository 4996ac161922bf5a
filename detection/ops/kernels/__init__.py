"""Fast bodies of the operators of detection.ops."""
