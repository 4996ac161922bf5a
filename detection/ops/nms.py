"""Non-maximum suppression (NMS) of a batch, within each image and group.

B images, P boxes per image.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
import torch
from torch import Tensor

from detection.ops.kernels.nms_blocks import suppress
from engine.kernels import kernels_kind, warn_of_fallback


def nms_keep(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor,
    valid: Tensor,
    *,
    iou_thresh: float,
    max_kept: int | None = None,
) -> Tensor:
    """Return which boxes survive greedy suppression within their own image and group.

    The same boxes as torchvision's, with its arithmetic. The threshold is rounded to the boxes'
    dtype, as in torchvision's CUDA kernel. (Its CPU kernel compares a float32 IoU with a float64
    threshold, so that an IoU of 3 / 10 is above 0.3.)

    The fast implementation is `nms_blocks` on a CPU, and `nms_triton` on a CUDA device, where the
    host does not wait.

    Args:
        boxes: (B, P, 4) xyxy, float32 on a CUDA device; x1 <= x2 and y1 <= y2. P may be 0.
        scores: (B, P); of equal scores the lower index comes first.
        groups: (B, P) int64, 0 to 2**24: level or class. Boxes of different groups are not
            compared.
        valid: (B, P) bool; other boxes neither survive nor suppress.
        iou_thresh: a box is dropped if its IoU with a surviving one is above this.
        max_kept: largest number of survivors per image over all groups, by score; None: no limit.

    Returns:
        keep (B, P) bool.
    """
    if torch.compiler.is_exporting() and _IS_PUBLIC.get():
        return nms_in_one_call(boxes, scores, groups, valid, iou_thresh=iou_thresh)
    if torch.compiler.is_compiling():
        # Only while compiling: calling an operator imports the compiler, which takes a second.
        settings = {"iou_thresh": iou_thresh, "max_kept": max_kept}
        keep: Tensor = nms_operator(boxes, scores, groups, valid, **settings)
        return keep
    limit = boxes.shape[1] if max_kept is None else min(max_kept, boxes.shape[1])
    kernel = _kernel_for(boxes.device)
    return kernel(boxes, scores, groups, valid, iou_thresh=iou_thresh, max_kept=limit)


nms_operator = torch.library.custom_op("resdet::nms_keep", nms_keep, mutates_args=())
"""`nms_keep` as one operator of a compiled graph."""
nms_operator.register_fake(lambda boxes, scores, groups, valid, **_: torch.empty_like(valid))


_IS_PUBLIC = ContextVar("is_public", default=False)


@contextmanager
def public_nms() -> Iterator[None]:
    """Export programs with torchvision's NMS instead of `nms_operator`, to run elsewhere.

    `max_kept` then has no effect: whoever calls `nms_keep` takes the best of the survivors.
    """
    token = _IS_PUBLIC.set(True)
    try:
        yield
    finally:
        _IS_PUBLIC.reset(token)


def _kernel_for(device: torch.device) -> Callable[..., Tensor]:
    """Return the implementation of `nms_keep` for a device; it takes a max_kept in 0..P."""
    kernel = None
    if kernels_kind() == "fast" and device.type == "cpu":
        kernel = _keep_in_blocks
    elif kernels_kind() == "fast" and device.type == "cuda":
        kernel = find_kernel(device)
    return kernel or _keep_by_torchvision


def waits_on(device: torch.device) -> bool:
    """Return whether the host waits for `device` during `nms_keep`."""
    return _kernel_for(device) is _keep_by_torchvision


def _keep_by_torchvision(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor,
    valid: Tensor,
    *,
    iou_thresh: float,
    max_kept: int,
) -> Tensor:
    """Reference implementation: torchvision's NMS for each image and group."""
    import torchvision  # not at the top: importing it takes a second

    # rounded to the boxes' dtype, then back to the float64 that torchvision compares with on a CPU
    iou_thresh = torch.tensor(iou_thresh, dtype=boxes.dtype).item()
    keep = torch.zeros_like(valid)
    for image, exists in enumerate(valid):
        for group in groups[image, exists].unique():
            idxs = (exists & (groups[image] == group)).nonzero()[:, 0]
            kept = torchvision.ops.nms(boxes[image, idxs], scores[image, idxs], iou_thresh)
            keep[image, idxs[kept]] = True
    # Of the survivors of all groups, only the best max_kept stay.
    order = scores.masked_fill(~keep, -torch.inf).sort(descending=True, stable=True).indices
    return keep.scatter(1, order[:, max_kept:], False)


def nms_in_one_call(
    boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, *, iou_thresh: float
) -> Tensor:
    """`nms_keep` without a limit, as one call of torchvision's NMS, for exported programs.

    Boxes of different images and groups are moved apart, in float64, which leaves the IoU within a
    group as it is.
    """
    import torchvision

    images = torch.arange(boxes.shape[0], device=boxes.device)[:, None]
    places = images * (groups.max() + 1) + groups
    extent = (boxes.max() - boxes.min()).double() + 1
    apart = boxes.double() + (places * extent)[..., None]
    # Two boxes more, apart from all others, are always kept: exported programs assert that
    # torchvision's NMS keeps at least two.
    more = apart.new_tensor([[-3.0, -3.0, -2.0, -2.0], [-1.0, -1.0, 0.0, 0.0]]) + boxes.min()
    count = scores.numel()
    idxs = torch.cat([valid.flatten(), valid.new_ones(2)]).nonzero()[:, 0]
    rows = torch.cat([apart.flatten(0, 1), more])[idxs]
    ranks = torch.cat([scores.flatten().double(), more.new_zeros(2)])[idxs]
    kept = torchvision.ops.nms(rows, ranks, float(np.float32(iou_thresh)))
    keep = valid.new_zeros(count + 2).index_fill(0, idxs[kept], True)
    return keep[:count].view_as(valid)


def _keep_in_blocks(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor,
    valid: Tensor,
    *,
    iou_thresh: float,
    max_kept: int,
) -> Tensor:
    """Fast implementation on a CPU."""
    keep = torch.zeros_like(valid)
    for image, exists in enumerate(valid):
        idxs = exists.nonzero()[:, 0]
        # by falling score; stable, so of equal scores the lower index comes first
        idxs = idxs[scores[image, idxs].sort(descending=True, stable=True).indices]
        columns = [*boxes[image, idxs].unbind(1), groups[image, idxs]]
        # (5, n): x1, y1, x2, y2, group; stack promotes the integer groups to the boxes' dtype
        rows = torch.stack(columns).numpy()
        keep[image, idxs[suppress(rows, iou_thresh=iou_thresh, max_kept=max_kept)]] = True
    return keep


@functools.cache
def find_kernel(device: torch.device) -> Callable[..., Tensor] | None:
    """Return the Triton kernel of a CUDA device; None, with a warning, if it cannot be compiled.

    Triton needs a C compiler and Python's headers, which not every machine has.

    Raises:
        torch.OutOfMemoryError: the device is full.
    """
    try:
        # not at the top: importing Triton takes most of a second, and a CPU does not need it
        from detection.ops.kernels.nms_triton import keep_on_device

        # Running it on one box compiles it.
        box, one = torch.ones(1, 1, 4, device=device), torch.ones(1, 1, device=device)
        keep_on_device(box, one, one.long(), one.bool(), iou_thresh=0.5, max_kept=1)
    except torch.OutOfMemoryError:  # no fault of Triton
        raise
    except Exception as error:  # Triton also fails by assertions; its errors have no narrower base
        reason = f"and the host waits for {device}: no Triton kernel ({error!r})"
        warn_of_fallback("NMS", reason)
        return None
    return keep_on_device
