r"""Text drawn on images, in any script: with OpenCV 5, or with Pillow if OpenCV is older.

OpenCV 5 has fonts for Latin, Greek, Cyrillic, Hebrew, Arabic, Chinese, Japanese and Korean.
Pillow uses DejaVu Sans if the system has it, else its own font, which has only ASCII. A
character without a glyph is drawn as its escape sequence, such as \u0e41.
"""

import re
import unicodedata
from functools import lru_cache

import cv2
import numpy as np

Color = tuple[int, int, int]

# runs of letters that are written right to left, with the spaces between them
_FROM_RIGHT = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]+(?: +[\u0590-\u08ff]+)*")
_DESCENT = 0.35  # share of the height, below the baseline for letters such as g


def render_with_opencv(text: str, height: int) -> np.ndarray:
    """Return the coverage of each pixel by the text, (H, W) uint8; needs OpenCV 5."""
    face = cv2.FontFace("sans")
    _, _, width, _ = cv2.getTextSize((1, 1), text, (0, 0), face, height)
    line = np.zeros((round(height * (1 + _DESCENT)), max(1, width + 1)), np.uint8)
    cv2.putText(line, text, (0, height), (255,), face, height)
    return line


def render_with_pillow(text: str, height: int) -> np.ndarray:
    """Return the same as `render_with_opencv`, drawn by Pillow."""
    from PIL import Image, ImageDraw, ImageFont  # comes with torchvision

    # Basic layout draws left to right; `drawable_text` has already reversed right-to-left text.
    basic = ImageFont.Layout.BASIC
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont
    try:
        font = ImageFont.truetype("DejaVuSans.ttf", height, layout_engine=basic)
    except OSError:
        font = ImageFont.load_default(height)
    width = max(1, round(font.getlength(text)) + 1)
    line = Image.new("L", (width, round(height * (1 + _DESCENT))))
    ImageDraw.Draw(line).text((0, height), text, fill=255, font=font, anchor="ls")
    return np.asarray(line)


_render = render_with_opencv if hasattr(cv2, "FontFace") else render_with_pillow


def render_text(text: str, height: int) -> np.ndarray:
    """Return the coverage of each pixel by a line of text, (H, W) uint8, 255 for fully covered.

    Args:
        text: any text; characters that cannot be drawn become escape sequences.
        height: from the baseline to the top of the line, in pixels.
    """
    return _render(drawable_text(text), height)


def paste_text(canvas: np.ndarray, line: np.ndarray, corner: tuple[int, int], color: Color) -> None:
    """Draw a line of `render_text` on an image in place, clipped at the image's edges.

    Args:
        canvas: (H, W, 3) uint8; changed in place.
        line: from `render_text`.
        corner: (left, top) of the line, in pixels; may be negative.
        color: of the text, in the canvas's channel order.
    """
    left, top = corner
    height, width = canvas.shape[:2]
    shown = line[max(0, -top) : max(0, height - top), max(0, -left) : max(0, width - left)]
    if not shown.size:
        return
    left, top = max(0, left), max(0, top)
    region = canvas[top : top + shown.shape[0], left : left + shown.shape[1]]
    opacity = shown[..., None] / 255.0
    region[:] = np.round(region * (1 - opacity) + np.array(color) * opacity).astype(np.uint8)


def drawable_text(text: str) -> str:
    """Return the text in left-to-right drawing order, with escapes for missing glyphs."""
    # Lone surrogates (from bytes that are not UTF-8) would crash OpenCV. They are not printable,
    # so `_has_glyph` is false for them and they become escapes.
    whole = unicodedata.normalize("NFC", text) if text.isprintable() else text
    line = "".join(each if _has_glyph(each) else _escaped(each) for each in whole)
    return _FROM_RIGHT.sub(lambda match: match[0][::-1], line)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


@lru_cache(maxsize=4096)
def _has_glyph(character: str) -> bool:
    """Return whether the font draws the character, other than with its missing-glyph symbol."""
    if character.isascii() or not character.isprintable():
        return character.isprintable()
    drawn = _render(character, 24)
    missing = (_render(other, 24) for other in ("?", "\ue000"))
    return bool(drawn.any()) and not any(np.array_equal(drawn, other) for other in missing)
