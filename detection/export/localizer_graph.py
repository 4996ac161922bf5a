"""A localizer as one graph from images and classes to boxes, for export: first and second stage.

B images of H x W pixels, h x w after the resize; T requested classes per image, K classes, N
anchors.
"""

import torch
from torch import Tensor, nn

from detection.export.program import ImageSize
from detection.export.resizing import WholeResize, short_side_sizing, sides_of
from detection.localization.config import EvaluationConfig, LocalizationRegionsConfig
from detection.localization.localizer import Localizer
from detection.localization.region_classifier import RegionClassifier
from detection.localization.regions_task import locate_among
from detection.localization.views import View, candidates_of, merge_candidates, propose


class LocalizerGraph(nn.Module):
    """The first stage: resize, take the view, normalise, predict, merge.

    Args:
        network: in evaluation mode, with fixed norms folded.
        config: of the run's evaluation, with one view.
        image_size: (height, width) of all images; None: they have any size.
    """

    def __init__(
        self, network: Localizer, config: EvaluationConfig, *, image_size: ImageSize | None = None
    ) -> None:
        super().__init__()
        self.network, self._config = network, config
        self._resize = WholeResize(short_side_sizing(config.short_side), image_size=image_size)

    def forward(self, images: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Return the box (B, T, 4) xyxy, in pixels of the images, and the score (B, T) of classes.

        Args:
            images: (B, H, W, 3) uint8 RGB.
            classes: (B, T) int64 in 0..K-1.
        """
        config = self._config
        view = view_of(*self._resize(images), config)
        boxes, scores = candidates_of(self.network, view, classes, count=config.candidates)
        best, scores = merge_candidates(boxes, scores, config=config)
        height, width = (side.float() for side in sides_of(images))
        return best.clamp(0, 1) * torch.stack([width, height, width, height]), scores


class RegionsGraph(nn.Module):
    """Both stages: the first proposes regions of each class, the second refines and scores them.

    Args:
        first: the network of the first stage, in evaluation mode, with fixed norms folded.
        network: that of the second stage, as well.
        config: of the second stage's run, with one view and no mirrored regions.
        image_size: as for `LocalizerGraph`.
    """

    def __init__(
        self,
        first: Localizer,
        network: RegionClassifier,
        config: LocalizationRegionsConfig,
        *,
        image_size: ImageSize | None = None,
    ) -> None:
        super().__init__()
        self.first, self.network, self._config = first, network, config
        sizing = short_side_sizing(config.evaluation.short_side)
        self._resize = WholeResize(sizing, image_size=image_size)

    def forward(self, images: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Return boxes and scores of classes; see `LocalizerGraph`."""
        config, evaluation = self._config.model, self._config.evaluation
        whole, size = self._resize(images)
        view = view_of(whole, size, evaluation)
        count = max(evaluation.candidates, config.num_proposals)
        boxes, scores = candidates_of(self.first, view, classes, count=count)
        # one row for each class of each image: (B, T, ...) -> (B * T, ...)
        pixels = whole[:, None].expand(-1, classes.shape[1], -1, -1, -1).flatten(0, 1)
        sizes = torch.stack(size).expand(pixels.shape[0], 2)
        proposals = propose(
            boxes.flatten(0, 1),
            scores.flatten(0, 1),
            sizes,
            nms_thresh=config.nms_thresh,
            count=config.num_proposals,
        )
        best, scores = locate_among(
            self.network, pixels, proposals, classes.flatten(), sizes=sizes, config=self._config
        )
        height, width = (
            side.float() / resized for side, resized in zip(sides_of(images), size, strict=True)
        )
        best = best * torch.stack([width, height, width, height])
        return best.unflatten(0, classes.shape), scores.unflatten(0, classes.shape)


class RawLocalizerGraph(nn.Module):
    """The first stage's network alone: without resizing, normalisation, decoding and merging.

    Args:
        network: in evaluation mode, with fixed norms folded.
    """

    def __init__(self, network: Localizer) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor, classes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits (B, N, T), deltas (B, N, T, 4) and anchors (N, 4).

        Args:
            pixels: (B, 3, h, w) float32, normalised; anchors are in these pixels.
            classes: (B, T) int64 in 0..K-1.
        """
        output = self.network.predict_normalized(pixels, classes)
        return output.logits, output.deltas, output.anchors


def view_of(pixels: Tensor, size: tuple[Tensor, Tensor], config: EvaluationConfig) -> View:
    """Return the view of resized images that the network sees: the centre crop, or all.

    Args:
        pixels: (B, 3, h, w).
        size: their height and width, int64 scalars.
        config: of the run's evaluation.
    """
    if config.view == "dense":
        return View(pixels, (0, 0), size)
    window = torch.arange(config.crop, device=pixels.device)
    top, left = ((side - config.crop) // 2 for side in size)
    center = pixels.index_select(2, top + window).index_select(3, left + window)
    return View(center, (left, top), size)
