"""Non-maximum suppression of a whole batch.

B images, P boxes of each, N of them in order, M those that they are held against.
"""

import functools
import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

_BLOCK = 384  # boxes taken at a time
# Of those, held against how many others at a time. From 32768 pairs on torch would share the work
# among threads, whose meeting takes longer, and on busy cores a hundred times as long.
_TILE, _CHUNK = 80, 400
_EARLIER = np.triu(np.ones((_BLOCK, _BLOCK), dtype=np.bool_), 1)
# Pixels taken from the width of an overlap for each square step between groups: 0 steps change no
# bit of it, one makes it negative.
_FAR = 1e10
_ROUNDING = 1e-5  # many times what float32 loses in an area and an IoU


def nms_keep(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor,
    valid: Tensor,
    *,
    iou_thresh: float,
    max_kept: int | None = None,
) -> Tensor:
    """Mark the boxes that survive greedy suppression among their own image and group.

    The boxes that torchvision keeps, by its arithmetic. The threshold is of the boxes' type, as in
    its CUDA kernel; its CPU kernel holds a float32 IoU against a float64 threshold, so that 3 / 10
    is above 0.3. On a CUDA device the host does not wait.

    Args:
        boxes: (B, P, 4) xyxy, float32 on a CUDA device; x1 <= x2 and y1 <= y2. P may be 0.
        scores: (B, P); of equal ones the lower index goes first.
        groups: (B, P) int64, 0 to 2**24: level or class. Boxes of two groups do not meet.
        valid: (B, P) bool; the others neither survive nor suppress.
        iou_thresh: a box goes when its IoU with a surviving one is above this.
        max_kept: survivors of an image, over all its groups; the best are marked. None: all.

    Returns:
        keep (B, P) bool.
    """
    if torch.compiler.is_compiling():
        # There alone: calling an operator brings the compiler along, a second's import that
        # prediction does without.
        settings = {"iou_thresh": iou_thresh, "max_kept": max_kept}
        keep: Tensor = nms_operator(boxes, scores, groups, valid, **settings)
        return keep
    limit = boxes.shape[1] if max_kept is None else min(max_kept, boxes.shape[1])
    on_device = find_kernel(boxes.device) if boxes.is_cuda else None
    if on_device is not None:
        return on_device(boxes, scores, groups, valid, iou_thresh=iou_thresh, max_kept=limit)
    marks = torch.zeros_like(valid, device="cpu")
    for image, exists in enumerate(valid.cpu()):
        idxs = exists.nonzero()[:, 0]
        order = scores[image].cpu()[idxs].sort(descending=True, stable=True).indices
        idxs = idxs[order]
        columns = [*boxes[image].cpu()[idxs].unbind(1), groups[image].cpu()[idxs]]
        kept = _suppress(torch.stack(columns).numpy(), iou_thresh=iou_thresh, max_kept=limit)
        marks[image, idxs[kept]] = True
    return marks.to(valid.device)


nms_operator = torch.library.custom_op("resdet::nms_keep", nms_keep, mutates_args=())
"""`nms_keep` as a compiled graph calls it, without looking inside."""
nms_operator.register_fake(lambda boxes, scores, groups, valid, **_: torch.empty_like(valid))


@functools.cache
def find_kernel(device: torch.device) -> Callable[..., Tensor] | None:
    """Return `keep_on_device`, or None and a warning where Triton cannot make it for `device`.

    Triton asks for a C compiler and Python's headers, which not every machine has.

    Raises:
        torch.OutOfMemoryError: the device is full.
    """
    try:
        # at the first use: it takes most of a second, and a CPU has no use for it
        from detection.ops.kernels.nms_triton import keep_on_device

        box, one = torch.ones(1, 1, 4, device=device), torch.ones(1, 1, device=device)
        keep_on_device(box, one, one.long(), one.bool(), iou_thresh=0.5, max_kept=1)
    except torch.OutOfMemoryError:  # says nothing of Triton
        raise
    except Exception as error:  # it asserts, and its own errors derive from this alone
        warnings.warn(
            f"NMS on the host, for which {device} has to wait: no Triton kernel ({error!r})",
            stacklevel=2,
        )
        return None
    return keep_on_device


