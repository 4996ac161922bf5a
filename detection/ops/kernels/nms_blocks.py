"""Greedy non-maximum suppression of one image on the CPU, a block of boxes at a time.

N boxes of the image by falling score; M boxes that they are compared with.
"""

import numpy as np
import torch
from torch import Tensor

_BLOCK = 384
"""Boxes in a block."""
_TILE, _CHUNK = 80, 400
"""Boxes of a block compared at a time, and the number of other boxes. From 32768 pairs on, torch
would use several threads. Synchronising them takes longer than the work, and a hundred times as
long on busy cores."""
_EARLIER = np.triu(np.ones((_BLOCK, _BLOCK), dtype=np.bool_), 1)
"""True where the row's box comes before the column's, so has the higher score."""
_GROUP_PENALTY = 1e10
"""Factor of the squared difference of groups, which is subtracted from an overlap's width. In the
same group it changes no bit of the width; in different groups it makes the width negative."""
_ROUNDING = 1e-5
"""Relative tolerance of areas and IoU; many times the rounding error of float32."""


@torch.inference_mode()  # saves the overhead of autograd in thousands of small operations
def suppress(rows: np.ndarray, *, iou_thresh: float, max_kept: int) -> np.ndarray:
    """Return the indices (K,) of the boxes that survive, in order, at most `max_kept`.

    Each block is compared with the boxes kept so far, then with itself, until enough are kept.
    Boxes with areas too different to reach the threshold are not compared. Reducing 12000 proposals
    to 2000 takes about a tenth of torchvision's time.

    Args:
        rows: (5, N): x1, y1, x2, y2, group, the best box first; N may be 0.
        iou_thresh: see `nms_keep`.
        max_kept: see `nms_keep`.
    """
    x1, y1, x2, y2, _ = rows
    rows = np.concatenate([rows, ((x2 - x1) * (y2 - y1))[None]])  # (6, N), with the area
    # places: indices of the survivors, block by block. kept: their columns, sorted by area.
    kept, places = rows[:, :0], [np.zeros(0, dtype=np.int64)]
    scratch = torch.from_numpy(rows).new_empty(3, _TILE * _CHUNK)
    for start in range(0, rows.shape[1], _BLOCK):
        if kept.shape[1] >= max_kept:
            break
        block = rows[:, start : start + _BLOCK]
        idxs = np.flatnonzero(~_overlaps_kept(block, kept, iou_thresh, scratch))
        block = block.take(idxs, axis=1)
        survives = _greedy(_overlaps_later(block, iou_thresh, scratch))
        places.append(start + idxs[survives])
        kept = np.concatenate([kept, block.compress(survives, axis=1)], axis=1)
        # sorted by area, for the binary search in _overlaps_kept; mostly sorted already
        kept = kept.take(kept[5].argsort(kind="stable"), axis=1)
    return np.concatenate(places)[:max_kept]  # the last block may keep too many


def _overlaps_kept(
    block: np.ndarray, kept: np.ndarray, iou_thresh: float, scratch: Tensor
) -> np.ndarray:
    """Return (N,) bool: which boxes of `block` (6, N) overlap one of `kept` (6, K).

    `kept` is sorted by rising area. An IoU is at most the smaller area over the larger. So each
    tile of boxes of similar area is compared only with a range of the kept boxes.
    """
    order = block[5].argsort()
    ordered = block.take(order, axis=1)
    firsts = np.arange(0, len(order), _TILE)  # the smallest box of each tile
    lasts = np.minimum(firsts + _TILE, len(order)) - 1  # the largest
    # A kept box is compared if its area is in [smallest * least, largest / least]. The threshold is
    # lowered a little, so that rounding excludes no pair.
    least = iou_thresh * (1 - _ROUNDING)
    lows = kept[5].searchsorted(ordered[5, firsts] * least)
    with np.errstate(divide="ignore", invalid="ignore"):  # threshold 0: no upper bound
        highs = kept[5].searchsorted(ordered[5, lasts] / least, side="right")
    tiles, rivals = torch.from_numpy(ordered), torch.from_numpy(kept)
    overlaps = np.zeros(len(order), dtype=np.bool_)
    for first, last, low, high in zip(firsts, lasts + 1, lows, highs, strict=True):
        for begin in range(low, high, _CHUNK):
            end = min(begin + _CHUNK, high)
            # 0 / 0 = NaN if neither box has an area; their IoU counts as not above the threshold
            iou = _iou(tiles[:, first:last], rivals[:, begin:end], scratch)
            overlaps[order[first:last]] |= (iou.amax(dim=1) > iou_thresh).numpy()
    return overlaps


def _overlaps_later(block: np.ndarray, iou_thresh: float, scratch: Tensor) -> np.ndarray:
    """Return (N, N) bool: whether box i of `block` (6, N) overlaps box j, for j after i."""
    boxes = torch.from_numpy(block)
    overlaps = np.zeros((boxes.shape[1], boxes.shape[1]), dtype=np.bool_)
    for first in range(0, len(overlaps), _TILE):
        rows = slice(first, first + _TILE)
        # columns before `first` are below the diagonal and stay False
        overlaps[rows, first:] = (
            _iou(boxes[:, rows], boxes[:, first:], scratch).numpy() > iou_thresh
        )
    return overlaps & _EARLIER[: len(overlaps), : len(overlaps)]


def _greedy(suppresses: np.ndarray) -> np.ndarray:
    """Return (N,) bool: which boxes survive, given (N, N) bool: whether box i would suppress j.

    Every round updates all boxes at once: a box survives if no earlier survivor suppresses it.
    After n rounds the first n boxes are final. So the loop ends, usually after a few rounds.
    """
    survives, before = np.ones(len(suppresses), dtype=np.bool_), None
    while before is None or not np.array_equal(survives, before):
        before, survives = survives, ~np.any(suppresses[survives], axis=0)
    return survives


def _iou(rows: Tensor, columns: Tensor, scratch: Tensor) -> Tensor:
    """Return the IoU (N, M) of boxes (6, N) and (6, M) of the same group.

    Pairs that do not overlap, or are in different groups, get a value of at most 0; pairs without
    any area get NaN. Nothing is allocated: with `box_iou` NMS takes twice as long.

    Args:
        rows: x1, y1, x2, y2, group, area.
        columns: the same.
        scratch: (3, at least N * M), overwritten; the result is a view of it.
    """
    # Three buffers (N, M). `other` is reused at every step, `height` for the union.
    shape = (3, rows.shape[1], columns.shape[1])
    width, height, other = scratch[:, : shape[1] * shape[2]].view(shape)
    x1, y1, x2, y2, group, area = rows[..., None]  # (N, 1) each, against (M,)
    to_x1, to_y1, to_x2, to_y2, to_group, to_area = columns
    torch.minimum(x2, to_x2, out=width).sub_(torch.maximum(x1, to_x1, out=other))
    torch.minimum(y2, to_y2, out=height).sub_(torch.maximum(y1, to_y1, out=other))
    steps = torch.sub(group, to_group, out=other)
    width.addcmul_(steps, steps, value=-_GROUP_PENALTY)  # width -= penalty of different groups
    # Only the height is clamped: a negative width makes the product at most 0, which is enough.
    intersection = width.mul_(height.clamp_(min=0))
    union = torch.add(area, to_area, out=height).sub_(intersection)
    iou: Tensor = intersection.div_(union)
    return iou
