"""The classes to look for in an image, from a trained classifier. B images, K classes."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from backbones.classification.load_and_export import load_trained
from backbones.classification.structures import ClassificationBatch
from backbones.classification.views import resize_short_side
from backbones.weights import listing
from detection.structures import ImageBatch
from engine.errors import UserError

BEST = 5
"""Classes that ILSVRC lets one guess."""


class ClassGuesser:
    """A classifier of the same classes, tested as its own config says.

    Args:
        path: run folder, checkpoint or .safetensors file.
        class_names: WordNet ids, by label; the classifier's are the names of its folders.

    Raises:
        UserError: the file is bad, or its classes are others.
    """

    def __init__(self, path: Path, class_names: Sequence[str]) -> None:
        self._task = load_trained([path])
        names = self._task.class_names
        if set(names) != set(class_names):
            raise UserError(
                f"evaluation.classifier {path}: expected the classes {listing(class_names)}, "
                f"got {listing(names)}"
            )
        self._order = torch.tensor([names.index(name) for name in class_names])

    def best(self, images: ImageBatch) -> tuple[Tensor, Tensor]:
        """Return probabilities and labels (B, min(5, K)) of the best classes, best first.

        Args:
            images: images of one shape; they are resized to what the classifier wants, which its
                own evaluation does when it reads the files.
        """
        evaluation = self._task.config.evaluation
        dense = evaluation.view == "multi_scale"
        side = max(evaluation.scales) if dense else evaluation.resize
        pixels = resize_short_side(images.pixels, side).round().clamp(0, 255).to(torch.uint8)
        if evaluation.view == "center":
            top, left = ((length - evaluation.crop) // 2 for length in pixels.shape[2:])
            crop = evaluation.crop
            pixels = pixels[:, :, top : top + crop, left : left + crop]
        self._task.model.to(pixels.device)
        batch = ClassificationBatch(pixels, images.image_ids, images.image_ids, images.seeds)
        probabilities = torch.stack(self._task.predict(batch))[:, self._order]
        count = min(BEST, probabilities.shape[1])
        chances, labels = probabilities.topk(count, dim=1)
        return chances.to(pixels.device), labels.to(pixels.device)