@torch.inference_mode()  # thousands of small operations, each of which autograd would look at
def _suppress(rows: np.ndarray, *, iou_thresh: float, max_kept: int) -> np.ndarray:
    """Return the places (K,) of the boxes that survive, in order, no more than `max_kept`.

    Greedy in blocks: a block is held against what is kept already, then against itself, and nothing
    is looked at once enough is kept. Boxes whose areas are too far apart for the threshold are not
    compared. 12000 proposals to 2000 take about a tenth of torchvision's time.

    Args:
        rows: (5, N): x1, y1, x2, y2, group, the best box first; N may be 0.
        iou_thresh: see `nms_keep`.
        max_kept: see `nms_keep`.
    """
    x1, y1, x2, y2, _ = rows
    rows = np.concatenate([rows, ((x2 - x1) * (y2 - y1))[None]])
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
        kept = kept.take(kept[5].argsort(kind="stable"), axis=1)
    return np.concatenate(places)[:max_kept]


def _overlaps_kept(
    block: np.ndarray, kept: np.ndarray, iou_thresh: float, scratch: Tensor
) -> np.ndarray:
    """Return which of the boxes (6, N) overlap one that is kept, (6, K) by rising area: (N,) bool.

    An IoU is at most the smaller area over the larger, so each tile of boxes of about one area
    meets a stretch of what is kept.
    """
    order = block[5].argsort()
    ordered = block.take(order, axis=1)
    firsts = np.arange(0, len(order), _TILE)
    lasts = np.minimum(firsts + _TILE, len(order)) - 1
    least = iou_thresh * (1 - _ROUNDING)
    lows = kept[5].searchsorted(ordered[5, firsts] * least)
    with np.errstate(divide="ignore", invalid="ignore"):  # a threshold of 0 sets no bound
        highs = kept[5].searchsorted(ordered[5, lasts] / least, side="right")
    tiles, rivals = torch.from_numpy(ordered), torch.from_numpy(kept)
    overlaps = np.zeros(len(order), dtype=np.bool_)
    for first, last, low, high in zip(firsts, lasts + 1, lows, highs, strict=True):
        for begin in range(low, high, _CHUNK):
            end = min(begin + _CHUNK, high)
            # a row with 0 / 0 is of a box without area, which has no IoU above 0 either
            iou = _iou(tiles[:, first:last], rivals[:, begin:end], scratch)
            overlaps[order[first:last]] |= (iou.amax(dim=1) > iou_thresh).numpy()
    return overlaps


def _overlaps_later(block: np.ndarray, iou_thresh: float, scratch: Tensor) -> np.ndarray:
    """Return which of the boxes (6, N) each overlaps that come after it: (N, N) bool."""
    boxes = torch.from_numpy(block)
    overlaps = np.zeros((boxes.shape[1], boxes.shape[1]), dtype=np.bool_)
    for first in range(0, len(overlaps), _TILE):
        rows = slice(first, first + _TILE)
        overlaps[rows, first:] = (
            _iou(boxes[:, rows], boxes[:, first:], scratch).numpy() > iou_thresh
        )
    return overlaps & _EARLIER[: len(overlaps), : len(overlaps)]


def _greedy(suppresses: np.ndarray) -> np.ndarray:
    """Return which of N boxes, the best first, survive: (N,) bool from who would suppress whom.

    All at once: each box asks those before it that survive so far. After n rounds the first n are
    right, so it ends, and mostly after a handful.
    """
    survives, before = np.ones(len(suppresses), dtype=np.bool_), None
    while before is None or not np.array_equal(survives, before):
        before, survives = survives, ~np.any(suppresses[survives], axis=0)
    return survives


def _iou(rows: Tensor, columns: Tensor, scratch: Tensor) -> Tensor:
    """Return the IoU (N, M) of boxes (6, N) and (6, M), where it is above 0.

    Else something up to 0, or NaN where neither box has an area. Nothing is allocated: with
    `box_iou` the whole takes twice as long.

    Args:
        rows: x1, y1, x2, y2, group, area.
        columns: the same.
        scratch: (3, at least N * M), written over; the result lies in it.
    """
    shape = (3, rows.shape[1], columns.shape[1])
    width, height, other = scratch[:, : shape[1] * shape[2]].view(shape)
    x1, y1, x2, y2, group, area = rows[..., None]
    to_x1, to_y1, to_x2, to_y2, to_group, to_area = columns
    torch.minimum(x2, to_x2, out=width).sub_(torch.maximum(x1, to_x1, out=other))
    torch.minimum(y2, to_y2, out=height).sub_(torch.maximum(y1, to_y1, out=other))
    steps = torch.sub(group, to_group, out=other)
    width.addcmul_(steps, steps, value=-_FAR)
    intersection = width.mul_(height.clamp_(min=0))
    union = torch.add(area, to_area, out=height).sub_(intersection)
    iou: Tensor = intersection.div_(union)
    return iou
