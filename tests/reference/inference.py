"""Reference of prediction with improvements: one image, one view, one RoI and one scale at a time.

Only parts of the plain network are called: `features`, `proposals`, `region_features` on one map,
and the layers of the region head. K classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, NamedTuple

import torch
import torchvision
from torch import Tensor

from detection.config import EvaluationConfig, RoIConfig
from detection.models.faster_rcnn import FasterRCNN
from detection.structures import ImageBatch
from tests.reference.boxes import Box, area, decode
from tests.reference.roi_pool import bilinear
from tests.reference.voting import vote

Size = tuple[int, int]
CANONICAL_AREA = 224**2


class Candidate(NamedTuple):
    """A box of one class, before NMS."""

    box: list[float]
    score: float
    label: int


def size_of(image: ImageBatch) -> Size:
    """Return (height, width) of the only image of a batch."""
    height, width = image.sizes[0].tolist()
    return height, width


def resized(box: Box, old: Size, new: Size) -> list[float]:
    """Return a box in pixels of an image of another size."""
    y, x = new[0] / old[0], new[1] / old[1]
    return [box[0] * x, box[1] * y, box[2] * x, box[3] * y]


def clipped(box: Box, size: Size) -> list[float]:
    height, width = size
    return [
        min(max(value, 0), limit)
        for value, limit in zip(box, (width, height, width, height), strict=True)
    ]


def two_scales(box: Box, size: Size, sizes: Sequence[Size]) -> list[int]:
    """Return the scales at which the area of a box in an image of `size` is nearest 224 x 224.

    Of equally near scales the smaller comes first.
    """
    distances = [abs(area(resized(box, size, scale)) - CANONICAL_AREA) for scale in sizes]
    return sorted(range(len(sizes)), key=lambda index: (distances[index], index))[:2]


def layers_of(network: FasterRCNN, stage: int) -> tuple[Any, Any]:
    """Return the box head and the output layers of a stage."""
    owner: Any = network if stage == 0 else network.later_stages[stage - 1]
    return owner.box_head, owner.box_predictor


@dataclass(frozen=True)
class RoIs:
    """A network's features of RoIs of one image: `maps` at images of `sizes`, boxes at `size`."""

    network: FasterRCNN
    maps: Sequence[Mapping[str, Tensor]]
    sizes: Sequence[Size]
    size: Size

    def vector(self, box: Box, stage: int) -> Tensor:
        """Return (D,), with the two best scales the maximum of both."""
        head, _ = layers_of(self.network, stage)
        several = len(self.sizes) > 1
        chosen = two_scales(box, self.size, self.sizes) if several else [0]
        vectors = []
        for index in chosen:
            at_scale = torch.tensor([[resized(box, self.size, self.sizes[index])]])
            vectors.append(head(self.network.region_features(self.maps[index], at_scale)[0])[0])
        return torch.stack(vectors).amax(dim=0)

    def outputs(self, box: Box, stage: int) -> tuple[list[float], list[list[float]]]:
        """Return the probability and the deltas of each class."""
        vector = self.vector(box, stage)
        if self.network.config.roi.global_context:
            height, width = self.size
            vector = torch.cat([vector, self.vector([0, 0, width, height], stage)])
        logits, deltas = layers_of(self.network, stage)[1](vector[None])
        return logits[0].softmax(dim=0)[:-1].tolist(), deltas[0].tolist()

    def predict(self, box: Box) -> list[tuple[float, list[float]]]:
        """Return of each class the mean score over the stages, and the last stage's box.

        Cascade R-CNN (2018): every stage scores the box that the stages before moved, and moves it
        on by the box of its own best class.
        """
        scores_of_stages = []
        for stage in range(self.network.num_stages):
            weights = self.network.config.roi.box_weights_of(stage)
            scores, deltas = self.outputs(box, stage)
            scores_of_stages.append(scores)
            boxes = [clipped(decode(delta, box, weights), self.size) for delta in deltas]
            if self.network.config.roi.class_agnostic_boxes:
                boxes = boxes * len(scores)
            box = boxes[scores.index(max(scores))]
        means = [sum(of_class) / len(of_class) for of_class in zip(*scores_of_stages, strict=True)]
        return list(zip(means, boxes, strict=True))


