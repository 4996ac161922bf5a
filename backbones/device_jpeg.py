"""JPEG decoding on a device: with nvJPEG on a GPU, by the optional package torchcodec."""

from collections.abc import Sequence
from functools import cache
from importlib import import_module
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from backbones.images import BadImageError
from engine.errors import UserError


def require_decoder() -> Any:
    """Return the module `torchcodec.decoders`.

    Raises:
        UserError: torchcodec is not installed, decodes no images, or does not fit this torch.
    """
    try:
        decoders = import_module("torchcodec.decoders")
    except (ImportError, OSError, RuntimeError) as error:
        raise UserError(
            "decoding on the device: expected the package torchcodec, from 0.16 on "
            f"(pip install 'resdet[fast]'), got: {_first_line(error)}"
        ) from error
    if not hasattr(decoders, "decode_jpeg"):
        raise UserError(
            "decoding on the device: expected torchcodec from 0.16 on, got an older one"
        )
    return decoders


def decode_jpegs(
    files: Sequence[Tensor], names: Sequence[str], *, device: torch.device
) -> list[Tensor]:
    """Return the images (3, H, W) uint8 RGB on `device`, each of its own size; [] for no files.

    nvJPEG repeats the colours of subsampled images where libjpeg interpolates them.

    Args:
        files: the bytes of each file, (N,) uint8 on the CPU, for which `jpeg.is_plain` holds.
        names: of the files, for errors.
        device: where the images are decoded.

    Raises:
        UserError: see `require_decoder`; or nothing can be decoded on the device.
        BadImageError: an image cannot be decoded.
    """
    decode = require_decoder().decode_jpeg
    if not files:
        return []
    try:
        images: list[Tensor] = decode(list(files), device=device)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if reason := _failure(decode, _grey_file(), device):
            raise UserError(f"data.decode=device: decoding on {device} fails: {reason}") from error
        for file, name in zip(files, names, strict=True):  # which one was it?
            if reason := _failure(decode, file, device):
                raise BadImageError(
                    f"{name}: expected a JPEG that can be decoded on {device}, got {reason}; "
                    "data.decode=workers can skip bad images"
                ) from error
        raise
    return images


def _failure(decode: Any, file: Tensor, device: torch.device) -> str:
    """Return why a file cannot be decoded, in one line, or an empty string."""
    try:
        decode(file, device=device)
    except RuntimeError as error:
        return _first_line(error)
    return ""


@cache
def _grey_file() -> Tensor:
    """Return the bytes of a JPEG that every decoder reads."""
    _, data = cv2.imencode(".jpg", np.full((16, 16, 3), 128, np.uint8))
    return torch.from_numpy(data)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
