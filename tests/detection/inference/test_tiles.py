from collections.abc import Sequence

import numpy as np
import pytest
import torch

from detection.inference.tiles import VOTE_IOU_THRESH, Tile, _vote, join_tiles, tile_grid
from detection.ops.rle import encode_window
from detection.ops.voting import vote_boxes
from detection.structures import Detections, RunLengthMasks
from tests.detection.ops.test_voting import LargestTensor

SIZE = (100, 180)
LEFT, RIGHT = Tile(0, 0, 100, 100), Tile(0, 80, 100, 100)  # 20 pixels overlap
Row = tuple[float, float, float, float, float, int]
"""A box in the pixels of the image, its score and its label."""


def detections(tile: Tile, rows: Sequence[Row], *, masks: bool = False) -> Detections:
    """Return the detections of a tile; a mask fills its box."""
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    boxes = table[:, :4] - torch.tensor([tile.left, tile.top] * 2)
    size = (tile.height, tile.width)
    codes = [
        encode_window(np.ones((y2 - y1, x2 - x1), np.bool_), top=y1, left=x1, size=size)
        for x1, y1, x2, y2 in boxes.int().tolist()
    ]
    return Detections(
        boxes,
        table[:, 4],
        table[:, 5].long(),
        RunLengthMasks(size, tuple(codes)) if masks else None,
    )


def joined(*parts: tuple[Tile, Sequence[Row]], whole: Sequence[Row] = ()) -> list[Row]:
    """Return the rows that are left of those of tiles and of the whole image; scores rounded."""
    views = [(Tile(0, 0, *SIZE), whole), *parts]
    tiles, found = zip(*((tile, detections(tile, rows)) for tile, rows in views), strict=True)
    result = join_tiles(found, tiles, SIZE, nms_thresh=0.5)
    rows = zip(result.boxes.tolist(), result.scores.tolist(), result.labels.tolist(), strict=True)
    return [(*box, round(score, 2), label) for box, score, label in rows]


@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.5, 0.99])
@pytest.mark.parametrize("tile", [(32, 32), (40, 64), (100, 50), (99, 179), (500, 33)], ids=str)
def test_tiles_cover_the_image_and_overlap(tile: tuple[int, int], overlap: float) -> None:
    tiles = tile_grid(SIZE, tile, overlap=overlap)
    covered = np.zeros(SIZE, np.bool_)
    height, width = (min(side, length) for side, length in zip(tile, SIZE, strict=True))
    for top, left, *sides in tiles:
        assert sides == [height, width]
        assert 0 <= top <= SIZE[0] - height
        assert 0 <= left <= SIZE[1] - width
        covered[top : top + height, left : left + width] = True
    assert covered.all()
    for starts, side in (({t.top for t in tiles}, height), ({t.left for t in tiles}, width)):
        shared = side - np.diff(sorted(starts))
        assert (shared >= min(overlap * side, side - 1)).all()
    assert len(set(tiles)) == len(tiles)


def test_tiles_are_as_few_as_possible() -> None:
    assert tile_grid((100, 180), (100, 200), overlap=0.9) == [(0, 0, 100, 180)]
    assert tile_grid((100, 180), (50, 60), overlap=0) == [
        (top, left, 50, 60) for top in (0, 50) for left in (0, 60, 120)
    ]
    assert tile_grid((100, 180), (100, 100), overlap=0.2) == [LEFT, RIGHT]
    # 160 pixels of two steps of 80, spread over three steps of 54, 53 and 53
    assert [tile.left for tile in tile_grid((9, 240), (9, 80), overlap=0.25)] == [0, 53, 107, 160]


def test_an_object_in_the_overlap_is_found_once() -> None:
    first, second = (82, 10, 98, 20, 0.7, 1), (82, 14, 98, 20, 0.8, 1)
    assert joined((LEFT, [first]), (RIGHT, [second])) == [second]
    assert joined((LEFT, [second]), (RIGHT, [first])) == [second]
    other = (*first[:5], 2)
    assert joined((LEFT, [other]), (RIGHT, [second])) == [second, other]


def test_cut_objects_give_way_to_the_tile_that_sees_them_whole() -> None:
    whole = (90, 10, 130, 20, 0.5, 1)
    assert joined((LEFT, [(90, 10, 100, 20, 0.9, 1)]), (RIGHT, [whole])) == [whole]
    # even if that tile finds nothing: it sees more of the object
    assert joined((LEFT, [(90, 10, 99.5, 20, 0.9, 1)]), (RIGHT, [])) == []
    # at the border of the image nothing is cut
    edge = (150, 0, 180, 20, 0.5, 1)
    assert joined((LEFT, [(0, 0, 9, 100, 0.9, 1)]), (RIGHT, [edge])) == [
        (0, 0, 9, 100, 0.9, 1),
        edge,
    ]


