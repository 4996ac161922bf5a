"""Places of texts: inside the window, and not on each other where there is room."""

import numpy as np
import pytest

from backbones.text_places import place_texts

WINDOW = (10.0, 20.0, 210.0, 120.0)


def places(
    boxes: list[list[float]], size: tuple[float, float] = (40, 10), *, inside: bool = False
) -> list[list[float]]:
    """Return the places of texts of one size, that of the last box first."""
    sizes = np.tile(np.array(size), (len(boxes), 1))
    found = place_texts(np.array(boxes).reshape(-1, 4), sizes, WINDOW, inside=inside)
    assert found.shape == (len(boxes), 2)
    return [list(each) for each in found[::-1].tolist()]


def overlap(first: list[float], second: list[float], size: tuple[float, float]) -> bool:
    return all(abs(a - b) < side for a, b, side in zip(first, second, size, strict=True))


def test_a_lone_text_lies_above_its_box_or_at_its_top() -> None:
    box = [50.0, 60.0, 100.0, 90.0]
    assert places([box]) == [[50.0, 50.0]]
    assert places([box], inside=True) == [[50.0, 60.0]]
    assert places([]) == []


@pytest.mark.parametrize("inside", [False, True])
def test_texts_of_equal_boxes_do_not_overlap(inside: bool) -> None:
    box, size = [60.0, 50.0, 150.0, 90.0], (40, 10)
    found = places([box] * 8, size, inside=inside)
    assert found[0] == places([box], size, inside=inside)[0]  # the first has its best place
    for place, first in enumerate(found):
        assert not any(overlap(first, second, size) for second in found[:place])


def test_without_a_free_place_the_least_is_covered() -> None:
    boxes, sizes = np.array([[0.0, 2.0, 40.0, 13.0]] * 2), np.array([[40.0, 10.0]] * 2)
    second, first = place_texts(boxes, sizes, (0, 0, 40, 15), inside=False).tolist()
    assert first == [0, 0]  # above the box, moved down into the window
    assert second == [0, 5]  # below it, moved up: half of the first is covered, elsewhere more


@pytest.mark.parametrize(
    "box",
    [[-50.0, -50.0, 0.0, 0.0], [0.0, 0.0, 500.0, 500.0], [300.0, 10.0, 310.0, 11.0]],
    ids=["before", "around", "behind"],
)
@pytest.mark.parametrize("inside", [False, True])
def test_texts_stay_inside_the_window(box: list[float], inside: bool) -> None:
    for left, top in places([box] * 3, inside=inside):
        assert 10 <= left <= 170
        assert 20 <= top <= 110
    assert places([box], size=(999, 999), inside=inside) == [[10.0, 20.0]]
