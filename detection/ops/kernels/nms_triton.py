"""Non-maximum suppression of a batch in one Triton kernel, without waiting for the device.

B images, P boxes per image. The arithmetic is that of `nms_keep` on the CPU.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 64
OPTIONS = {"num_warps": 8, "enable_fp_fusion": False}
"""Launch options. No fused multiply-add, because it rounds differently from the CPU."""


def keep_on_device(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor,
    valid: Tensor,
    *,
    iou_thresh: float,
    max_kept: int,
) -> Tensor:
    """Implement `nms_keep` for float32 boxes on a CUDA device and max_kept in 0..P."""
    assert boxes.dtype == torch.float32, f"expected float32 boxes, got {boxes.dtype}"
    keep = torch.zeros_like(valid)
    batch, count = valid.shape
    if batch == 0 or count == 0 or max_kept == 0:
        return keep
    # The stable sort keeps boxes of equal score in the order of their indices; invalid ones last.
    order = scores.masked_fill(~valid, -torch.inf).sort(descending=True, stable=True).indices
    columns = [*boxes.unbind(2), groups.float(), valid.float()]
    # (B, 6, P): one contiguous row per column, so that neighbouring threads read neighbouring
    # addresses; every row is sorted by score.
    rows = torch.stack(columns, dim=1).gather(2, order[:, None].expand(-1, len(columns), -1))
    kept = rows.new_empty(batch, 5, max_kept)
    marks = torch.zeros_like(valid, dtype=torch.uint8)
    with torch.cuda.device_of(boxes):
        suppress[(batch,)](rows, kept, marks, count, max_kept, iou_thresh, BLOCK=_BLOCK, **OPTIONS)
    return keep.scatter_(1, order, marks.bool())  # back to the original order


@triton.jit  # type: ignore[untyped-decorator]
def suppress(
    rows: tl.tensor,
    kept: tl.tensor,
    marks: tl.tensor,
    num_boxes: tl.tensor,
    max_kept: tl.tensor,
    iou_thresh: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """Greedy suppression within one image, block by block; one program per image.

    Args:
        rows: (B, 6, P) float32: x1, y1, x2, y2, group, and 1 where valid; the best box first.
        kept: (B, 5, max_kept) float32, scratch: the survivors so far.
        marks: (B, P) uint8 zeros; 1 is written for each box that survives.
        num_boxes: P.
        max_kept: largest number of survivors per image.
        iou_thresh: a box is dropped if its IoU with a survivor of its group is above this.
        BLOCK: number of boxes, and of survivors, that are compared at a time.
    """
    image = tl.program_id(0).to(tl.int64)  # int64: the offsets below may exceed int32
    rows += image * 6 * num_boxes
    kept += image * 5 * max_kept
    marks += image * num_boxes
    lanes = tl.arange(0, BLOCK)
    start = 0
    count = 0
    while (start < num_boxes) & (count < max_kept):
        at = start + lanes
        block = _load(rows + at, num_boxes, at < num_boxes)
        alive = tl.load(rows + 5 * num_boxes + at, mask=at < num_boxes, other=0.0) > 0
        if tl.max(alive.to(tl.int32), 0) > 0:
            # Compare the block with the survivors of earlier blocks.
            for first in range(0, count, BLOCK):
                place = first + lanes
                rivals = _load(kept + place, max_kept, place < count)
                over = _overlap(rivals, block, iou_thresh) & (place < count)[:, None]
                alive = alive & (tl.max(over.to(tl.int32), 0) == 0)
            # Compare the block with itself. A box survives a round if no earlier survivor
            # suppresses it. After n rounds the first n boxes are final, so the loop ends, usually
            # after a few rounds.
            over = _overlap(block, block, iou_thresh) & (lanes[:, None] < lanes[None, :])
            survives = alive
            changed = 1
            while changed > 0:
                hit = tl.max((over & survives[:, None]).to(tl.int32), 0)
                now = alive & (hit == 0)
                changed = tl.max((now != survives).to(tl.int32), 0)
                survives = now
            # The running sum numbers the survivors; number n goes to column n of `kept`.
            place = count + tl.cumsum(survives.to(tl.int32), 0) - 1
            survives = survives & (place < max_kept)
            tl.store(marks + at, survives.to(tl.uint8), mask=survives)
            for row in tl.static_range(5):
                tl.store(kept + row * max_kept + place, block[row], mask=survives)
            count += tl.sum(survives.to(tl.int32), 0)
            tl.debug_barrier()  # other threads of this program read `kept` in the next block
        start += BLOCK


@triton.jit  # type: ignore[untyped-decorator]
def _load(pointers: tl.tensor, stride: tl.tensor, mask: tl.tensor) -> tl.tuple:
    """Return x1, y1, x2, y2 and group, each (BLOCK,), from rows `stride` elements apart."""
    return (
        tl.load(pointers, mask=mask, other=0.0),
        tl.load(pointers + stride, mask=mask, other=0.0),
        tl.load(pointers + 2 * stride, mask=mask, other=0.0),
        tl.load(pointers + 3 * stride, mask=mask, other=0.0),
        tl.load(pointers + 4 * stride, mask=mask, other=0.0),
    )


@triton.jit  # type: ignore[untyped-decorator]
def _overlap(a: tl.tuple, b: tl.tuple, iou_thresh: tl.tensor) -> tl.tensor:
    """Return (BLOCK, BLOCK): whether boxes of `a` and `b` share a group and exceed the IoU."""
    x1, y1, x2, y2, group = a
    to_x1, to_y1, to_x2, to_y2, to_group = b
    width = tl.minimum(x2[:, None], to_x2[None, :]) - tl.maximum(x1[:, None], to_x1[None, :])
    height = tl.minimum(y2[:, None], to_y2[None, :]) - tl.maximum(y1[:, None], to_y1[None, :])
    intersection = tl.maximum(width, 0.0) * tl.maximum(height, 0.0)
    areas = ((x2 - x1) * (y2 - y1))[:, None] + ((to_x2 - to_x1) * (to_y2 - to_y1))[None, :]
    iou = tl.div_rn(intersection, areas - intersection)
    return (iou > iou_thresh) & (group[:, None] == to_group[None, :])