def test_objects_larger_than_a_tile_are_the_whole_images() -> None:
    left, right = (20, 10, 100, 50, 0.9, 1), (80, 10, 150, 50, 0.8, 1)
    large = (20, 10, 150, 50, 0.9, 1)
    assert joined((LEFT, [left]), (RIGHT, [right]), whole=[large]) == [large]
    other, unsure = (*large[:5], 2), (*large[:4], 0.1, 1)
    assert joined((LEFT, [left]), (RIGHT, [right]), whole=[other]) == [other, left, right]
    assert joined((LEFT, [left]), (RIGHT, [right]), whole=[unsure]) == [left, right]
    # of a part of which less than half is inside, and one that no border cuts
    apart, inside = (85, 40, 179, 70, 0.8, 1), (110, 15, 140, 45, 0.2, 1)
    found = joined((LEFT, []), (RIGHT, [apart, inside]), whole=[large])
    assert found == [large, apart, inside]
    # what a tile could hold is not the whole image's
    assert joined((LEFT, []), (RIGHT, []), whole=[(20, 10, 120, 99, 0.9, 1)]) == []


def test_detections_of_several_tiles_vote() -> None:
    first, second = (82, 10, 98, 20, 0.3, 1), (84, 10, 98, 20, 0.6, 1)
    (row,) = joined((LEFT, [first]), (RIGHT, [second]))
    assert row[0] == pytest.approx((82 * 0.3 + 84 * 0.6) / 0.9)
    assert row[1:] == second[1:]
    far = (77, 10, 98, 20, 0.3, 1)  # with an IoU of 14 / 21 it is dropped without a vote
    assert joined((LEFT, [far]), (RIGHT, [(84, 10, 98, 20, 0.6, 1)])) == [second]


@pytest.mark.parametrize("count", [0, 1, 300, 3000])
@pytest.mark.parametrize("largest", [30, 2000])
def test_votes_of_near_boxes_are_those_of_all(count: int, largest: int) -> None:
    corners = (torch.rand(count, 2) * 1000).round()
    sides = torch.rand(count, 2).pow(4) * largest
    boxes = torch.cat([corners, corners + sides], dim=1)
    boxes = torch.cat([boxes, boxes + torch.rand(count, 4), boxes[: count // 9] * 1.001])
    scores, labels = (torch.rand(len(boxes)) - 0.1).clamp(min=0), torch.randint(3, (len(boxes),))
    idxs = torch.randperm(len(boxes))[: len(boxes) // 2]
    batch = (boxes[None, idxs], labels[None, idxs], boxes[None], scores[None], labels[None])
    expected = vote_boxes(*batch, iou_thresh=VOTE_IOU_THRESH)[0]
    assert torch.equal(_vote(boxes, scores, labels, idxs), expected)
    if count > 1:
        assert not torch.equal(expected, boxes[idxs])


def test_memory_of_votes_is_that_of_the_detections() -> None:
    """Not that of their pairs, nor of sixteen with all others."""
    count = 2000
    corners = torch.rand(count, 2) * 10_000
    boxes = torch.cat([corners, corners + 9], dim=1)
    with LargestTensor() as largest:
        _vote(boxes, torch.ones(count), torch.zeros(count).long(), torch.arange(count))
    assert largest.numel == boxes.numel()


def test_no_tile_finds_anything() -> None:
    assert joined((LEFT, []), (RIGHT, [])) == []


def test_masks_come_with_their_boxes() -> None:
    tiles = (Tile(0, 0, *SIZE), LEFT, RIGHT)
    rows: list[list[Row]] = [
        [(20, 10, 150, 50, 0.3, 1)],
        [(90, 60, 100, 70, 0.9, 1), (3, 4, 9, 30, 0.8, 0)],
        [(90, 60, 130, 70, 0.7, 1)],
    ]
    found = [detections(tile, each, masks=True) for tile, each in zip(tiles, rows, strict=True)]
    result = join_tiles(found, tiles, SIZE, nms_thresh=0.5)
    assert result.scores.tolist() == pytest.approx([0.8, 0.7, 0.3])
    assert result.masks is not None
    assert result.masks.size == SIZE
    for box, mask in zip(result.boxes.int().tolist(), result.masks, strict=True):
        x1, y1, x2, y2 = box
        expected = np.zeros(SIZE, np.bool_)
        expected[y1:y2, x1:x2] = True
        np.testing.assert_array_equal(mask, expected)
