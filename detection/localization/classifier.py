"""Image classification with a trained run, to choose the classes to localize.

B images, K classes.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from backbones.classification.load_and_export import load_classifier
from backbones.classification.structures import ClassificationBatch
from backbones.classification.views import resize_short_side
from backbones.weights import listing
from detection.structures import ImageBatch
from engine.errors import UserError

NUM_TOP_CLASSES = 5
"""ILSVRC allows five predicted classes per image."""


class ImageClassifier:
    """A trained classifier of the same classes, evaluated with the views of its own config.

    Args:
        path: run folder, checkpoint or .safetensors file.
        class_names: WordNet ids, by label. The classifier's class names are its folder names.

    Raises:
        UserError: the file cannot be read, or the classes differ.
    """

    def __init__(self, path: Path, class_names: Sequence[str]) -> None:
        self._task = load_classifier([path])
        names = self._task.class_names
        if set(names) != set(class_names):
            raise UserError(
                f"evaluation.classifier {path}: expected the classes {listing(class_names)}, "
                f"got {listing(names)}"
            )
        # (K,) the classifier's label of each of our labels
        self._order = torch.tensor([names.index(name) for name in class_names])

    def top_classes(self, images: ImageBatch) -> tuple[Tensor, Tensor]:
        """Return probabilities and labels of the most probable classes, in falling order.

        Args:
            images: images of one shape. They are resized here to the classifier's evaluation size;
                its own evaluation resizes when it reads the files.

        Returns:
            probabilities and labels, both (B, min(5, K)).
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
        # the classifier may number its classes in another order
        probabilities = torch.stack(self._task.predict(batch))[:, self._order]
        count = min(NUM_TOP_CLASSES, probabilities.shape[1])
        top_probabilities, labels = probabilities.topk(count, dim=1)
        return top_probabilities.to(pixels.device), labels.to(pixels.device)
