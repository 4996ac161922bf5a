"""Loading of a trained run for export, whatever its task."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.checkpoint import read_trained_weights
from engine.checksum import file_digest
from engine.errors import UserError

if TYPE_CHECKING:
    from detection.export.detector_graph import MaskKind
    from detection.export.model import ExportedModel

LICENSE = (
    "The graph was made by resdet, Apache License 2.0. The weights have the terms of the data that "
    "they were trained on."
)
"""Default of the metadata's `license`."""
_PRECISION = "loop.precision=fp32"
"""The model that a file is compared with computes in float32, as the file does."""


def load_for_export(
    path: Path, overrides: Sequence[str] = (), *, masks: "MaskKind" = "pasted", raw: bool = False
) -> tuple["ExportedModel", dict[str, str]]:
    """Read a run folder, a checkpoint or a .safetensors file; return its model and metadata.

    Args:
        path: the folder or file.
        overrides: `a.b.c=value`, changes to the config in the file, such as the score threshold.
        masks: as for `DetectorGraph`.
        raw: the network alone, without resizing, normalisation, NMS and thresholds.

    Raises:
        UserError: the file is missing or damaged, an override is wrong, or the config asks for more
            than a file can hold.
    """
    weights, _, saved = read_trained_weights(path)
    task, changes = saved.get("task", ""), [*overrides, _PRECISION]
    if masks != "pasted" and (task != "segmentation" or raw):
        got = "--raw" if raw else task or "none"
        raise UserError(f"--masks {masks}: expected a run of task segmentation, got {got}")
    model: ExportedModel
    # each task is imported only when it is used
    if task == "classification":
        from backbones.classification.load_and_export import load_classifier
        from detection.export.classifier import ExportedClassifier

        model = ExportedClassifier(load_classifier([path], changes), raw=raw)
    elif task in ("detection", "segmentation"):
        from detection.export.detector import ExportedDetector
        from detection.inference.trained import load_trained

        model = ExportedDetector(load_trained(path, changes), masks=masks, raw=raw)
    elif task in ("localization", "localization_regions"):
        from detection.export.localizer import ExportedLocalizer, load_localizer

        model = ExportedLocalizer(load_localizer(path, changes, task=task), raw=raw)
    else:
        raise UserError(
            f"{path}: expected a run of a detector, classifier or localizer, got {task or 'none'}"
        )
    return model, {
        **model.metadata(),
        "weights_sha256": file_digest(weights),
        "license": LICENSE,
        "made_by": "resdet",
    }
