"""Loading of a detector's weights for the data's classes: ours, torchvision's, detectron2's.

K classes of the data, background not counted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from backbones.foreign_weights import DETECTRON2
from backbones.metadata import read_class_names, read_saved_config
from backbones.weights import (
    TORCHVISION,
    WeightsReport,
    backbone_names,
    listing,
    load_strictly,
    make_weights_report,
    read_state,
)
from backbones.weights_origin import (
    DETECTRON2_DETECTOR,
    OURS,
    TORCHVISION_DETECTOR,
    origin_of,
)
from detection.config import SCHEMAS, DetectionConfig
from detection.weights.class_rows import LOGITS, class_note, rows_by_name, take_rows
from detection.weights.coco_classes import COCO_IDS, COCO_NAMES
from detection.weights.from_detectron2 import (
    adapt,
    is_detector,
    needed_keys,
    pixel_format,
    to_our_names,
)
from detection.weights.from_torchvision import count_outputs, from_torchvision_fasterrcnn
from detection.weights.network_keys import Keys, check_keys, differing, value_at
from engine.errors import UserError

_TORCHVISION_SETTINGS: Keys = {
    "model.roi.sampling_ratio": 2,
    "model.roi.aligned": False,
    "model.rpn.round_anchors": True,
}
_DETECTRON2_SETTINGS: Keys = {
    "model.roi.sampling_ratio": 0,
    "model.roi.aligned": True,
    "model.roi.drop_empty": "last",
}
"""What a project's detectors compute with; others load and give slightly different detections."""
_RUN_SETTINGS = (
    *("model.backbone.stride_in_1x1", "model.backbone.pixel_mean", "model.backbone.pixel_std"),
    *("model.rpn.anchor_sizes", "model.rpn.anchor_ratios", "model.rpn.round_anchors"),
    *("model.roi.pool", "model.roi.sampling_ratio", "model.roi.aligned", "model.roi.box_weights"),
)
"""Keys of a run that change what its weights compute, and that their shapes do not show."""


@dataclass(frozen=True)
class _Detector:
    """A detector of a file, by our names, with background as the last logit.

    num_classes: those of its rows. class_names: None if the file has none. notes: for the log.
    """

    tensors: Mapping[str, Tensor]
    num_classes: int
    class_names: Sequence[str] | None
    notes: tuple[str, ...] = ()


def load_detector_weights(
    model: nn.Module,
    path: Path | str,
    *,
    config: DetectionConfig,
    class_names: Sequence[str],
    category_ids: Sequence[int],
) -> WeightsReport:
    """Load a whole detector: our model.safetensors, or a file of torchvision or detectron2.

    torchvision: Faster and Mask R-CNN with FPN, versions 1 and 2. detectron2: Faster and Mask R-CNN
    on C4 or with FPN, and Cascade R-CNN. Rows of classes are carried over by name. Files of other
    projects have no names: with K classes they are taken in order; torchvision's by category id if
    its last output is the largest id (with 91 outputs only if the ids are all of COCO's); files of
    90 (torchvision) and 80 classes (detectron2) have COCO's names. Classes that the file does not
    have keep the model's random rows (see `take_rows`).

    Args:
        model: the detector with random weights; changed in place.
        path: weights file.
        config: the run's config, of which the model was built.
        class_names: of the model's labels 0..K-1.
        category_ids: of the model's labels.

    Raises:
        UserError: the file is bad, of no such detector, or of another network than the config's;
            then the message has the keys that would make it fit. The model is unchanged.
    """
    state, metadata = read_state(path)
    kind = origin_of(state)
    if kind == OURS:
        found = _our_detector(state, metadata, config=config, path=path)
    elif kind == TORCHVISION_DETECTOR:
        found = _torchvision_detector(state, class_names, category_ids, config=config, path=path)
        check_keys(found.tensors, config, {}, path=path)
    elif kind == DETECTRON2_DETECTOR and is_detector(state):
        found = _detectron2_detector(model, state, metadata, class_names, config=config, path=path)
    else:
        raise _no_detector(state, kind, path)
    rows, row_notes = _choose_rows(found, class_names)
    tensors = dict(found.tensors)
    if rows != list(range(found.num_classes)):
        tensors = take_rows(
            tensors,
            model.state_dict(),
            rows,
            num_in_file=found.num_classes,
            path=path,
            class_agnostic_boxes=config.model.roi.class_agnostic_boxes,
        )
    load_strictly(model, tensors, path=path)
    return make_weights_report(
        path,
        metadata,
        source=DETECTRON2 if kind == DETECTRON2_DETECTOR else TORCHVISION,
        notes=[*found.notes, *row_notes],
    )


