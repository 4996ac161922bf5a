"""Fast forms of the operators, behind the contracts of detection.ops."""
