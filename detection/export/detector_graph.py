"""A detector as one graph from images to detections, for export.

B images of H x W pixels, N the most detections that an image of the batch has, M cells along a
mask's side, R RoIs per image, K classes.
"""

from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from detection.config import DetectionConfig
from detection.data.eval_sizes import EvalSizes
from detection.export.program import ImageSize
from detection.export.resizing import Sides, WholeResize, sides_of
from detection.models.faster_rcnn import FasterRCNN
from detection.models.selection import BoxPredictions, select_detections
from detection.ops.boxes import box_factors, clip_boxes
from detection.ops.masks import THRESHOLD
from detection.structures import ImageBatch

MaskKind = Literal["pasted", "cells"]


class DetectorGraph(nn.Module):
    """From images to detections in their own pixels: resize, normalise, detect, paste masks.

    Args:
        network: in evaluation mode, with fixed norms folded.
        config: of the run; its image sizes and padding are used.
        masks: what is returned of masks, if there is a mask head; see `forward`.
        image_size: (height, width) of all images; None: they have any size.
    """

    def __init__(
        self,
        network: FasterRCNN,
        config: DetectionConfig,
        *,
        masks: MaskKind = "pasted",
        image_size: ImageSize | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        sizes = EvalSizes.of(config.data, config.evaluation)
        self._short_side, self._max_side = sizes.short_sides[0], sizes.max_sides[0]
        self._resize = WholeResize(
            self._resized, divisor=config.data.size_divisor, image_size=image_size
        )
        self._masks = masks

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return boxes, scores and labels, and masks if there is a mask head.

        Args:
            images: (B, H, W, 3) uint8 RGB.

        Returns:
            boxes (B, N, 4) xyxy in pixels of the images, scores (B, N) by falling score, labels
            (B, N) int64; in rows beyond an image's detections box and score are 0 and the label is
            -1. Masks: "pasted", (B, N, H, W) bool; "cells", (B, N, M, M) float32 probabilities
            over the boxes.
        """
        batch = self.batch(images)
        network = self.network
        features = network.features(batch)
        predictions = _predict_boxes(network, features, batch)
        found = select_detections(predictions, config=network.config.roi).without_empty_rows()
        exists = found.scores >= 0
        factors = box_factors(batch.sizes, batch.original_sizes)[:, None]
        boxes = clip_boxes(found.boxes * factors, batch.original_sizes)
        outputs = (
            boxes.masked_fill(~exists[..., None], 0.0),
            found.scores.masked_fill(~exists, 0.0),
            found.labels.masked_fill(~exists, -1),
        )
        # an invalid row pools an empty box, which costs next to nothing
        cells = network.masks(features, found, all_masks=True)
        if cells is None:
            return outputs
        cells = cells.masked_fill(~exists[..., None, None], 0.0)
        if self._masks == "cells":
            return *outputs, cells
        height, width = images.shape[1:3]
        pasted = paste_masks(cells, boxes, (height, width), aligned=network.config.mask.aligned)
        return *outputs, pasted

    def batch(self, images: Tensor) -> ImageBatch:
        """Return images (B, H, W, 3) as they come out of the detector's data pipeline."""
        pixels, size = self._resize(images)
        sizes = torch.stack(size).expand(images.shape[0], 2)
        unused = torch.zeros_like(sizes[:, 0])
        original_sizes = torch.stack(sides_of(images)).to(torch.int64).expand_as(sizes)
        return ImageBatch(
            pixels.to(torch.uint8), sizes, original_sizes, image_ids=unused, seeds=unused
        )

    def _resized(self, sides: Sides) -> Sides:
        """Return what `transforms.resized_size` does, as int64 scalars, for float64 scalars."""
        scale = torch.minimum(
            self._short_side / torch.minimum(*sides), self._max_side / torch.maximum(*sides)
        )
        # torch rounds halves to even, as Python does
        height, width = ((side * scale).round().clamp(min=1).to(torch.int64) for side in sides)
        return height, width


class RawDetectorGraph(nn.Module):
    """The network alone: without resizing, normalisation, final NMS, thresholds and masks.

    NMS of proposals is part of a network with a region head, and stays.

    Args:
        network: in evaluation mode, with fixed norms folded.
    """

    def __init__(self, network: FasterRCNN) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return scores (B, R, K), boxes (B, R, K, 4) and valid (B, R) of the proposals.

        Args:
            pixels: (B, 3, H, W) float32, normalised and then padded with zeros; H and W are
                multiples of the size divisor. Boxes are in these pixels.
            sizes: (B, 2) int64, height and width before padding.
        """
        features = self.network.features_of(pixels)
        unused = torch.zeros_like(sizes[:, 0])
        # its pixels are not read: the features are there
        images = ImageBatch(pixels.to(torch.uint8), sizes, sizes, image_ids=unused, seeds=unused)
        return _predict_boxes(self.network, features, images)


def _predict_boxes(
    network: FasterRCNN, features: dict[str, Tensor], images: ImageBatch
) -> BoxPredictions:
    proposals = network.proposals(features, images)
    vectors = partial(network.region_vectors, features)
    return network.box_predictions(vectors, proposals, images.sizes)


def paste_masks(cells: Tensor, boxes: Tensor, size: tuple[int, int], *, aligned: bool) -> Tensor:
    """Paste predicted masks into their images: `ops.masks.paste_mask` for a batch, as one graph.

    Args:
        cells: (B, N, M, M) float32 probabilities over the boxes.
        boxes: (B, N, 4) xyxy in pixels of the images.
        size: (H, W) of the images.
        aligned: as for `paste_mask`.

    Returns:
        (B, N, H, W) bool.
    """
    rows, columns = (
        _pasting_weights(boxes[..., axis::2], length, cells.shape[-1], aligned=aligned)
        for axis, length in ((1, size[0]), (0, size[1]))
    )
    # (B, N, H, M) @ (B, N, M, M) @ (B, N, M, W)
    return rows @ cells @ columns.mT > THRESHOLD


def _pasting_weights(spans: Tensor, length: int, resolution: int, *, aligned: bool) -> Tensor:
    """Return the weight (B, N, L, M) of each cell at each pixel along an axis.

    spans: (B, N, 2), where the boxes begin and end. The arithmetic is that of `paste_mask`.
    """
    begin, end = spans[..., :1], spans[..., 1:]
    pixels = torch.arange(length, device=spans.device)
    if aligned:
        first, last = begin.floor(), end.ceil()
        side = (end - begin).double().clamp(min=1e-6)
        places = (pixels + 0.5 - begin.double()) * (resolution / side) - 0.5
    else:
        half = (end - begin) * 0.5 * ((resolution + 2) / resolution)
        centre = (begin + end) * 0.5
        # trunc() rounds toward zero, as int() does
        first, last = (centre - half).trunc(), (centre + half).trunc() + 1
        last = torch.maximum(last, first + 1)
        side = (last - first).double()
        places = (pixels - first.double() + 0.5) * ((resolution + 2) / side) - 0.5
        places = places.clamp(min=0) - 1
    cell = torch.arange(resolution, device=spans.device)
    weights = (1 - (places[..., None] - cell).abs()).clamp(min=0)
    inside = (pixels >= first) & (pixels < last)
    return (weights * inside[..., None]).float()