def averaged(
    predictions: Sequence[Sequence[tuple[float, list[float]]]],
) -> list[tuple[float, list[float]]]:
    """Return the mean score and box of each class over networks."""
    means = []
    for of_class in zip(*predictions, strict=True):
        boxes = [box for _, box in of_class]
        box = [sum(sides) / len(sides) for sides in zip(*boxes, strict=True)]
        means.append((sum(score for score, _ in of_class) / len(of_class), box))
    return means


def mirrored(image: ImageBatch) -> ImageBatch:
    """Return the image flipped left to right, without its padding."""
    _, width = size_of(image)
    pixels = image.pixels.clone()
    pixels[..., :width] = image.pixels[..., :width].flip(3)
    return replace(image, pixels=pixels)


def predict_view(
    networks: Sequence[FasterRCNN],
    image: ImageBatch,
    scales: Sequence[ImageBatch],
    *,
    refine_boxes: bool,
) -> list[Candidate]:
    """Return what the networks predict for the union of their proposals on `image`."""
    pools, proposals = [], []
    for network in networks:
        found = network.proposals(network.features(image), image)
        proposals += found.boxes[0, found.valid[0]].tolist()
        maps = [network.features(scale) for scale in scales]
        pools.append(RoIs(network, maps, [size_of(scale) for scale in scales], size_of(image)))
    candidates = []
    for proposal in proposals:
        predictions = averaged([pool.predict(proposal) for pool in pools])
        rounds = [predictions]
        if refine_boxes:
            _, best = max(predictions, key=lambda of_class: of_class[0])
            rounds.append(averaged([pool.predict(best) for pool in pools]))
        candidates += [
            Candidate(box, score, label)
            for of_round in rounds
            for label, (score, box) in enumerate(of_round)
        ]
    return candidates


def predict_views(
    networks: Sequence[FasterRCNN],
    image: ImageBatch,
    scales: Sequence[ImageBatch],
    evaluation: EvaluationConfig,
) -> list[Candidate]:
    """Return what all views give, in pixels of `image`, at which proposals are made."""
    refine_boxes = evaluation.refine_boxes
    if evaluation.merge == "maxout":
        return predict_view(networks, image, scales, refine_boxes=refine_boxes)
    joined = []
    for scale, flip in product(scales, [False, True] if evaluation.mirror else [False]):
        view = mirrored(scale) if flip else scale
        size = size_of(view)
        for found in predict_view(networks, view, [view], refine_boxes=refine_boxes):
            x1, y1, x2, y2 = found.box
            box = [size[1] - x2, y1, size[1] - x1, y2] if flip else found.box
            box = clipped(resized(box, size, size_of(image)), size_of(image))
            joined.append(found._replace(box=box))
    return joined


def select(
    candidates: Sequence[Candidate],
    roi: RoIConfig,
    *,
    nms_thresh: float,
    vote_iou_thresh: float | None,
) -> list[Candidate]:
    """Return the detections: NMS class by class, the best ones, then voting."""
    wanted = [
        found
        for found in candidates
        if found.score > roi.score_thresh
        and min(found.box[2] - found.box[0], found.box[3] - found.box[1]) >= 0.01
    ]
    kept: list[Candidate] = []
    for label in {found.label for found in wanted}:
        of_class = [found for found in wanted if found.label == label]
        boxes = torch.tensor([found.box for found in of_class])
        scores = torch.tensor([found.score for found in of_class])
        kept += [of_class[i] for i in torchvision.ops.nms(boxes, scores, nms_thresh).tolist()]
    kept = sorted(kept, key=lambda found: -found.score)[: roi.max_detections]
    if vote_iou_thresh is None:
        return kept
    return [
        found._replace(box=vote(found.box, found.label, wanted, iou_thresh=vote_iou_thresh))
        for found in kept
    ]


def mask_of(
    networks: Sequence[FasterRCNN], image: ImageBatch, box: Box, label: int, *, side: int
) -> Tensor:
    """Return the mean (side, side) of the networks' masks of one detection.

    A coarser mask is interpolated between the centres of its cells.
    """
    mean = torch.zeros(side, side)
    for network in networks:
        logits = network.mask_logits(network.features(image), torch.tensor([[box]]))
        mask = logits[0, 0, label].sigmoid()
        scale = len(mask) / side
        for i, j in product(range(side), repeat=2):
            y, x = (i + 0.5) * scale - 0.5, (j + 0.5) * scale - 0.5
            mean[i, j] += bilinear(mask[None], y, x)[0] / len(networks)
    return mean
