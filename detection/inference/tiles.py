"""Tiles of a large image: where to cut it, and one list of detections from those of its tiles.

T tiles, N detections of all tiles. Boxes are xyxy pixels; sizes are (height, width). The constants
were chosen on blood cells (results/tiles_bccd_cpu_2026-11-29.md).
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from detection.ops.boxes import box_iou
from detection.ops.nms import nms_keep
from detection.ops.rle import pad
from detection.ops.voting import vote_boxes
from detection.structures import Detections, RunLengthMasks

BORDER = 0.01
"""A box this near to a tile's border, as a fraction of the tile's side, may be cut by it."""
PART_THRESH = 0.5
"""Share of a cut detection's area inside an object larger than a tile from which it is a part."""
VOTE_IOU_THRESH = 0.7
"""IoU from which detections of several tiles vote on one box (`vote_boxes`)."""
_CHUNK = 256
"""Detections that the boxes near them vote on together."""


class Tile(NamedTuple):
    """A part of an image, or all of it: its first row and column, and its sides in pixels."""

    top: int
    left: int
    height: int
    width: int


def tile_grid(size: tuple[int, int], tile: tuple[int, int], *, overlap: float) -> list[Tile]:
    """Return tiles that cover an image, row by row, all of one shape and inside the image.

    Along each axis there are as few tiles as the overlap allows. They are spread evenly, so that
    neighbours share at least `overlap` of their side.

    Args:
        size: of the image.
        tile: of a tile; where the image is smaller, the image's side is taken.
        overlap: in [0, 1).
    """
    height, width = (min(side, length) for side, length in zip(tile, size, strict=True))
    tops = _starts(size[0], height, overlap)
    lefts = _starts(size[1], width, overlap)
    return [Tile(top, left, height, width) for top in tops for left in lefts]


def _starts(length: int, side: int, overlap: float) -> list[int]:
    """Return where tiles of a side begin along an axis."""
    step = max(1, math.floor(side * (1 - overlap)))
    steps = math.ceil((length - side) / step)
    return [round(index * (length - side) / max(steps, 1)) for index in range(steps + 1)]


def is_whole(boxes: Tensor, tile: Tile, size: tuple[int, int]) -> Tensor:
    """Return whether a tile holds each box clear of its inner borders, so that it cuts none: (N,).

    An inner border is one that is not the image's: there the image goes on.

    Args:
        boxes: (N, 4) in the image's pixels.
        tile: of the image.
        size: of the image.
    """
    whole = torch.ones(len(boxes), dtype=torch.bool)
    axes = ((tile.left, tile.width, size[1]), (tile.top, tile.height, size[0]))
    for axis, (start, side, length) in enumerate(axes):
        if start > 0:
            whole &= boxes[:, axis] >= start + BORDER * side
        if start + side < length:
            whole &= boxes[:, axis + 2] <= start + side - BORDER * side
    return whole


def join_tiles(
    found: Sequence[Detections],
    tiles: Sequence[Tile],
    size: tuple[int, int],
    *,
    nms_thresh: float,
) -> Detections:
    """Return the detections of an image from those of its tiles, each object once.

    1. A detection that an inner border of its tile cuts is dropped if another tile holds its box
       whole: that tile sees all of it and more.
    2. Of the whole image, only objects larger than a tile are taken: tiles show others larger. Cut
       detections of their class that lie in them, with no higher score, are dropped as their parts.
    3. NMS for each class. The boxes of the others, of several tiles, vote on those that stay. A
       mask stays as its tile has it.

    Args:
        found: of the whole image, and then of each tile, in its pixels.
        tiles: the whole image, and then tiles of one shape.
        size: of the image.
        nms_thresh: see `nms_keep`.
    """
    counts = torch.tensor([len(each) for each in found])
    owners = torch.arange(len(tiles)).repeat_interleave(counts)  # (N,), the tile of each one
    corners = torch.tensor([(tile.left, tile.top) * 2 for tile in tiles], dtype=torch.float32)
    boxes = torch.cat([each.boxes for each in found]) + corners[owners]
    scores = torch.cat([each.scores for each in found])
    labels = torch.cat([each.labels for each in found])

    # whether its own tile holds each one whole, and whether any does
    own_whole, any_whole = torch.zeros(2, len(boxes), dtype=torch.bool)
    for index, tile in enumerate(tiles[1:], start=1):
        whole = is_whole(boxes, tile, size)
        own_whole |= whole & (owners == index)
        any_whole |= whole
    of_image = owners == 0
    sides = boxes[:, 2:] - boxes[:, :2]
    larger = (sides > torch.tensor([tiles[1].width, tiles[1].height])).any(dim=1)
    keep = torch.where(of_image, larger, own_whole | ~any_whole)

    large = keep & of_image
    cut = (keep & ~of_image & ~own_whole).nonzero()[:, 0]
    # (large, cut): the share of each cut box in each large one, as of crowds
    shares = box_iou(boxes[large], boxes[cut], is_crowd=torch.ones(int(large.sum())).bool())
    is_part = (shares >= PART_THRESH) & (labels[large][:, None] == labels[cut])
    is_part &= scores[large][:, None] >= scores[cut]
    keep[cut] = ~is_part.any(dim=0)

    stays = nms_keep(boxes[None], scores[None], labels[None], keep[None], iou_thresh=nms_thresh)
    idxs = stays[0].nonzero()[:, 0]
    idxs = idxs[scores[idxs].sort(descending=True, stable=True).indices]
    voted = _vote(boxes, scores.where(keep, 0.0), labels, idxs)
    rows = torch.cat([torch.arange(count) for count in counts.tolist()])
    masks = _masks(found, tiles, size, zip(owners[idxs].tolist(), rows[idxs].tolist(), strict=True))
    return Detections(voted, scores[idxs], labels[idxs], masks)


def _vote(boxes: Tensor, scores: Tensor, labels: Tensor, idxs: Tensor) -> Tensor:
    """Return the boxes at `idxs` (D,) as `vote_boxes`, (D, 4).

    Those with neighbouring left sides are voted on together, by the boxes that reach as far as
    they do along x: any other has no overlap with them. So the cost is not that of all pairs.
    """
    voted = boxes[idxs]
    order = voted[:, 0].argsort()
    for start in range(0, len(order), _CHUNK):
        some = order[start : start + _CHUNK]
        first, end = voted[some[0], 0], voted[some, 2].max()
        near = (boxes[:, 0] < end) & (boxes[:, 2] > first) & (scores > 0)
        voted[some] = vote_boxes(
            voted[None, some],
            labels[None, idxs[some]],
            boxes[None, near],
            scores[None, near],
            labels[None, near],
            iou_thresh=VOTE_IOU_THRESH,
        )[0]
    return voted


def _masks(
    found: Sequence[Detections],
    tiles: Sequence[Tile],
    size: tuple[int, int],
    places: Iterable[tuple[int, int]],
) -> RunLengthMasks | None:
    """Return masks in the whole image, from run to run, without decoding them.

    places: of each mask, its tile and its row there.
    """
    of_tiles = [each.masks for each in found if each.masks is not None]
    if not of_tiles:
        return None
    codes = []
    for index, row in places:
        tile, masks = tiles[index], of_tiles[index]
        codes.append(pad(masks.codes[row], masks.size, top=tile.top, left=tile.left, new_size=size))
    return RunLengthMasks(size, tuple(codes))