def _choose_rows(
    found: _Detector, class_names: Sequence[str]
) -> tuple[list[int | None], list[str]]:
    """Return the file's row of each class, None for a new class, and notes."""
    names = found.class_names
    if names is None and found.num_classes == len(class_names):
        return list(range(found.num_classes)), []
    if names is None:
        note = (
            f"classes: the file has {found.num_classes} without names, all dropped; "
            f"{len(class_names)} new at random ({listing(class_names)})"
        )
        return [None] * len(class_names), [note]
    rows = rows_by_name(names, class_names)
    if list(names) == list(class_names):
        return rows, []
    if sorted(names) == sorted(class_names):
        return rows, ["the file's classes are in another order: rows reordered by name"]
    return rows, [class_note(names, class_names)]


def _our_detector(
    state: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    *,
    config: DetectionConfig,
    path: Path | str,
) -> _Detector:
    if "class_names" not in metadata:
        raise UserError(f"{path}: expected class_names in the metadata of a detector, got none")
    names = read_class_names(metadata, source=path)
    notes: tuple[str, ...] = ()
    theirs = None
    if "config" in metadata:
        theirs = read_saved_config(metadata, [], schemas=SCHEMAS, kind=DetectionConfig, source=path)
        settings = {key: value_at(theirs, key) for key in _RUN_SETTINGS}
        if overrides := differing(settings, config):
            notes = (f"the file's run has {' '.join(overrides)}, unlike this one",)
    check_keys(state, config, {}, path=path, trained_with=theirs)
    return _Detector(state, len(names), names, notes)


def _torchvision_detector(
    state: Mapping[str, Tensor],
    class_names: Sequence[str],
    category_ids: Sequence[int],
    *,
    config: DetectionConfig,
    path: Path | str,
) -> _Detector:
    num_outputs = count_outputs(state, path)
    notes = _settings_notes("torchvision", _TORCHVISION_SETTINGS, config)
    if num_outputs == len(class_names) + 1:
        note = "no class names in a torchvision file: outputs taken in order"
        return _Detector(from_torchvision_fasterrcnn(state), num_outputs - 1, None, (note, *notes))
    is_coco = num_outputs == max(COCO_IDS) + 1
    # labels are category ids; one of 0 would be background, and a few own ids may end at 90 as well
    if num_outputs == max(category_ids) + 1 and (
        set(category_ids) == set(COCO_IDS) if is_coco else min(category_ids) > 0
    ):
        note = "no class names in a torchvision file: outputs taken by category id"
        tensors = from_torchvision_fasterrcnn(state, keep_category_ids=category_ids)
        return _Detector(tensors, len(category_ids), None, (note, *notes))
    if is_coco:
        note = "no class names in a torchvision file: its 91 outputs taken as COCO's"
        tensors = from_torchvision_fasterrcnn(state, keep_category_ids=COCO_IDS)
        return _Detector(tensors, len(COCO_IDS), COCO_NAMES, (note, *notes))
    return _Detector(from_torchvision_fasterrcnn(state), num_outputs - 1, None, notes)


def _detectron2_detector(
    model: nn.Module,
    state: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    class_names: Sequence[str],
    *,
    config: DetectionConfig,
    path: Path | str,
) -> _Detector:
    tensors = to_our_names(state)
    needed = needed_keys(state, metadata, config, path=path)
    check_keys(tensors, config, needed, path=path)
    theirs = pixel_format(state, metadata, config.model.backbone, path=path)
    tensors, notes = adapt(tensors, model, theirs=theirs, config=config, path=path)
    is_c4 = config.model.neck.kind == "c4"
    settings = _DETECTRON2_SETTINGS | {"data.size_divisor": 1 if is_c4 else 32}
    notes += _settings_notes("detectron2", settings, config)
    num_classes = tensors[f"{LOGITS}bias"].numel() - 1
    names = None
    if num_classes == len(class_names) and sorted(class_names) != sorted(COCO_NAMES):
        notes.append("no class names in a detectron2 file: classes taken in order")
    elif num_classes == len(COCO_NAMES):
        notes.append("no class names in a detectron2 file: its 80 classes taken as COCO's")
        names = COCO_NAMES
    return _Detector(tensors, num_classes, names, tuple(notes))


def _settings_notes(project: str, settings: Keys, config: DetectionConfig) -> tuple[str, ...]:
    """Return a note on settings, other than the network's, that differ from a project's."""
    if config.task == "segmentation":
        settings = settings | {"model.mask.aligned": settings["model.roi.aligned"]}
    overrides = differing(settings, config)
    if not overrides:
        return ()
    return (
        f"{project} computes with {' '.join(overrides)}; without it detections differ a little",
    )


def _no_detector(state: Mapping[str, Tensor], kind: str, path: Path | str) -> UserError:
    """Return the error for a file that is no detector, with advice if its backbone can be used."""
    advice = f"; only its backbone can be loaded, by model.backbone.weights={path}"
    try:
        backbone_names(state, path=path)
    except UserError:
        advice = ""
    without = " without the RPN or the box head of Faster R-CNN"
    lacks = without if kind == DETECTRON2_DETECTOR else ""
    return UserError(
        f"{path}: expected a detector of ours (model.safetensors), {TORCHVISION_DETECTOR} or "
        f"{DETECTRON2_DETECTOR}, got {kind}{lacks}{advice}"
    )
