"""Which kernels run: RESDET_KERNELS=fast, the default, or reference.

An operator with a fast kernel (a private operator of torch, a Triton kernel, a gradient written by
hand) has a reference kernel beside it: a few lines of torch's and torchvision's public operators.
Both obey one contract. The environment variable is read at each call; a compiled graph keeps the
kernels that it was compiled with.
"""

import functools
import os
import warnings
from typing import Literal

import torch

from engine.errors import UserError

VARIABLE = "RESDET_KERNELS"


def kernels_kind() -> Literal["fast", "reference"]:
    """Return which kernels run; reference in an exported program, which has to run elsewhere.

    Raises:
        UserError: the variable has another value.
    """
    if torch.compiler.is_exporting():
        return "reference"
    value = os.environ.get(VARIABLE, "fast")
    if value == "fast":
        return "fast"
    if value == "reference":
        return "reference"
    raise UserError(f"{VARIABLE}: expected fast or reference, got {value!r}")


def kernels_note() -> str:
    """Return the line that each log begins with; UserError as for `kernels_kind`."""
    return f"kernels: {kernels_kind()}"


@functools.cache
def warn_of_fallback(operator: str, reason: str) -> None:
    """Warn, once per process, that a fast kernel cannot run here, so the reference runs."""
    warnings.warn(f"{operator}: the reference kernel runs, {reason}", stacklevel=2)
