from collections.abc import Callable

import cv2
import numpy as np
import pytest

from backbones.text_rendering import (
    drawable_text,
    paste_text,
    render_text,
    render_with_opencv,
    render_with_pillow,
)

HAS_FONTS = hasattr(cv2, "FontFace")


@pytest.mark.skipif(not HAS_FONTS, reason="OpenCV 4 has no fonts")
@pytest.mark.parametrize("text", ["cat", "ñandú", "猫", "カメラ", "고양이", "кот", "γάτα", "a?"])
def test_scripts_drawn_by_opencv(text: str) -> None:
    assert drawable_text(text) == text
    assert not np.array_equal(render_text(text, 20), render_text("?" * len(text), 20))


@pytest.mark.skipif(not HAS_FONTS, reason="OpenCV 4 has no fonts")
def test_right_to_left_text_is_reversed() -> None:
    assert drawable_text("שלום cat قطة 0.5") == "םולש cat ةطق 0.5"
    assert drawable_text("שלום עולם") == "שלום עולם"[::-1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\udce4b", r"\udce4b"),
        ("a\x1b[31m\nb\x00", r"a\x1b[31m\nb\x00"),
        ("\u202eabc", r"\u202eabc"),
        ("\ue000", r"\ue000"),
        ("\U0010ffff", r"\U0010ffff"),
        ("", ""),
    ],
    ids=ascii,
)
def test_characters_that_cannot_be_drawn_become_escapes(text: str, expected: str) -> None:
    assert drawable_text(text) == expected
    assert render_text(text, 20).any() == bool(text)


@pytest.mark.parametrize("text", ["हिन्दी", "ไทย", "😀"])
def test_missing_glyphs_are_not_question_marks(text: str) -> None:
    drawn = drawable_text(text)
    assert "?" not in drawn
    assert drawn in (text, text.encode("unicode_escape").decode())


@pytest.mark.parametrize("render", [render_with_opencv, render_with_pillow])
def test_both_renderers_draw_lines_of_equal_height(
    render: Callable[[str, int], np.ndarray],
) -> None:
    if render is render_with_opencv and not HAS_FONTS:
        pytest.skip("OpenCV 4 has no fonts")
    for height in (10, 25):
        lines = [render(text, height) for text in ("", "x", "gjQ 0.92")]
        assert len({line.shape[0] for line in lines}) == 1
        assert [bool(line.any()) for line in lines] == [False, True, True]
        for line in lines[1:]:
            assert not line[:, -1].any()  # nothing is cut off
        assert lines[2].shape[1] > 3 * height


@pytest.mark.parametrize("corner", [(0, 0), (-20, -5), (30, 10), (39, 19), (99, 99), (-999, 0)])
def test_text_is_clipped_at_the_edges(corner: tuple[int, int]) -> None:
    wide = np.full((220, 440, 3), 255, np.uint8)
    line = render_text("a name", 20)
    left, top = corner[0] + 200, corner[1] + 100
    paste_text(wide, line, (left, top), (0, 0, 0))
    canvas = np.full((20, 40, 3), 255, np.uint8)
    paste_text(canvas, line, corner, (0, 0, 0))
    np.testing.assert_array_equal(canvas, wide[100:120, 200:240])
