"""Export of classifiers: graph, metadata, and comparison of probabilities.

B images, K classes.
"""

import copy
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from backbones.classification.config import CIFAR_SIDE, ClassificationConfig
from backbones.classification.model import Classifier
from backbones.classification.task import ClassificationTask
from backbones.classification.transforms import EvaluationTransform
from backbones.images import resize_pixels
from backbones.norm import fold_norms
from detection.export.model import TOLERANCE, Arrays, Differences, ExportedModel
from detection.export.program import ImageSize, Program, image_program
from detection.export.resizing import count_taps, resize, short_side_sizing, sides_of
from engine.errors import UserError


class ClassifierGraph(nn.Module):
    """From images to probabilities.

    Args:
        network: in evaluation mode, with fixed norms folded.
        short_side: images are resized to this shorter side; None: they are not resized.
        crop: side of the centre crop of resized images.
    """

    def __init__(self, network: Classifier, *, short_side: int | None, crop: int) -> None:
        super().__init__()
        self.network = network
        self._short_side, self._crop = short_side, crop

    def forward(self, images: Tensor) -> Tensor:
        """Return probabilities (B, K) of images (B, H, W, 3) uint8 RGB."""
        if self._short_side is None:
            pixels = images.permute(0, 3, 1, 2).float()
        else:
            pixels = self._center(images, self._short_side)
        logits: Tensor = self.network(self.network.normalize(pixels))
        return logits.softmax(dim=1)

    def _center(self, images: Tensor, short_side: int) -> Tensor:
        """Return the centre crop (B, 3, crop, crop) of the resized images."""
        sides = sides_of(images)
        size = short_side_sizing(short_side)(sides)
        window = torch.arange(self._crop, device=images.device)
        rows, columns = ((side - self._crop) // 2 + window for side in size)
        num_taps = count_taps(sides, size)
        return resize(images, size, rows, columns, num_taps)


class ExportedClassifier(ExportedModel):
    """A classifier.

    Args:
        task: a single network.
        raw: the network alone: normalised pixels (B, 3, H, W) to logits (B, K).

    Raises:
        UserError: the config tests more than the centre crop.
    """

    config: ClassificationConfig

    def __init__(self, task: ClassificationTask, *, raw: bool = False) -> None:
        self._task, self._raw = task, raw
        self.config, self.class_names = task.config, task.class_names
        config = task.config
        view = config.evaluation.view
        if view != "center":
            raise UserError(
                f"evaluation.view: expected center, because a file holds one view, got {view}; add "
                "evaluation.view=center"
            )
        network = copy.deepcopy(task.model).eval()
        fold_norms(network)
        self._is_resized = config.data.kind == "folder"
        self._graph = ClassifierGraph(
            network,
            short_side=config.evaluation.resize if self._is_resized else None,
            crop=config.evaluation.crop,
        )

    def program(self, *, batch: int | None = None, size: ImageSize | None = None) -> Program:
        """Return the program; see `ClassifierGraph`."""
        if not self._is_resized:
            size = (CIFAR_SIDE, CIFAR_SIDE)
        program = image_program(self._graph, ("probabilities",), batch=batch, size=size)
        if not self._raw:
            return program
        arrays = self.inputs(program.inputs["images"].numpy())
        pixels = {name: torch.from_numpy(values) for name, values in arrays.items()}
        network = self._graph.network.backbone
        return Program(network, pixels, {"pixels": (1, 2, 3)}, ("logits",), batch)

    def inputs(self, images: np.ndarray) -> Arrays:
        """Return the images, CIFAR's at its size; for the network alone normalised pixels."""
        if self._raw:
            network = self._graph.network
            return {"pixels": network.normalize(self._views(images)).contiguous().numpy()}
        if self._is_resized:
            return {"images": images}
        return {"images": self._views(images).permute(0, 2, 3, 1).contiguous().numpy()}

    @torch.no_grad()
    def differences(self, images: np.ndarray, outputs: Arrays) -> Differences:
        """Compare probabilities, or logits of the network alone."""
        model = self._task.model
        logits = model(model.normalize(self._views(images))).float()
        name, expected = "probabilities", logits.softmax(dim=1)
        if self._raw:
            name, expected = "logits", logits
        largest = float(np.abs(outputs[name] - expected.numpy()).max())
        return Differences({name: largest}, {name: TOLERANCE}, len(images))

    def _views(self, images: np.ndarray) -> Tensor:
        """Return the network's views of images (B, H, W, 3) as (B, 3, h, w) uint8."""
        if self._is_resized:
            view = EvaluationTransform(self.config.evaluation).view
        else:
            view = partial(resize_pixels, size=(CIFAR_SIDE, CIFAR_SIDE))
        views = np.stack([view(image) for image in images])
        return torch.from_numpy(views).permute(0, 3, 1, 2)
