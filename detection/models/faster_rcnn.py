"""Faster R-CNN and Mask R-CNN on a residual network: on c4 as in the paper, or on a pyramid (FPN).

B images, R RoIs per image, K classes, C channels, M cells along a mask's side. Boxes are in
network-input pixels; detections are in original pixels. The model knows neither targets nor losses;
a task calls its parts in order.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from backbones.features import Backbone
from backbones.fpn import FPN
from backbones.pixel_normalization import PixelNormalizedNetwork
from detection.config import ModelConfig
from detection.models.anchors import AnchorGenerator
from detection.models.box_head import BoxPredictor, BoxStage, next_stage_boxes
from detection.models.mask_head import MaskHead, masks_of_labels
from detection.models.proposals import make_proposals
from detection.models.rpn import RPNHead, RPNOutput
from detection.models.selection import (
    BoxPredictions,
    Selection,
    class_scores,
    decode_predictions,
    select_detections,
    to_detections,
)
from detection.ops.boxes import whole_image_boxes
from detection.ops.roi_pool import BoxesOnLevels, assign_levels, pool_rois
from detection.structures import Detections, ImageBatch, Proposals

RegionVectors = Callable[[Tensor, int], Tensor]
"""Takes boxes (B, R, 4) and a stage, and returns their features (B, R, D)."""

MASK_RESOLUTION = 14
"""Side of the map pooled for a mask from the pyramid; the mask itself has twice this side."""


class FasterRCNN(PixelNormalizedNetwork):
    """Faster R-CNN. Parts in order: `features`, `rpn`, `region_features`, `box_outputs`.

    Functions without parameters connect them: `make_proposals`, `next_stage_boxes`,
    `decode_predictions` and `select_detections`.

    Without a neck, RPN and RoI pooling work on c4, and conv5 (the backbone's layer4) runs on every
    pooled RoI (the paper's appendix A). With a feature pyramid the RPN works on p2..p6 and RoI
    pooling on p2..p5. The second and third of `box_stages` classify and move the boxes of the stage
    before (Cai and Vasconcelos 2018). A detection's score is the mean over all stages, its box is
    the last stage's.

    With `config.roi.global_context` the whole image is one more RoI, and its feature is joined to
    that of every RoI before the two output layers (appendix B).

    Args:
        backbone: the backbone, without `fc`.
        neck: the feature pyramid; None: the heads work on c4.
        anchor_generator: anchors on the levels that the RPN works on.
        rpn_head: the RPN's layers.
        box_stages: the region head's stages, at least one.
        config: how RoIs are pooled, proposals made and detections selected.
        size_divisor: multiple to which an image is padded.
        mask_head: the mask head; None: Faster R-CNN.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        neck: FPN | None,
        anchor_generator: AnchorGenerator,
        rpn_head: RPNHead,
        box_stages: Sequence[BoxStage],
        config: ModelConfig,
        size_divisor: int,
        mask_head: MaskHead | None = None,
    ) -> None:
        pixels = config.backbone
        super().__init__(pixel_mean=pixels.pixel_mean, pixel_std=pixels.pixel_std)
        self.backbone = backbone
        self.fpn = neck
        self.anchor_generator = anchor_generator
        self.rpn_head = rpn_head
        # Two attributes, not a list: state dict keys stay those of a detector with one stage.
        self.box_head = box_stages[0].box_head
        self.box_predictor = box_stages[0].box_predictor
        self.later_stages = nn.ModuleList(box_stages[1:])
        self.mask_head = mask_head
        self.num_stages = len(box_stages)
        self.config = config
        self.size_divisor = size_divisor
        self.roi_resolution = config.roi.resolution_with(config.neck.kind, config.backbone.kind)
        specs = backbone.feature_specs if neck is None else neck.feature_specs
        self.rpn_levels = ("c4",) if neck is None else ("p2", "p3", "p4", "p5", "p6")
        self.roi_levels = ("c4",) if neck is None else ("p2", "p3", "p4", "p5")
        self.roi_strides = tuple(specs[level].stride for level in self.roi_levels)
        strides = tuple(specs[level].stride for level in self.rpn_levels)
        assert anchor_generator.strides == strides, f"{anchor_generator.strides} on {strides}"

    @torch.no_grad()
    def predict(self, images: ImageBatch) -> list[Detections]:
        """Return the objects found in each image, in original pixels, on the CPU."""
        found, masks = self.select(images)
        return to_detections(found, images, masks=masks, aligned=self.config.mask.aligned)

    @torch.no_grad()
    def select(
        self, images: ImageBatch, *, all_masks: bool = False
    ) -> tuple[Selection, Tensor | None]:
        """Return the detections of each image and their masks, all on the device.

        Args:
            images: the batch.
            all_masks: compute masks for every row of the selection. Then no shape depends on what
                is detected, and the host waits for nothing. By default only as many rows get a mask
                as the image with the most detections has.

        Returns:
            the detections, and (B, d, M, M) float32 mask probabilities of their first d rows, no
            image having more; None without a mask head.
        """
        features = self.features(images)
        proposals = self.proposals(features, images)
        vectors = partial(self.region_vectors, features)
        predictions = self.box_predictions(vectors, proposals, images.sizes)
        found = select_detections(predictions, config=self.config.roi)
        return found, self.masks(features, found, all_masks=all_masks)

    def features(self, images: ImageBatch) -> dict[str, Tensor]:
        """Return the feature maps (B, C, H, W) by name: c2..c4, or p2..p6 with a neck."""
        return self.features_of(self.network_input(images))

    def features_of(self, pixels: Tensor) -> dict[str, Tensor]:
        """Return the `features` of normalised pixels (B, 3, H, W), in which padding is 0."""
        if self.fpn is None:
            return self.backbone.features(pixels, upto=4)
        pyramid: dict[str, Tensor] = self.fpn(self.backbone.features(pixels))
        return pyramid

    def rpn(self, features: Mapping[str, Tensor], images: ImageBatch) -> RPNOutput:
        """Return the objectness logit and the deltas of every anchor."""
        levels = [features[level] for level in self.rpn_levels]
        objectness_logits, deltas = self.rpn_head(levels)
        shapes = [(level.shape[2], level.shape[3]) for level in levels]  # (height, width)
        return RPNOutput(
            objectness_logits=objectness_logits,
            deltas=deltas,
            anchors=self.anchor_generator(shapes),
            anchor_valid=self.anchor_generator.valid(
                shapes, images.sizes, size_divisor=self.size_divisor
            ),
            level_sizes=tuple(h * w * self.anchor_generator.num_anchors for h, w in shapes),
        )

    def rpn_at(self, features: Mapping[str, Tensor], idxs: Tensor) -> tuple[Tensor, Tensor]:
        """Return objectness logits (B, S) and deltas (B, S, 4) of anchors `idxs` (B, S) only."""
        levels = [features[level] for level in self.rpn_levels]
        logits, deltas = self.rpn_head.at(levels, idxs)
        return logits, deltas

    def proposals(self, features: Mapping[str, Tensor], images: ImageBatch) -> Proposals:
        """Return the RPN's proposals, with the counts and thresholds for test."""
        rpn = self.rpn(features, images)
        return make_proposals(rpn, images.sizes, config=self.config.rpn, training=False)

    def region_features(
        self,
        features: Mapping[str, Tensor] | Sequence[Mapping[str, Tensor]],
        boxes: Tensor,
        *,
        scale_idxs: Tensor | None = None,
    ) -> Tensor:
        """Return the heads' input (B, R, C, h, w): pooled RoIs; without a neck, conv5 of them.

        Args:
            features: of the images; with `scale_idxs`, of the images at each of several scales.
            boxes: (B, R, 4) network-input pixels; with `scale_idxs`, those of their own scale.
            scale_idxs: (B, R) int64, the scale that each box is pooled from.
        """
        pyramids = [features] if isinstance(features, Mapping) else features
        maps = [pyramid[level] for pyramid in pyramids for level in self.roi_levels]
        placed: Tensor | BoxesOnLevels = boxes
        if scale_idxs is not None:
            count = len(self.roi_levels)
            # the maps of a scale are adjacent, by level
            levels = scale_idxs * count + assign_levels(boxes, num_levels=count)
            placed = BoxesOnLevels(boxes, levels)
        if self.fpn is None and self.config.roi.pool == "roi_align":
            # RoIAlign is linear, so it commutes with conv5's first 1x1 convolutions. They run once
            # on the maps instead of on every RoI.
            def pool(joined: Tensor, stride: int) -> Tensor:
                parts = _split_like(joined, maps)
                return self._pool(parts, placed, bin_stride=stride)

            pooled = self.backbone.pool_then_stage(_join_maps(maps), 5, pool=pool)
        else:
            pooled = self._pool(maps, placed)
            if self.fpn is None:
                pooled = self.backbone.stage(pooled, 5)
        regions: Tensor = pooled.unflatten(0, boxes.shape[:2])  # (B * R, ...) -> (B, R, ...)
        return regions

    def context_features(self, features: Mapping[str, Tensor], sizes: Tensor) -> Tensor | None:
        """Return the `region_features` (B, 1, C, h, w) of whole images of `sizes` (B, 2).

        None for a detector without global context.
        """
        if not self.config.roi.global_context:
            return None
        return self.region_features(features, whole_image_boxes(sizes))

    def box_outputs(
        self,
        regions: Tensor,
        *,
        stage: int = 0,
        context: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return class logits and deltas of one stage of the region head.

        Args:
            regions: (B, R, C, h, w), the `region_features` of some boxes.
            stage: 0 is the first.
            context: the `context_features` of the images.
            valid: (B, R) bool, the boxes that give batch norm its statistics in training; None:
                all.

        Returns:
            class logits (B, R, K+1), background last, and deltas (B, R, K, 4) relative to the
            boxes, scaled by the stage's `box_weights_of`; class-agnostic ones are (B, R, 1, 4).
        """
        vectors = self._box_vectors(regions, stage=stage, valid=valid)
        of_image = None if context is None else self._box_vectors(context, stage=stage)
        return self._output_layers(vectors, of_image, stage=stage)

    def region_vectors(
        self,
        features: Mapping[str, Tensor] | Sequence[Mapping[str, Tensor]],
        boxes: Tensor,
        stage: int,
        *,
        scale_idxs: Tensor | None = None,
    ) -> Tensor:
        """Return the last features (B, R, D) of RoIs before the output layers of a stage.

        The arguments are those of `region_features`.
        """
        regions = self.region_features(features, boxes, scale_idxs=scale_idxs)
        return self._box_vectors(regions, stage=stage)

    def box_predictions(
        self, vectors: RegionVectors, proposals: Proposals, sizes: Tensor
    ) -> BoxPredictions:
        """Return the mean scores of all stages and the boxes of the last one for proposals.

        Args:
            vectors: gives the features of boxes, as `region_vectors` does with its first argument.
            proposals: network-input pixels.
            sizes: (B, 2) height and width of the images before padding.
        """
        scores = []
        for stage in range(self.num_stages):
            of_image = None
            if self.config.roi.global_context:
                of_image = vectors(whole_image_boxes(sizes), stage)
            class_logits, deltas = self._output_layers(
                vectors(proposals.boxes, stage), of_image, stage=stage
            )
            scores.append(class_scores(class_logits))
            weights = self.config.roi.box_weights_of(stage)
            # The last stage's boxes are decoded for every class.
            if stage < self.num_stages - 1:
                boxes = next_stage_boxes(
                    class_logits, deltas, proposals.boxes, sizes, box_weights=weights
                )
                proposals = replace(proposals, boxes=boxes)
        mean = scores[0] if len(scores) == 1 else torch.stack(scores).mean(dim=0)
        return decode_predictions(mean, deltas, proposals, sizes, box_weights=weights)

    def masks(
        self, features: Mapping[str, Tensor], found: Selection, *, all_masks: bool = False
    ) -> Tensor | None:
        """Return the masks of detections, as `select` does."""
        if self.mask_head is None:
            return None
        rows = found if all_masks else found.without_empty_rows()
        logits = masks_of_labels(self.mask_logits(features, rows.boxes), rows.labels)
        return logits.float().sigmoid()

    def mask_logits(
        self,
        features: Mapping[str, Tensor],
        boxes: Tensor,
        *,
        regions: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> Tensor:
        """Return mask logits (B, R, K, M, M) of every class over `boxes` (B, R, 4).

        Without a neck, masks use the same `region_features` as the boxes. Pass them as `regions`
        if they are computed already. valid: (B, R) bool, the boxes that give batch norm its
        statistics in training; None: all.
        """
        assert self.mask_head is not None, "this detector has no mask head"
        if self.fpn is not None:
            maps = [features[level] for level in self.roi_levels]
            pooled = self._pool(maps, boxes, resolution=MASK_RESOLUTION)
        else:
            shared = self.region_features(features, boxes) if regions is None else regions
            pooled = shared.flatten(0, 1)
        rows = None if valid is None else valid.flatten()
        logits: Tensor = self.mask_head(pooled, rows).unflatten(0, boxes.shape[:2])
        return logits

    def _box_stage(self, stage: int) -> tuple[nn.Module, BoxPredictor]:
        """Return the box head and the two output layers of a stage."""
        if stage == 0:
            return self.box_head, self.box_predictor
        later = self.later_stages[stage - 1]
        assert isinstance(later, BoxStage)
        return later.box_head, later.box_predictor

    def _box_vectors(self, regions: Tensor, *, stage: int, valid: Tensor | None = None) -> Tensor:
        """Return (B, R, D) from (B, R, C, h, w); valid: see `box_outputs`."""
        head, _ = self._box_stage(stage)
        # the head takes one batch of B * R RoIs
        rows = None if valid is None else valid.flatten()
        vectors: Tensor = head(regions.flatten(0, 1), rows).unflatten(0, regions.shape[:2])
        return vectors

    def _output_layers(
        self, vectors: Tensor, of_image: Tensor | None, *, stage: int
    ) -> tuple[Tensor, Tensor]:
        """Return logits (B, R, K+1) and deltas (B, R, K, 4) from (B, R, D) and (B, 1, D)."""
        if of_image is not None:
            vectors = torch.cat([vectors, of_image.expand_as(vectors)], dim=2)
        _, predictor = self._box_stage(stage)
        class_logits, deltas = predictor(vectors.flatten(0, 1))
        shape = vectors.shape[:2]
        return class_logits.unflatten(0, shape), deltas.unflatten(0, shape)

    def _pool(
        self,
        maps: Sequence[Tensor],
        boxes: Tensor | BoxesOnLevels,
        *,
        resolution: int | None = None,
        bin_stride: int = 1,
    ) -> Tensor:
        config = self.config.roi
        return pool_rois(
            maps,
            self.roi_strides * (len(maps) // len(self.roi_strides)),
            boxes,
            kind=config.pool,
            resolution=self.roi_resolution if resolution is None else resolution,
            sampling_ratio=config.sampling_ratio,
            aligned=config.aligned,
            bin_stride=bin_stride,
        )

    def network_input(self, images: ImageBatch) -> Tensor:
        """Return normalised float pixels (B, 3, H, W); padding is 0, as in a padded convolution."""
        height, width = images.pixels.shape[2:]
        sizes = images.sizes[:, :, None, None]  # (B, 2, 1, 1)
        rows = torch.arange(height, device=sizes.device)[:, None] < sizes[:, :1]  # (B, 1, H, 1)
        columns = torch.arange(width, device=sizes.device) < sizes[:, 1:]  # (B, 1, 1, W)
        pixels = self.normalize(images.pixels)
        # Set to 0 after normalisation, which turns black into a negative number. Not by
        # masked_fill, which would lose the memory layout of `pixels`.
        return torch.where(rows & columns, pixels, 0.0)


def _join_maps(maps: Sequence[Tensor]) -> Tensor:
    """Return maps (B, C, H_i, W_i) as one for 1x1 convolutions: (B, C, 1, sum of H_i W_i)."""
    if len(maps) == 1:
        return maps[0]
    return torch.cat([each.flatten(2) for each in maps], dim=2)[:, :, None]


def _split_like(joined: Tensor, maps: Sequence[Tensor]) -> list[Tensor]:
    """Return the maps (B, C', H_i, W_i) of the result of a 1x1 convolution on joined maps."""
    if len(maps) == 1:
        return [joined]
    parts = joined.split([each.shape[2] * each.shape[3] for each in maps], dim=3)
    return [
        part.squeeze(2).unflatten(2, each.shape[2:]) for part, each in zip(parts, maps, strict=True)
    ]
