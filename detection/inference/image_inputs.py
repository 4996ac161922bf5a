"""Images as users give them: paths, arrays, tensors and Pillow images, read as RGB arrays."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import numpy as np
import torch
from torch import Tensor

from backbones.images import BadImageError, read_image
from engine.errors import UserError
from engine.text import shortened

if TYPE_CHECKING:
    from PIL.Image import Image

ImageInput = Union[np.ndarray, Tensor, "Image", str, Path]
"""An image for a detector: see `Detector.predict`."""

_URL = re.compile(r"(https?|ftp|s3|gs|file):/|data:image/", re.IGNORECASE)


def pixels_of(image: Any, *, place: int) -> np.ndarray:
    """Return an image as a contiguous (H, W, 3) uint8 RGB array.

    Args:
        image: as for `Detector.predict`.
        place: its index, for error messages.

    Raises:
        UserError: a file cannot be read, or the input is not a supported image.
    """
    if isinstance(image, str | Path):
        refuse_url(image)
        return read_image(image)
    pixels = image
    if isinstance(image, Tensor):
        is_dense = image.layout == torch.strided and not image.is_meta
        if image.ndim != 3 or image.shape[0] != 3 or image.dtype != torch.uint8 or not is_dense:
            kind = (tuple(image.shape), image.dtype, image.layout, image.device.type)
            got = " ".join(map(str, kind)).replace("torch.", "")
            raise UserError(
                f"image {place}: expected a (3, height, width) uint8 dense tensor, got {got}"
            )
        pixels = image.detach().cpu().permute(1, 2, 0).numpy()
    # checked by name, so that Pillow need not be imported
    elif type(image).__module__.partition(".")[0] == "PIL":
        pixels = _pixels_of_pillow(image, place)
    if not isinstance(pixels, np.ndarray):
        raise UserError(
            f"image {place}: expected a path, an array, a tensor or a Pillow image, got "
            f"{type(image).__name__}"
        )
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        got = f"{pixels.shape} {pixels.dtype}"
        raise UserError(f"image {place}: expected (height, width, 3) uint8 RGB, got {got}")
    return np.ascontiguousarray(pixels)


def refuse_url(path: str | Path) -> None:
    """Raise UserError if a path is a URL."""
    url = str(path)
    if _URL.match(url):
        if isinstance(path, Path):  # it has one slash where its text had two
            url = url.replace(":/", "://", 1)
        url = shortened(url, 100)
        raise UserError(f"{url}: expected a path; URLs are not read, download it first")


def _pixels_of_pillow(image: Any, place: int) -> np.ndarray:
    """Return a Pillow image as an (H, W, 3) RGB array, rotated and converted like a file."""
    from PIL import ImageOps

    if image.mode.startswith(("I", "F")):  # 16- and 32-bit modes; convert() would clip them
        raise UserError(f"image {place}: expected 8 bits a channel, got Pillow's mode {image.mode}")
    try:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:  # Pillow decodes the file only now
        raise BadImageError(f"image {place}: expected a whole image: {error}") from error


def check_iterable(images: Any) -> Iterable[Any]:
    """Return `images` if it is an iterable of images; raise UserError for a single image."""
    is_single = isinstance(images, str | bytes | Path) or type(images).__module__.startswith("PIL.")
    if is_single or (isinstance(images, np.ndarray | Tensor) and images.ndim < 4):
        raise UserError(
            f"images: expected a list of images, got one {type(images).__name__}; put it into [ ]"
        )
    if not isinstance(images, Iterable):
        raise UserError(f"images: expected a list of images, got {type(images).__name__}")
    return images
