"""Findings about what the configured network can see: small objects, and anchors that do not fit.

M objects, A anchor shapes. Widths and heights are in pixels of the resized image.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from detection.config import DetectionConfig
from detection.datasets.check.boxes import BoxColumns
from detection.datasets.check.columns import Columns
from detection.datasets.check.findings import FindingList
from detection.ops.boxes import xyxy_to_xywh

LEAST_SIDE = 8.0
"""Pixels; a shorter side covers a single cell of stride 8, and pooling finds no texture in it."""
MATCH_IOU = 0.5
"""IoU that an object's best anchor should have. Below `fg_iou_thresh` an object still gets its best
anchors, but few, and the box regression has far to go."""
MANY_MISSED = 0.25
"""Share of objects under `MATCH_IOU` from which other anchors are advised."""
COCO_AREAS = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, np.inf)}
"""Limits of the area of an object in COCO's metrics, in pixels of the image file."""
RATIO_QUANTILES = (1 / 6, 1 / 2, 5 / 6)
"""Where the suggested ratios lie among those of the objects: the middles of three equal groups."""


@dataclass(frozen=True)
class NetworkView:
    """What a network's config says about sizes.

    short_side, max_side: of images at evaluation. stride: of the finest level, in pixels.
    anchor_sizes, anchor_ratios: as in `model.rpn`.
    """

    short_side: int
    max_side: int
    stride: int
    anchor_sizes: Sequence[float]
    anchor_ratios: Sequence[float]

    @classmethod
    def of(cls, config: DetectionConfig) -> "NetworkView":
        """Return the view of a config."""
        return cls(
            short_side=config.data.eval_short_side,
            max_side=config.data.eval_max_side,
            stride={"c4": 16, "fpn": 4}[config.model.neck.kind],
            anchor_sizes=config.model.rpn.anchor_sizes,
            anchor_ratios=config.model.rpn.anchor_ratios,
        )


def find_unseen(
    columns: Columns, found: BoxColumns, network: NetworkView, findings: FindingList
) -> None:
    """Add objects that are small after the resize, and those that no anchor fits."""
    table = columns.annotations
    good = np.flatnonzero(found.is_good & ~table.is_crowd)
    if not len(good):
        return
    image_sizes = found.sizes[columns.image_places[good]].astype(np.float64)
    scale = np.minimum(
        network.short_side / image_sizes.min(axis=1), network.max_side / image_sizes.max(axis=1)
    )
    sides = xyxy_to_xywh(found.boxes[good])[:, 2:] * scale[:, None]
    least = max(LEAST_SIDE, float(network.stride))
    rule = f"{least:g} pixels" if least > network.stride else f"one cell of {least:g} pixels"
    shortest = sides.min(axis=1)
    small = np.flatnonzero(shortest < least)
    short = dict(zip(good[small].tolist(), shortest[small].tolist(), strict=True))
    view = f"with images of {network.short_side} to {network.max_side} pixels"
    findings.add_annotations(
        "object-small",
        good[small],
        lambda at: f"short side {short[at]:.3g} pixels",
        detail=f"{len(small) / len(good):.1%} of the objects, under {rule} {view}",
    )
    iou = best_iou(sides, network.anchor_sizes, network.anchor_ratios)
    areas = table.areas[good]
    values = []
    for name, (least_area, most_area) in COCO_AREAS.items():
        group = iou[(areas >= least_area) & (areas < most_area)]
        if len(group):
            values.append(f"{name}: {np.mean(group < MATCH_IOU):.1%} of {len(group)}")
    sizes, ratios = suggest_anchors(sides, len(network.anchor_sizes))
    better = best_iou(sides, sizes, ratios)
    share, share_then = float(np.mean(iou < MATCH_IOU)), float(np.mean(better < MATCH_IOU))
    advice = ""
    if share_then < share:
        advice = f"; {share_then:.1%} with anchor_sizes={sizes} anchor_ratios={ratios}"
    findings.add(
        "anchors-miss-many" if share >= MANY_MISSED else "anchors-miss",
        int((iou < MATCH_IOU).sum()),
        values,
        detail=f"{share:.1%} of the objects{advice}",
    )


def best_iou(sides: np.ndarray, sizes: Sequence[float], ratios: Sequence[float]) -> np.ndarray:
    """Return the IoU of each object with the best of the anchor shapes, centred on it: (M,).

    The stride is not regarded: an anchor lies at most half a stride off an object's centre.

    Args:
        sides: (M, 2) widths and heights.
        sizes: square roots of the anchors' areas.
        ratios: height over width.
    """
    best = np.zeros(len(sides))
    areas = sides[:, 0] * sides[:, 1]
    for size in sizes:
        for ratio in ratios:
            # rounded like the anchors, which are symmetric around their cell
            width, height = (2 * np.round(size * ratio**power / 2) for power in (-0.5, 0.5))
            inside = np.minimum(sides[:, 0], width) * np.minimum(sides[:, 1], height)
            np.maximum(best, inside / (areas + width * height - inside), out=best)
    return best


def suggest_anchors(sides: np.ndarray, count: int) -> tuple[list[int], list[float]]:
    """Return anchor sizes and ratios for objects of these widths and heights (M, 2), M > 0.

    The sizes are k-medians of the logarithm of the objects' sizes, so that each is a typical size
    of its share of the objects.
    """
    logs = np.sort(0.5 * np.log(sides.prod(axis=1)))
    centres = np.quantile(logs, (np.arange(count) + 0.5) / count)
    for _ in range(50):  # Lloyd's algorithm; in one dimension the groups are ranges of `logs`
        bounds = np.searchsorted(logs, (centres[1:] + centres[:-1]) / 2)
        groups = np.split(logs, bounds)
        moved = np.array(
            [np.median(each) if len(each) else at for each, at in zip(groups, centres, strict=True)]
        )
        if np.array_equal(moved, centres):
            break
        centres = moved
    sizes = [max(1, round(float(size))) for size in np.exp(centres)]
    ratios = np.exp(np.quantile(np.log(sides[:, 1] / sides[:, 0]), RATIO_QUANTILES))
    return sizes, [round(float(ratio), 2) for ratio in ratios]
