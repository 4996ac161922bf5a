"""RoI pooling: RoIAlign (He et al. 2017) and RoIPool (Girshick 2015), also from a pyramid.

B images, R RoIs per image, M = B * R RoIs, L pyramid levels, C channels.
Boxes are xyxy pixels of the network input; a cell of a level covers stride x stride pixels.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from detection.ops.boxes import box_area
from detection.ops.kernels.adaptive_roi_align import align_rois_adaptively
from detection.ops.kernels.roi_align import align_rois
from engine.kernels import kernels_kind

_LEAST_CHANNELS = 64
"""Channels from which `align_rois_adaptively` is faster than torchvision."""
_OUTSIDE = -8.0
"""A coordinate, in cells, whose samples are all outside the map."""


class BoxesOnLevels(NamedTuple):
    """Boxes (B, R, 4) xyxy, and the index (B, R) int64 of the tensor that each is pooled from."""

    boxes: Tensor
    levels: Tensor


def assign_levels(
    boxes: Tensor,
    *,
    num_levels: int,
    canonical_size: float = 224,
    canonical_level: int = 4,
    min_level: int = 2,
) -> Tensor:
    """Return each box's pyramid level by its size (Lin et al. 2017, feature pyramids, eq. 1).

    Args:
        boxes: (..., 4) xyxy; empty boxes get the finest level.
        num_levels: number of levels.
        canonical_size: side in pixels from which a box belongs to `canonical_level`.
        canonical_level: 4 for p4.
        min_level: 2 for p2, the finest level.

    Returns:
        (...,) int64 in 0..num_levels-1, 0 is the finest; 0 for a box with NaN.
    """
    # 1e-6: a side of exactly 224 keeps its level even if the logarithm rounds down (Detectron).
    level = canonical_level + torch.log2(box_area(boxes).sqrt() / canonical_size) + 1e-6
    # An empty box has log2(0) = -inf, which the clamp turns into the finest level.
    level = level.floor().clamp(min_level, min_level + num_levels - 1) - min_level
    return level.to(torch.int64).clamp(min=0)  # again: NaN may become any integer


def pool_rois(
    features: Sequence[Tensor],
    strides: Sequence[int],
    boxes: Tensor | BoxesOnLevels,
    *,
    kind: Literal["roi_align", "roi_pool"],
    resolution: int,
    sampling_ratio: int = 2,
    aligned: bool = True,
    bin_stride: int = 1,
) -> Tensor:
    """Pool every box from the pyramid level for its size, or from the only level.

    The fast implementations are of RoIAlign: `align_rois` for a fixed number of samples, and on a
    CPU `align_rois_adaptively` for an adaptive one.

    Args:
        features: L tensors (B, C, H_l, W_l), the finest first; p2 is the first if L > 1.
        strides: L strides in pixels.
        boxes: (B, R, 4); R may be 0. They get no gradient. A tensor is pooled from the levels of
            `assign_levels`.
        kind: roi_align averages bilinear samples, which are 0 if they are more than a cell outside
            the map; roi_pool takes the maximum over the cells of a bin.
        resolution: bins along a side.
        sampling_ratio: roi_align: samples along a bin's side; 0 takes about one for each cell.
        aligned: roi_align: cell centres are at half-integer coordinates. False is half a cell off,
            as in the training of torchvision's detectors.
        bin_stride: compute only every bin_stride-th bin along each side, starting with the first.

    Returns:
        (M, C, r, r) in the features' dtype; r is resolution / bin_stride, rounded up. NaN for a box
        that is not finite.
    """
    boxes, levels = boxes if isinstance(boxes, BoxesOnLevels) else (boxes, None)
    boxes = boxes.detach().to(torch.promote_types(features[0].dtype, torch.float32))
    if levels is None and len(features) > 1:
        levels = assign_levels(boxes, num_levels=len(features))
    elif levels is None:
        levels = boxes.new_zeros(boxes.shape[:2], dtype=torch.int64)
    is_fast_align = kernels_kind() == "fast" and kind == "roi_align"
    has_many_channels = features[0].shape[1] >= _LEAST_CHANNELS
    if is_fast_align and sampling_ratio == 0 and boxes.device.type == "cpu" and has_many_channels:
        return align_rois_adaptively(
            features,
            strides,
            boxes,
            levels,
            resolution=resolution,
            aligned=aligned,
            bin_stride=bin_stride,
        )
    if is_fast_align and sampling_ratio > 0:
        return align_rois(
            features,
            strides,
            boxes,
            levels,
            resolution=resolution,
            sampling_ratio=sampling_ratio,
            aligned=aligned,
            bin_stride=bin_stride,
        )

    from torchvision.ops import roi_align, roi_pool  # not at the top: importing it takes a second

    # For a box that is not finite, torchvision's kernels would read outside the map.
    finite = boxes.isfinite().all(dim=2, keepdim=True)
    images = torch.arange(boxes.shape[0], device=boxes.device)[:, None, None].expand_as(finite)
    size = (resolution, resolution)
    parts = []
    # Every level pools every RoI, so no shape depends on values. The RoIs of other levels get an
    # empty box far outside the map, which takes next to no time and gives zeros.
    for level, (feature, stride) in enumerate(zip(features, strides, strict=True)):
        here = finite & (levels == level)[..., None]
        # (M, 5): index of the image, then the box
        rois = torch.cat([images.to(boxes.dtype), boxes.where(here, _OUTSIDE * stride)], dim=2)
        rois, feature = rois.flatten(0, 1), _contiguous(feature).to(boxes.dtype)
        if kind == "roi_pool":
            parts.append(roi_pool(feature, rois, size, 1 / stride))
        else:
            parts.append(roi_align(feature, rois, size, 1 / stride, sampling_ratio, aligned))
    pooled = torch.where(finite.flatten()[:, None, None, None], sum(parts[1:], parts[0]), torch.nan)
    return pooled[..., ::bin_stride, ::bin_stride].to(features[0].dtype)


def _contiguous(feature: Tensor) -> Tensor:
    """Return a map (B, C, H, W) in the layout of torchvision's kernels.

    On a CPU torch transposes matrices, so single images, three times as fast as a batch in
    channels-last layout.
    """
    is_exporting = torch.compiler.is_exporting()  # the number of images is a symbol then
    if is_exporting or feature.device.type != "cpu" or feature.is_contiguous() or not len(feature):
        return feature.contiguous()
    images = [image.flatten(1).contiguous().view(image.shape) for image in feature]
    return images[0][None] if len(images) == 1 else torch.stack(images)
