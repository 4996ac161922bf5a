"""Memory limit while a network is built from the config in a weights file.

A weights file may come from anybody. Without a limit, a config in it could ask for a network that
fills the machine's memory.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from engine.errors import UserError

M = TypeVar("M", bound=nn.Module)

_EXTRA_NUMBERS = 200_000_000
"""Extra numbers that a network may have beyond twice those of the file. A network somewhat larger
than the file's is still built, so that the error message can name the tensors that differ."""


class _TooLargeError(Exception):
    """The network needs more numbers than allowed."""


class _SizeLimit(TorchFunctionMode):
    """Counts the numbers of all new tensors, and raises before the limit is exceeded."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._left = limit

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # nn.Module constructors allocate through these three; args: f((2, 3)) or f(2, 3)
        if func in (torch.empty, torch.zeros, torch.ones) and args:
            self._left -= math.prod(args if isinstance(args[0], int) else args[0])
            if self._left < 0:
                raise _TooLargeError
        return func(*args, **(kwargs or {}))


def build_within_limit(
    build: Callable[[], M], state: Mapping[str, Tensor], *, path: Path | str
) -> M:
    """Build the network of a file's config, unless it is far larger than the file's weights.

    Raises:
        UserError: the network is too large. It is not allocated.
    """
    num_in_file = sum(tensor.numel() for tensor in state.values())
    try:
        with _SizeLimit(2 * num_in_file + _EXTRA_NUMBERS):
            return build()
    except _TooLargeError as error:
        raise UserError(
            f"{path}: config: expected a network with about as many parameters as the file "
            f"({num_in_file}), got a far larger one"
        ) from error
