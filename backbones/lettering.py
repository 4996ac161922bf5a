r"""Text on images, in any script: by OpenCV 5, or by Pillow beside an older OpenCV.

OpenCV 5 brings fonts for Latin, Greek, Cyrillic, Hebrew, Arabic, Chinese, Japanese and Korean.
Pillow takes DejaVu Sans where the system has it, else its own font, which is ASCII alone. A
character without a glyph is drawn as its escape, such as \u0e41.
"""

import re
import unicodedata
from functools import lru_cache

import cv2
import numpy as np

Color = tuple[int, int, int]

# letters written from the right, with what stands between them
_FROM_RIGHT = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]+(?: +[\u0590-\u08ff]+)*")
_BELOW = 0.35  # of the height, for what hangs below the line


def by_opencv(text: str, height: int) -> np.ndarray:
    """Return how far each pixel of a line is covered, (H, W) uint8; needs OpenCV 5."""
    face = cv2.FontFace("sans")
    _, _, width, _ = cv2.getTextSize((1, 1), text, (0, 0), face, height)
    line = np.zeros((round(height * (1 + _BELOW)), max(1, width + 1)), np.uint8)
    cv2.putText(line, text, (0, height), (255,), face, height)
    return line


def by_pillow(text: str, height: int) -> np.ndarray:
    """Return what `by_opencv` does."""
    from PIL import Image, ImageDraw, ImageFont  # comes with torchvision

    basic = ImageFont.Layout.BASIC  # `drawable` has turned around what is written from the right
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont
    try:
        font = ImageFont.truetype("DejaVuSans.ttf", height, layout_engine=basic)
    except OSError:
        font = ImageFont.load_default(height)
    width = max(1, round(font.getlength(text)) + 1)
    line = Image.new("L", (width, round(height * (1 + _BELOW))))
    ImageDraw.Draw(line).text((0, height), text, fill=255, font=font, anchor="ls")
    return np.asarray(line)


_render = by_opencv if hasattr(cv2, "FontFace") else by_pillow


def lettering(text: str, height: int) -> np.ndarray:
    """Return how far each pixel of a line of text is covered, (H, W) uint8.

    Args:
        text: any; what cannot be drawn becomes an escape.
        height: pixels of a capital letter with the room above it.
    """
    return _render(drawable(text), height)


def write(canvas: np.ndarray, line: np.ndarray, corner: tuple[int, int], color: Color) -> None:
    """Write `lettering` on an image in place, from the corner (left, top) on; cut at its edges."""
    left, top = corner
    height, width = canvas.shape[:2]
    shown = line[max(0, -top) : max(0, height - top), max(0, -left) : max(0, width - left)]
    if not shown.size:
        return
    left, top = max(0, left), max(0, top)
    part = canvas[top : top + shown.shape[0], left : left + shown.shape[1]]
    opacity = shown[..., None] / 255.0
    part[:] = np.round(part * (1 - opacity) + np.array(color) * opacity).astype(np.uint8)


def drawable(text: str) -> str:
    """Return the text as it can be drawn from left to right, by characters that have a glyph."""
    # half of a character, as bytes of another encoding become, would crash OpenCV
    whole = unicodedata.normalize("NFC", text) if text.isprintable() else text
    line = "".join(each if _has_glyph(each) else _escaped(each) for each in whole)
    return _FROM_RIGHT.sub(lambda match: match[0][::-1], line)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


@lru_cache(maxsize=4096)
def _has_glyph(character: str) -> bool:
    """Return whether there is an image of a character, other than the one of what is missing."""
    if character.isascii() or not character.isprintable():
        return character.isprintable()
    drawn = _render(character, 24)
    missing = (_render(other, 24) for other in ("?", "\ue000"))
    return bool(drawn.any()) and not any(np.array_equal(drawn, other) for other in missing)
