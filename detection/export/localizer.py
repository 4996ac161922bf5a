"""Export of localizers of both stages: program, metadata, and comparison of boxes and scores.

B images of H x W pixels, T requested classes per image.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from backbones.classification.transforms import size_for_short_side
from backbones.images import resize_pixels
from backbones.norm import fold_norms
from detection.export.localizer_graph import (
    LocalizerGraph,
    RawLocalizerGraph,
    RegionsGraph,
    view_of,
)
from detection.export.model import TOLERANCE, Arrays, Differences, ExportedModel
from detection.export.program import ImageSize, Program, image_program
from detection.localization.classifier import NUM_TOP_CLASSES
from detection.localization.config import EvaluationConfig, LocalizationBaseConfig
from detection.localization.regions_task import LocalizationRegionsTask
from detection.localization.task import LocalizationTask
from detection.structures import ImageBatch
from engine.errors import UserError

Network = TypeVar("Network", bound=nn.Module)


class ExportedLocalizer(ExportedModel):
    """A localizer of one of the two stages; the file of the second stage contains the first.

    Args:
        task: the stage.
        raw: the first stage's network alone, see `RawLocalizerGraph`.

    Raises:
        UserError: the config evaluates several views, or `raw` is for the second stage.
    """

    config: LocalizationBaseConfig

    def __init__(
        self, task: LocalizationTask | LocalizationRegionsTask, *, raw: bool = False
    ) -> None:
        self._task, self._raw = task, raw
        self.config, self.class_names = task.config, task.class_names
        _check_one_view(self.config.evaluation)
        if raw and isinstance(task, LocalizationRegionsTask):
            raise UserError("--raw: expected a run of task localization, got localization_regions")

    def program(self, *, batch: int | None = None, size: ImageSize | None = None) -> Program:
        """Return the program; see the graphs."""
        program = image_program(self._graph(size), ("boxes", "scores"), batch=batch, size=size)
        images = program.inputs["images"]
        # a single class would fix the dimension
        classes = torch.zeros(len(images), 2, dtype=torch.int64)
        if not self._raw:
            inputs = {"images": images, "classes": classes}
            return replace(program, inputs=inputs, fixed={**program.fixed, "classes": ()})
        pixels = torch.from_numpy(self.inputs(images.numpy())["pixels"])
        return replace(
            program,
            inputs={"pixels": pixels, "classes": classes},
            fixed={"pixels": (1,) if size is None else (1, 2, 3), "classes": ()},
            outputs=("logits", "deltas", "anchors"),
        )

    def _graph(self, size: ImageSize | None) -> nn.Module:
        task = self._task
        if isinstance(task, LocalizationRegionsTask):
            networks = _folded(task.first_stage), _folded(task.model)
            return RegionsGraph(*networks, task.config, image_size=size)
        network = _folded(task.model)
        if self._raw:
            return RawLocalizerGraph(network)
        return LocalizerGraph(network, task.config.evaluation, image_size=size)

    def inputs(self, images: np.ndarray) -> Arrays:
        """Return the images, or for the network alone normalised pixels; and some classes."""
        classes = self._classes(len(images)).numpy()
        if not self._raw:
            return {"images": images, "classes": classes}
        pixels = self._task.model.normalize(self._views(images))
        return {"pixels": pixels.contiguous().numpy(), "classes": classes}

    @torch.no_grad()
    def differences(self, images: np.ndarray, outputs: Arrays) -> Differences:
        """Compare boxes and scores with the task's, or the outputs of the network alone."""
        classes = self._classes(len(images))
        if self._raw:
            found = self._task.model(self._views(images), classes)
            expected = {name: getattr(found, name) for name in ("logits", "deltas", "anchors")}
        else:
            located = self._task.locate(self._batch(images), classes)
            expected = dict(zip(("boxes", "scores"), located, strict=True))
        values = {
            name: float(np.abs(outputs[name] - tensor.numpy()).max())
            for name, tensor in expected.items()
        }
        return Differences(values, dict.fromkeys(values, TOLERANCE), classes.numel())

    def _classes(self, count: int) -> Tensor:
        """Return (count, T) classes, other ones for each image."""
        num_classes = len(self._task.class_names)
        places = torch.arange(min(num_classes, NUM_TOP_CLASSES))
        return (torch.arange(count)[:, None] + places) % num_classes

    def _views(self, images: np.ndarray) -> Tensor:
        """Return the network's views of images (B, H, W, 3) as (B, 3, h, w) uint8."""
        batch = self._batch(images)
        height, width = batch.sizes[0]
        return view_of(batch.pixels, (height, width), self.config.evaluation).pixels

    def _batch(self, images: np.ndarray) -> ImageBatch:
        """Return images (B, H, W, 3) resized as the evaluation's data set does it."""
        original = (images.shape[1], images.shape[2])
        size = size_for_short_side(original, self.config.evaluation.short_side)
        resized = np.stack([resize_pixels(image, size) for image in images])
        sizes, originals = (torch.tensor(each).expand(len(images), 2) for each in (size, original))
        unused = torch.zeros_like(sizes[:, 0])
        pixels = torch.from_numpy(resized).permute(0, 3, 1, 2)
        return ImageBatch(pixels, sizes, originals, image_ids=unused, seeds=unused)


def load_localizer(
    path: Path, overrides: Sequence[str], *, task: str
) -> LocalizationTask | LocalizationRegionsTask:
    """Load a run of task `localization` or `localization_regions`, without its classifier."""
    # the classes are an input of the file, so the classifier is not needed, and may be deleted
    changes = [*overrides, "evaluation.classifier=null"]
    if task == "localization":
        return LocalizationTask.from_run(path, changes)
    return LocalizationRegionsTask.from_run(path, changes)


def _folded(network: Network) -> Network:
    """Return a copy of a network in evaluation mode, with fixed norms folded."""
    copied = copy.deepcopy(network).eval()
    fold_norms(copied)
    return copied


def _check_one_view(config: EvaluationConfig) -> None:
    """Raise UserError unless an evaluation has one view, as a file has."""
    reason = "because a file holds one view"
    if config.mirror:
        raise UserError(
            f"evaluation.mirror: expected false, {reason}, got true; add evaluation.mirror=false"
        )
    if config.view == "dense" and len(config.scales) > 1:
        raise UserError(
            f"evaluation.scales: expected one scale, {reason}, got {list(config.scales)}; add "
            f"evaluation.scales=[{config.resize}] or evaluation.view=center"
        )
