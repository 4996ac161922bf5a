"""Galleries: windows, the share of bytes, images that cannot be shown."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest

from detection.report.cards import spread
from detection.report.gallery import Card, Gallery, Images, Shape, draw_galleries, window_around
from engine.errors import UserError


def silent(items: Iterable[int], total: int) -> Iterator[int]:
    yield from items


@pytest.mark.parametrize(
    ("box", "size"),
    [
        ((10, 10, 20, 20), (100, 200)),
        ((0, 0, 200, 100), (100, 200)),
        ((-50, -50, -10, -10), (100, 200)),
        ((190, 95, 400, 300), (100, 200)),
        ((5, 5, 5, 5), (1, 1)),
        ((10, 10, 500, 20), (0, 0)),
    ],
)
def test_window_is_inside_the_image_and_not_empty(box: Any, size: Any) -> None:
    x1, y1, x2, y2 = window_around(box, size)
    assert x2 > x1
    assert y2 > y1
    if any(size):
        assert 0 <= x1 < x2 <= size[1]
        assert 0 <= y1 < y2 <= size[0]


def card(image: int, label: int = 0) -> Card:
    shape = Shape((1, 1, 5, 5), "<b>")
    return Card(image, (0, 0, 20, 20), [shape], [shape], "t", ("x",), frozenset((label,)))


def test_images_share_the_bytes_and_the_rest_is_counted() -> None:
    read: list[int] = []

    def load(image: int) -> np.ndarray:
        read.append(image)
        if image == 2:
            raise UserError("2.jpg: cannot be decoded")
        return np.full((30, 40, 3), image, np.uint8)

    images = Images(load, np.full((4, 2), 0), bytes_left=2500)
    galleries = [Gallery("a", [card(0), card(1), card(2)]), Gallery("b", [card(1), card(3)])]
    drawn = draw_galleries(galleries, images, class_names=["<i>"], progress=silent)
    assert sorted(read) == [0, 1, 2, 3]  # each once
    shown = sum(text.count("data:image/jpeg") for text in drawn.values())
    assert 0 < shown < 4
    assert images.left_out == 4 - shown
    assert images.problems == {2: "2.jpg: cannot be decoded"}
    assert "2.jpg" in images.note()
    assert all("<b>" not in text.replace("<b>t</b>", "") for text in drawn.values())


def test_without_images_boxes_are_drawn_alone() -> None:
    images = Images(None, np.zeros((1, 2), np.int64))
    drawn = draw_galleries([Gallery("a", [card(0)])], images, class_names=["c"], progress=silent)
    assert drawn["a"].count("<rect") == 2
    assert "No images were given" in images.note()


def test_texts_stay_inside_the_view() -> None:
    image = (0, 0, 100, 100)
    boxes = [(5, 5, 20, 20), (90, 5, 99, 20), (95, 50, 99, 60)]
    shapes = [Shape(box, "a triangle"[: 10 - 2 * place]) for place, box in enumerate(boxes)]
    card = Card(0, image, shapes, [], "t", (), frozenset((0,)))
    images = Images(None, np.full((1, 2), 100))
    drawn = draw_galleries([Gallery("a", [card])], images, class_names=["c"], progress=silent)["a"]
    x1, _, width, _ = map(float, drawn.split('viewBox="')[1].split('"')[0].split())
    found = re.findall(r'<text x="([\d.]+)".*?font-size:([\d.]+)px.*?>([^<]+)</text>', drawn)
    assert len(found) == 3
    for x, font, text in found:
        assert x1 <= float(x) <= x1 + width - 0.55 * float(font) * len(text)


def test_spread_gives_every_class_a_place_and_keeps_the_best() -> None:
    labels = np.array([0] * 20 + [1] * 20 + [2])
    chosen = spread(np.arange(41), labels, 8)
    assert chosen == sorted(chosen)
    assert chosen[:2] == [0, 1]
    assert set(labels[chosen].tolist()) == {0, 1, 2}
    assert spread(np.arange(3), labels, 8) == [0, 1, 2]
    assert spread(np.zeros(0, np.int64), labels, 8) == []


def test_texts_of_equal_boxes_do_not_hide_each_other() -> None:
    shapes = [Shape((4, 4, 16, 16), "one"), Shape((4, 4, 16, 16), "two", focus=True)]
    both = Card(0, (0, 0, 20, 20), shapes, [], "t", (), frozenset((0,)))
    images = Images(None, np.full((1, 2), 0))
    drawn = draw_galleries([Gallery("a", [both])], images, class_names=["c"], progress=silent)
    pattern = r'<text x="([\d.]+)" y="([\d.]+)" style="font-size:([\d.]+)px[^>]*>(\w+)<'
    found = {
        name: [float(n) for n in numbers] for *numbers, name in re.findall(pattern, drawn["a"])
    }
    (_, top, font), (_, focus_top, _) = found["one"], found["two"]
    assert abs(top - focus_top) >= font
    assert focus_top == pytest.approx(4 + font, abs=0.1)  # the focus has the best place


def test_empty_boxes_of_an_image_of_unknown_size_are_drawn() -> None:
    shape = Shape((0, 0, 0, 0), "a point")
    point = Card(0, None, [shape], [shape], "t", (), frozenset((0,)))
    images = Images(None, np.zeros((1, 2), int))
    drawn = draw_galleries([Gallery("a", [point])], images, class_names=["c"], progress=silent)
    assert 'viewBox="0.0 0.0 1.0 1.0"' in drawn["a"]
