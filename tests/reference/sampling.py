"""Repeat-factor sampling with plain loops over images and classes."""

import math
from collections.abc import Sequence


def repeat_factors(classes: Sequence[Sequence[int]], thresh: float) -> list[float]:
    """Return the factor of each image (Gupta et al. 2019, appendix B.2), from its classes."""
    factors = []
    for own in classes:
        factor = 1.0
        for label in own:
            fraction = sum(label in other for other in classes) / len(classes)
            factor = max(factor, math.sqrt(thresh / fraction))
        factors.append(factor)
    return factors
