"""Prediction with one or more detectors, at one or more scales (ResNet paper, appendix B).

In order: views of the images, proposals, class scores and boxes, box refinement, the union of all
views, NMS, box voting, masks.

B images, R RoIs per image, K classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from detection.config import DetectionConfig
from detection.data.eval_sizes import EvalSizes
from detection.inference.mirror import mirror_images, mirror_predictions
from detection.inference.multi_scale import MultiScaleRegions, scale_factors
from detection.models.faster_rcnn import FasterRCNN, RegionVectors
from detection.models.selection import BoxPredictions, Selection, select_detections, to_detections
from detection.ops.boxes import clip_boxes
from detection.structures import Detections, ImageBatch, Proposals

VOTE_IOU_THRESH = 0.5
"""`evaluation.vote_iou_thresh` where predictions are joined (Gidaris and Komodakis 2015)."""

Features = Mapping[str, Tensor]


class View(NamedTuple):
    """Images that are predicted on by themselves.

    images: proposals are made on them, and predictions are in their pixels. scales: RoI features
    are pooled from them, by rising scale. mirrored: the images are flipped left to right.
    """

    images: ImageBatch
    scales: tuple[ImageBatch, ...]
    mirrored: bool = False


class InferencePipeline:
    """Prediction of a detector or an ensemble, with the additions that the config asks for.

    Args:
        networks: at least one; all have the same classes. Their proposals are joined, and their
            class scores and boxes on these are averaged.
        config: of the first network. Its image sizes, thresholds and `evaluation` are used.
    """

    def __init__(self, networks: Sequence[FasterRCNN], config: DetectionConfig) -> None:
        self._networks = tuple(networks)
        self._sizes = EvalSizes.of(config.data, config.evaluation)
        self._evaluation = evaluation = config.evaluation
        self._roi = config.model.roi
        several = len(evaluation.scales) > 1
        joins = evaluation.merge == "union" and (several or evaluation.mirror)
        joins |= evaluation.refine_boxes
        self._nms_thresh = evaluation.union_nms_thresh if joins else self._roi.nms_thresh
        default = VOTE_IOU_THRESH if joins else None
        chosen = evaluation.vote_iou_thresh
        self._vote_iou_thresh = default if chosen is None else chosen
        # one network at one scale, without any addition: `select` is its own
        self._is_plain = not (
            joins or several or self._vote_iou_thresh is not None or len(networks) > 1
        )

    @torch.no_grad()
    def predict(self, batches: Sequence[ImageBatch]) -> list[Detections]:
        """Return the objects found in each image, in original pixels, on the CPU.

        Args:
            batches: the same images at each of the sizes of `EvalSizes`.
        """
        found, masks = self.select(batches)
        return self.to_detections(found, masks, batches[0])

    def to_detections(
        self, found: Selection, masks: Tensor | None, images: ImageBatch
    ) -> list[Detections]:
        """Return the result of `predict` from that of `select`."""
        aligned = self._networks[0].config.mask.aligned
        return to_detections(found, images, masks=masks, aligned=aligned)

    @torch.no_grad()
    def select(
        self, batches: Sequence[ImageBatch], *, all_masks: bool = False
    ) -> tuple[Selection, Tensor | None]:
        """Return the detections and their masks on the device, as `FasterRCNN.select` does.

        Args:
            batches: as for `predict`. The detections are in the pixels of the first.
            all_masks: compute masks for every row, so that the host waits for nothing.
        """
        if self._is_plain:
            return self._networks[0].select(batches[0], all_masks=all_masks)
        expected = len(self._sizes.short_sides)
        assert len(batches) == expected, f"expected {expected} sizes of images, got {len(batches)}"
        images = batches[0]
        parts, of_images = [], None
        for view in self._views(batches):
            features = [network.features(view.images) for network in self._networks]
            parts.append(self._predict_view(view, features, images))
            of_images = features if view.images is images else of_images
        found = select_detections(
            BoxPredictions.joined(parts),
            config=self._roi,
            nms_thresh=self._nms_thresh,
            vote_iou_thresh=self._vote_iou_thresh,
        )
        return found, self._masks(found, images, of_images, all_masks=all_masks)

    def _views(self, batches: Sequence[ImageBatch]) -> list[View]:
        scales = tuple(batches[index] for index in self._sizes.scale_idxs)
        if self._evaluation.merge == "maxout":
            return [View(batches[0], scales)]
        views = [View(scale, (scale,)) for scale in scales]
        if self._evaluation.mirror:
            mirrored = [mirror_images(scale) for scale in scales]
            views += [View(scale, (scale,), mirrored=True) for scale in mirrored]
        return views

    def _predict_view(
        self, view: View, features: Sequence[Features], images: ImageBatch
    ) -> BoxPredictions:
        """Return what the networks predict on a view, in the pixels of `images`.

        features: of `view.images`, of each network.
        """
        regions = [
            _region_vectors(network, view, of_network)
            for network, of_network in zip(self._networks, features, strict=True)
        ]
        proposals = _join_proposals(
            [
                network.proposals(of_network, view.images)
                for network, of_network in zip(self._networks, features, strict=True)
            ]
        )
        predictions = self._predict_boxes(regions, proposals, view.images.sizes)
        if self._evaluation.refine_boxes:
            refined = replace(proposals, boxes=predictions.best_boxes())
            again = self._predict_boxes(regions, refined, view.images.sizes)
            predictions = BoxPredictions.joined([predictions, again])
        return _in_pixels_of(images, view, predictions)

    def _predict_boxes(
        self, regions: Sequence[RegionVectors], proposals: Proposals, sizes: Tensor
    ) -> BoxPredictions:
        """Return the mean predictions of the networks for the same proposals."""
        parts = [
            network.box_predictions(vectors, proposals, sizes)
            for network, vectors in zip(self._networks, regions, strict=True)
        ]
        return BoxPredictions.averaged(parts)

    def _masks(
        self,
        found: Selection,
        images: ImageBatch,
        features: Sequence[Features] | None,
        *,
        all_masks: bool,
    ) -> Tensor | None:
        """Return the mean masks of the networks on the final boxes, from the features of `images`.

        features: of each network; None: to be computed, because no view was of these images.
        """
        if self._networks[0].mask_head is None:
            return None
        if features is None:
            features = [network.features(images) for network in self._networks]
        masks = [
            network.masks(of_network, found, all_masks=all_masks)
            for network, of_network in zip(self._networks, features, strict=True)
        ]
        return _average_masks([each for each in masks if each is not None])


def _region_vectors(network: FasterRCNN, view: View, features: Features) -> RegionVectors:
    """Return the function that gives the features of RoIs; `features` are of `view.images`."""
    if len(view.scales) == 1:
        return partial(network.region_vectors, features)
    pyramids = [
        features if scale is view.images else network.features(scale) for scale in view.scales
    ]
    return MultiScaleRegions(network, pyramids, scale_factors(view.images, view.scales)).vectors


def _join_proposals(parts: Sequence[Proposals]) -> Proposals:
    """Return the union of the networks' proposals; scores of different networks are not ordered."""
    return Proposals(
        boxes=torch.cat([part.boxes for part in parts], dim=1),
        scores=torch.cat([part.scores for part in parts], dim=1),
        valid=torch.cat([part.valid for part in parts], dim=1),
    )


def _average_masks(parts: Sequence[Tensor]) -> Tensor:
    """Return the mean of masks (B, d, M, M) of the same boxes, in the finest of their resolutions.

    M is 28 with FPN and 14 on C4.
    """
    side = max(part.shape[-1] for part in parts)
    resized = [
        part
        if part.shape[-1] == side
        # (B * d, 1, M, M): as a batch d may be 0, as channels it may not
        else F.interpolate(part.flatten(0, 1)[:, None], (side, side), mode="bilinear")
        .squeeze(1)
        .unflatten(0, part.shape[:2])
        for part in parts
    ]
    return torch.stack(resized).mean(dim=0)


def _in_pixels_of(images: ImageBatch, view: View, predictions: BoxPredictions) -> BoxPredictions:
    """Return the predictions on a view in the pixels of `images`, the same at another scale."""
    if view.mirrored:
        predictions = mirror_predictions(predictions, view.images)
    if view.images is images:
        return predictions
    factors = scale_factors(view.images, [images])[:, :, None]  # (B, 1, 1, 4)
    boxes = predictions.boxes * factors
    return predictions._replace(boxes=clip_boxes(boxes.flatten(1, 2), images.sizes).view_as(boxes))
