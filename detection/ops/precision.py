"""Arithmetic that autocast must not narrow."""

import torch
from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """Return `tensor` in float32 when it is narrower (bfloat16), else itself."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
