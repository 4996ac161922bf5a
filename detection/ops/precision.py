"""Widening of bfloat16 tensors to float32, for arithmetic that autocast must not narrow."""

import torch
from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """Return `tensor` in float32 if it is narrower (bfloat16), otherwise unchanged."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
