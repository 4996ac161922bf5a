"""Building a network that may take no more memory than its file has a use for."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from engine.errors import UserError

M = TypeVar("M", bound=nn.Module)

_ROOM = 200_000_000
"""Numbers beyond those of the file that a network may have: other networks than the file's are
built too, so that the message can name what differs."""


class _TooLargeError(Exception):
    """More numbers were asked for than allowed."""


class _Bound(TorchFunctionMode):
    """Counts the numbers of all new tensors, and raises before one that is too large is made."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._left = limit

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.empty, torch.zeros, torch.ones) and args:
            self._left -= math.prod(args if isinstance(args[0], int) else args[0])
            if self._left < 0:
                raise _TooLargeError
        return func(*args, **(kwargs or {}))


def build_bounded(build: Callable[[], M], state: Mapping[str, Tensor], *, path: Path | str) -> M:
    """Build the network that a file's config asks for, unless it is far larger than its weights.

    Raises:
        UserError: it is; the machine's memory is left alone.
    """
    held = sum(tensor.numel() for tensor in state.values())
    try:
        with _Bound(2 * held + _ROOM):
            return build()
    except _TooLargeError as error:
        raise UserError(
            f"{path}: config: expected a network of the file's {held} numbers, got a far larger one"
        ) from error
