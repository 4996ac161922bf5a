"""Export of detectors: program, metadata, and comparison of detections."""

import copy
import json

import numpy as np
import torch
from torch import Tensor

from backbones.norm import fold_norms
from detection.config import DetectionConfig
from detection.data.collate import round_up
from detection.data.eval_sizes import EvalSizes
from detection.export.agreement import compare_detections
from detection.export.detector_graph import DetectorGraph, MaskKind, RawDetectorGraph
from detection.export.model import TOLERANCE, Arrays, Differences, ExportedModel
from detection.export.program import ImageSize, Program, image_program
from detection.inference.trained import TrainedDetector
from detection.models.selection import BoxPredictions, select_detections, to_detections
from detection.ops.masks import paste_mask
from detection.ops.rle import encode_window
from detection.predict import Detector
from detection.structures import Detections, ImageBatch, RunLengthMasks
from engine.errors import UserError

_PLAIN = {"mirror": False, "refine_boxes": False, "vote_iou_thresh": None}
"""Values of `evaluation` with which prediction is one network's own."""


class ExportedDetector(ExportedModel):
    """A detector with or without a mask head.

    Args:
        trained: a single network; it can neither be trained nor saved afterwards.
        masks: as for `DetectorGraph`.
        raw: the network alone, see `RawDetectorGraph`.

    Raises:
        UserError: the config asks for additions at test time, which a file does not contain.
    """

    config: DetectionConfig

    def __init__(
        self, trained: TrainedDetector, *, masks: MaskKind = "pasted", raw: bool = False
    ) -> None:
        self.config = config = trained.config
        for key, plain in _PLAIN.items():
            if (value := getattr(config.evaluation, key)) != plain:
                shown = json.dumps(plain)
                raise UserError(
                    f"evaluation.{key}: expected {shown}, because a file holds one network's own "
                    f"prediction, got {json.dumps(value)}; add evaluation.{key}={shown}"
                )
        if len(scales := config.evaluation.scales) > 1:
            raise UserError(
                "evaluation.scales: expected one, because a file holds one network's own "
                f"prediction, got {list(scales)}; add evaluation.scales=[{scales[0]}]"
            )
        self._sizes = EvalSizes.of(config.data, config.evaluation)
        self.classes, self.class_names = trained.classes, trained.classes.names
        network = copy.deepcopy(trained.model)  # the detector changes its own
        fold_norms(network)
        self._network, self._masks, self._raw = network, masks, raw
        self._images_graph = DetectorGraph(network, config)
        self.detector = Detector(trained, device=torch.device("cpu"))

    def program(self, *, batch: int | None = None, size: ImageSize | None = None) -> Program:
        """Return the program; see `DetectorGraph` and `RawDetectorGraph`."""
        masks = ("masks",) if self._network.mask_head is not None else ()
        program = image_program(
            DetectorGraph(self._network, self.config, masks=self._masks, image_size=size),
            ("boxes", "scores", "labels", *masks),
            batch=batch,
            size=size,
        )
        if not self._raw:
            return program
        if size is None:
            # of other lengths than 1 on each level, which would be fixed
            height, width = (round_up(side, self.config.data.size_divisor) for side in (256, 320))
            count = len(program.inputs["images"])
            inputs = {
                "pixels": torch.zeros(count, 3, height, width),
                "sizes": torch.tensor([[height, width]]).repeat(count, 1),
            }
        else:
            arrays = self.inputs(program.inputs["images"].numpy())
            inputs = {name: torch.from_numpy(values) for name, values in arrays.items()}
        return Program(
            RawDetectorGraph(self._network),
            inputs,
            {"pixels": (1,) if size is None else (1, 2, 3), "sizes": (1,)},
            ("scores", "boxes", "valid"),
            batch,
        )

    def metadata(self) -> dict[str, str]:
        """Return class names, category ids, config and score threshold."""
        return super().metadata() | {
            "category_ids": json.dumps(self.classes.category_ids),
            "score_thresh": str(self.config.model.roi.score_thresh),
        }

    def inputs(self, images: np.ndarray) -> Arrays:
        """Return the images, or for the network alone normalised pixels and sizes."""
        if not self._raw:
            return {"images": images}
        batch = self._batch(images)
        pixels = self._network.network_input(batch)
        return {"pixels": pixels.contiguous().numpy(), "sizes": batch.sizes.numpy()}

    def differences(self, images: np.ndarray, outputs: Arrays) -> Differences:
        """Compare the detections with the detector's, image by image."""
        roi = self.config.model.roi
        values = dict.fromkeys(("boxes", "scores", "masks", "unpaired"), 0.0)
        if self._raw or self._network.mask_head is None:
            del values["masks"]
        count = 0
        pairs = zip(self.detector.predict(images), self.detections(images, outputs), strict=True)
        for expected, found in pairs:
            result = compare_detections(
                expected, found, score_thresh=roi.score_thresh, max_detections=roi.max_detections
            )
            for name, value in values.items():  # np.maximum keeps NaN, unlike max
                values[name] = float(np.maximum(value, getattr(result, name)))
            count += len(expected)
        # rounding grows with the image: pixels of the network's input if that is smaller
        values["boxes"] /= self._reduction((images.shape[1], images.shape[2]))
        limits = dict.fromkeys(values, TOLERANCE) | {"unpaired": 0}
        return Differences(values, limits, count)

    def _reduction(self, size: ImageSize) -> float:
        """Return the factor by which images are reduced for the network, at least 1."""
        resized = self._sizes.sizes(size)[0]
        return max(1.0, size[0] / resized[0], size[1] / resized[1])

    def _batch(self, images: np.ndarray) -> ImageBatch:
        return self._images_graph.batch(torch.from_numpy(images))

    def detections(self, images: np.ndarray, outputs: Arrays) -> list[Detections]:
        """Return the detections in a file's outputs."""
        arrays = {name: torch.from_numpy(values) for name, values in outputs.items()}
        if self._raw:
            predictions = BoxPredictions(arrays["scores"], arrays["boxes"], arrays["valid"])
            found = select_detections(predictions, config=self.config.model.roi)
            return to_detections(found, self._batch(images))
        size = (images.shape[1], images.shape[2])
        detections = []
        for row, labels in enumerate(arrays["labels"]):
            kept = labels >= 0
            boxes = arrays["boxes"][row][kept]
            masks = None
            if "masks" in arrays:
                masks = self._run_lengths(arrays["masks"][row][kept], boxes, size)
            detections.append(Detections(boxes, arrays["scores"][row][kept], labels[kept], masks))
        return detections

    def _run_lengths(self, masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> RunLengthMasks:
        """Return masks of the image, or cells of its boxes, as run lengths."""
        if masks.dtype == torch.bool:
            codes = [encode_window(mask.numpy(), top=0, left=0, size=size) for mask in masks]
        else:
            aligned = self.config.model.mask.aligned
            codes = [
                paste_mask(cells, box, size, aligned=aligned)
                for cells, box in zip(masks.numpy(), boxes.numpy(), strict=True)
            ]
        return RunLengthMasks(size, tuple(codes))
