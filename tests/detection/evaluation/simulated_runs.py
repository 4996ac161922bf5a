"""Runs drawn from a known population of images, as tables of matches."""

from collections.abc import Sequence

import numpy as np

from detection.evaluation.matching import IOU_THRESHOLDS, MatchTable
from detection.evaluation.overlaps import Pairs


def simulate(
    seed: int, num_images: int, *, skill: float = 1.0, rates: Sequence[float] = (1.5, 0.4)
) -> MatchTable:
    """Draw images, their objects and detections; `rates` are objects per image of each class.

    Images differ in difficulty, so that what is in one image is not independent. An object is found
    in most cases, with an IoU and a score that depend on each other; other detections are wrong.
    """
    rng = np.random.default_rng(seed)
    ease = rng.normal(0, 0.8, num_images)
    counts = rng.poisson(rates, (num_images, len(rates)))
    gt_image, gt_label = (
        np.repeat(each.ravel(), counts.ravel()) for each in np.indices(counts.shape)
    )
    quality = skill + ease[gt_image] + rng.normal(0, 1, len(gt_image))
    is_found = quality > -0.5
    wrong = rng.poisson(0.4 * sum(rates) * np.exp(-0.4 * ease))
    wrong_image = np.repeat(np.arange(num_images), wrong)
    wrong_quality = rng.normal(-0.6, 1, len(wrong_image))
    objects = np.concatenate([np.flatnonzero(is_found), np.full(len(wrong_image), -1)])
    images = np.concatenate([gt_image[is_found], wrong_image])
    labels = np.concatenate([gt_label[is_found], rng.integers(len(rates), size=len(wrong_image))])
    scores = np.concatenate([quality[is_found], wrong_quality]) + rng.normal(0, 0.5, len(images))
    ious = np.concatenate([1 - 0.5 / (1 + np.exp(quality[is_found])), np.zeros(len(wrong_image))])
    ious -= rng.exponential(0.05, len(images))
    order = np.lexsort((images, -scores, labels))
    objects, images, labels, ious = objects[order], images[order], labels[order], ious[order]
    matched = np.where(ious >= IOU_THRESHOLDS[:, None], objects, -1)
    nothing = np.zeros(len(objects))
    return MatchTable(
        iou_type="bbox",
        image_ids=np.arange(num_images),
        category_ids=np.arange(len(rates)),
        names=tuple(f"class {label}" for label in range(len(rates))),
        det_image=images,
        det_label=labels,
        det_score=scores[order],
        det_box=np.zeros((len(objects), 4)),
        det_area=nothing,
        det_row=order,
        gt_image=gt_image,
        gt_label=gt_label,
        gt_box=np.zeros((len(gt_image), 4)),
        gt_area=np.zeros(len(gt_image)),
        gt_crowd=np.zeros(len(gt_image), np.bool_),
        gt_ignored=np.zeros(len(gt_image), np.bool_),
        gt_ids=np.arange(len(gt_image)),
        gt_row=np.arange(len(gt_image)),
        iou_thresholds=IOU_THRESHOLDS,
        matched=matched,
        det_ignored=np.zeros(matched.shape, np.bool_),
        best_iou_same=nothing,
        best_iou_any=nothing,
        best_any_gt=objects,
        pairs=Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), nothing[:0]),
    )
