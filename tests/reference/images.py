"""Synthetic images and encoded image files for tests."""

import io
from typing import Any

import cv2
import numpy as np
from PIL import Image


def smooth_image(height: int = 48, width: int = 64) -> np.ndarray:
    """Return an image (height, width, 3) uint8, so smooth that JPEG changes it little."""
    coarse = np.random.default_rng(0).integers(256, size=(4, 5, 3), dtype=np.uint8)
    image: np.ndarray = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
    return image


def encoded(image: np.ndarray, kind: str = "JPEG", mode: str = "RGB", **options: Any) -> bytes:
    """Return the bytes of an image file; kind and options as for PIL's `save`."""
    file = io.BytesIO()
    Image.fromarray(image).convert(mode).save(file, kind, **options)
    return file.getvalue()
