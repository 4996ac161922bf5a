"""COCO average precision of boxes and masks, with its table and files.

coco_backends.py does the matching. K categories, T=10 IoU thresholds, R=101 recall thresholds.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Group
from rich.table import Table

from backbones.score_tables import pairs_table
from detection.config import ApProtocol, BackendChoice
from detection.data.coco import ClassMap, detections_to_coco
from detection.data.lvis_json import read_federated_labels
from detection.evaluation.coco_backends import Backend, accumulate, choose_backend, summarize
from detection.evaluation.coco_results import (
    iou_types_of,
    match_results,
    read_results,
    table_of_results,
)
from detection.evaluation.detection_table import (
    DetectionRows,
    DetectionTable,
    IoUType,
    table_of_detections,
)
from detection.evaluation.ground_truth import GroundTruth, read_ground_truth
from detection.evaluation.lvis_ap import LVIS_SUMMARY, check_lvis, score_lvis
from detection.evaluation.report import write_pr_curves
from detection.evaluation.voc_ap import score_protocols
from detection.structures import DetectionBatch, Detections
from engine.errors import UserError
from engine.files import write_file
from engine.run_files import DETECTIONS_FILE, SCORES_FILE

# in the order of COCOeval.summarize
SUMMARY = (
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large"),
)
# indices into the last two axes of `Accumulated.precision`: all areas; up to 100 detections
_ALL_AREAS, _MOST_DETECTIONS = 0, 2


@dataclass(frozen=True)
class CocoScore:
    """The scores of boxes or of masks.

    metrics: the twelve numbers of `SUMMARY` and `ap/<class>` in [0, 1], NaN if there is no such
    object; `num_images`, `num_detections`; those of `score_protocols` and `score_lvis`. precision:
    (T, R, K) for all areas and up to 100 detections per image, NaN for a class without objects.
    class_names: in ascending order of category id. backend: the package that computed COCO's
    numbers. note: lines on what was scored, shown with the table.
    """

    metrics: dict[str, float]
    precision: np.ndarray
    class_names: tuple[str, ...]
    iou_type: IoUType
    backend: Backend
    note: str

    @property
    def has_objects(self) -> bool:
        """Whether there are ground-truth objects; without any, AP is undefined."""
        return not np.isnan(self.precision).all()

    def table(self) -> Group:
        """Return the summary and the AP of every class, in percent, for the console."""
        if not self.has_objects:
            return Group(self.note)
        kind = "boxes" if self.iou_type == "bbox" else "masks"
        summary = _table(
            f"COCO AP and AR of {kind}, in percent, by {self.backend}", SUMMARY, self.metrics
        )
        # "voc07_map", but not "voc07_ap/<class>" of a class with such a name
        others = [key for key in self.metrics if key.endswith("_map") and "/" not in key]
        more = (
            [_table("mAP by other protocols, in percent", others, self.metrics)] if others else []
        )
        if "lvis_ap" in self.metrics:
            title = f"LVIS AP of {kind}, in percent, by hotcoco"
            more.append(_table(title, LVIS_SUMMARY, self.metrics))
        keys = [f"ap/{name}" for name in self.class_names]
        return Group(summary, *more, self.note, _table("AP by class", keys, self.metrics))


@dataclass(frozen=True)
class CocoReport:
    """The scores of boxes, of masks, or of both; then masks' metrics have the prefix `mask_`."""

    scores: tuple[CocoScore, ...]

    @property
    def metrics(self) -> dict[str, float]:
        """All metrics by name; see `CocoScore`."""
        first, *others = self.scores
        return first.metrics | {
            f"mask_{name}": value
            for score in others
            for name, value in score.metrics.items()
            if name not in ("num_images", "num_detections")
        }

    def table(self) -> Group:
        """Return summaries and the AP of every class, in percent, for the console."""
        return Group(*(score.table() for score in self.scores))

    def write(self, directory: Path) -> None:
        """Write metrics.json, pr_curves.png, and mask_pr_curves.png if both were scored.

        Undefined numbers are null in metrics.json. Its `engine` is the package that computed COCO's
        numbers.
        """
        numbers = {k: None if math.isnan(v) else v for k, v in self.metrics.items()}
        metrics = {**numbers, "engine": self.scores[0].backend}
        text = json.dumps(metrics, indent=2, ensure_ascii=False)
        write_file(directory / SCORES_FILE, f"{text}\n")
        # not strict: there may be only one score
        for score, prefix in zip(self.scores, ("", "mask_"), strict=False):
            path = directory / f"{prefix}pr_curves.png"
            write_pr_curves(path, score.precision, score.class_names)


def _table(title: str, keys: Sequence[str], metrics: Mapping[str, float]) -> Table:
    cells = []
    for key in keys:
        value = metrics[key]
        text = "-" if math.isnan(value) else f"{100 * value:.1f}"
        cells.append((key.removeprefix("ap/"), text))
    return pairs_table(title, cells)


def score_file(
    path: Path | str,
    annotations: Path | str,
    *,
    named_images: bool = False,
    backend: BackendChoice = "auto",
    protocols: Sequence[ApProtocol] = (),
) -> CocoReport:
    """Score the boxes and masks of a COCO results file.

    Args:
        path: the results.
        annotations: the COCO JSON with their ground truth.
        named_images: score only images with results. By COCO's rule all annotated images are
            scored, and those without results count as images without detections.
        backend: the package that computes COCO's numbers; `auto` is pycocotools here, because the
            numbers may be published.
        protocols: other protocols: VOC's and ILSVRC's for boxes, LVIS's for boxes and masks.

    Raises:
        UserError: a file cannot be read; a result is malformed, or its image or category is not
            annotated; a protocol needs boxes and there are none, or is LVIS's and the annotations
            are not; the backend is not installed.
    """
    chosen = choose_backend(backend, final=True)
    check_lvis(protocols)
    results = read_results(path)
    iou_types = iou_types_of(results)
    if "bbox" not in iou_types and _without_lvis(protocols):
        raise UserError(f"{path}: expected boxes with evaluation.protocols, got masks")
    # Masks are required if the results have only masks. If they have boxes as well, annotations
    # without masks are fine: then boxes are scored alone.
    need_masks: Literal[True, "if any"] = "if any" if "bbox" in iou_types else True
    ground_truth = read_ground_truth(annotations, with_masks="segm" in iou_types and need_masks)
    if "lvis" in protocols:
        ground_truth = replace(ground_truth, federated=read_federated_labels(annotations))
    matches = match_results(results, ground_truth, source=str(path))
    named = set(matches.image_ids.tolist())
    # if the file has no detections, score all images: the result is 0 instead of an error
    if named_images and named:
        ground_truth = ground_truth.within(named)
    lines = [*matches.notes]
    if unnamed := len(ground_truth.image_ids) - len(named):
        lines.append(
            f"{unnamed} annotated images without results are scored as images without detections"
        )
    if "segm" in iou_types and not ground_truth.with_masks:
        iou_types = ("bbox",)
        lines.append("masks of the results are not scored: the annotations have no masks")
    scores = []
    for iou_type in iou_types:
        found, notes = table_of_results(
            results, matches, ground_truth, iou_type=iou_type, source=str(path)
        )
        score = _score(
            found,
            ground_truth,
            iou_type=iou_type,
            protocols=protocols,
            backend=chosen,
            notes=[*lines, *notes],
        )
        scores.append(score)
    return CocoReport(tuple(scores))


def _score(
    found: DetectionTable,
    ground_truth: GroundTruth,
    *,
    iou_type: IoUType,
    protocols: Sequence[ApProtocol],
    backend: Backend,
    notes: Sequence[str] = (),
) -> CocoScore:
    """Score the detections in the images of `ground_truth`; other detections are ignored."""
    found = found.within(ground_truth.image_ids)
    accumulated = accumulate(found, ground_truth, iou_type=iou_type, backend=backend)
    precision = accumulated.precision[..., _ALL_AREAS, _MOST_DETECTIONS]
    # pycocotools writes -1 for undefined values
    precision = np.where(precision < 0, np.nan, precision)
    names = tuple(ground_truth.names.values())
    metrics: dict[str, float] = {
        name: float(value) if value >= 0 else math.nan
        for name, value in zip(SUMMARY, summarize(accumulated, iou_type), strict=True)
    }
    # A class is NaN at all thresholds or at none, so a plain mean is right.
    per_class = precision.mean(axis=(0, 1))
    metrics |= {f"ap/{name}": float(ap) for name, ap in zip(names, per_class, strict=True)}
    metrics |= {"num_images": len(ground_truth.image_ids), "num_detections": len(found.scores)}
    if iou_type == "bbox":
        metrics |= score_protocols(found, ground_truth, protocols=_without_lvis(protocols))
    if "lvis" in protocols:
        metrics |= score_lvis(found, ground_truth, iou_type=iou_type)
    lines = _note(found, ground_truth, iou_type=iou_type)
    note = "\n".join([*lines, *notes])
    return CocoScore(metrics, precision, names, iou_type, backend, note)


def _without_lvis(protocols: Sequence[ApProtocol]) -> list[ApProtocol]:
    """Return the protocols that score boxes alone."""
    return [protocol for protocol in protocols if protocol != "lvis"]


def _note(found: DetectionTable, ground_truth: GroundTruth, *, iou_type: IoUType) -> list[str]:
    """Return lines on what was scored, and on deviations from COCO's own files."""
    table, rows, num_images = ground_truth.table, ground_truth.rows, len(ground_truth.image_ids)
    num_named = len(np.unique(found.image_ids))
    lines = [f"{len(found.scores)} detections in {num_named} of {num_images} images"]
    if unscored := len(ground_truth.images.ids) - num_images:
        lines.append(f"{unscored} annotated images without results are not scored")
    if table.is_crowd[rows].all():  # also if there are no rows
        got = f"only {len(rows)} crowd regions" if len(rows) else "no annotations"
        lines.append(f"nothing to score: {ground_truth.path} has {got} in these images")
    for name, is_missing in (("area", table.lacks_area), ("iscrowd", table.lacks_iscrowd)):
        if count := int(is_missing[rows].sum()):
            lines.append(f"{name} was missing for {count} objects and filled in")
    if iou_type == "segm" and (empty := int((~table.segmentations.are_there[rows]).sum())):
        lines.append(f"{empty} crowd regions have no readable mask and are treated as empty")
    if difficult := int(table.is_difficult[rows].sum()):
        lines.append(f"{difficult} difficult objects count like any other in COCO's numbers")
    if ignored := int(table.is_ignored[rows].sum()):
        lines.append(f"{ignored} objects marked `ignore` count like any other in COCO's numbers")
    return lines


class CocoEvaluator:
    """Collects detections of a validation set, in any order and from any number of processes.

    Args:
        ground_truth: ground truth of the validation set.
        classes: the map between labels and category ids.
        image_ids: the images that `compute` expects, each exactly once.
        allow_missing: whether images may be missing, because bad images are skipped; they count as
            images without detections.
        protocols: other protocols, as for `score_file`; with LVIS's, its AP is the main metric.
        with_masks: whether to score masks too; mask AP is then the main metric.
        backend: the package that computes COCO's numbers.
        notes: lines that are shown with the table.
    """

    def __init__(
        self,
        ground_truth: GroundTruth,
        classes: ClassMap,
        image_ids: Iterable[int],
        *,
        allow_missing: bool = False,
        protocols: Sequence[ApProtocol] = (),
        with_masks: bool = False,
        backend: Backend = "pycocotools",
        notes: Sequence[str] = (),
    ) -> None:
        main_metric = "lvis_ap" if "lvis" in protocols else "ap"
        self.main_metric = f"mask_{main_metric}" if with_masks else main_metric
        self._iou_types: tuple[IoUType, ...] = ("bbox", "segm") if with_masks else ("bbox",)
        self._ground_truth = ground_truth.within(image_ids)
        self._classes = classes
        self._allow_missing = allow_missing
        self._protocols = protocols
        self._backend = backend
        self._notes = notes
        self._gathered: list[DetectionRows] = []
        self._report: CocoReport | None = None

    def update(self, batch: DetectionBatch, predictions: Sequence[Detections]) -> None:
        """Add one batch with a `Detections` per image, in the order of the batch."""
        for image_id, found in zip(batch.image_ids.tolist(), predictions, strict=True):
            # one array (N, 6) per image, which is cheap to pickle; float32 holds labels exactly
            columns = [found.boxes, found.scores[:, None], found.labels[:, None].float()]
            rows = torch.cat(columns, dim=1).cpu().numpy()
            self._gathered.append(DetectionRows(image_id, rows, found.masks))

    def state(self) -> list[DetectionRows]:
        """Return the detections of this process."""
        return self._gathered

    def compute(self, states: Sequence[list[DetectionRows]]) -> dict[str, float]:
        """Score the union of the states of all processes; see `CocoScore.metrics`."""
        gathered = [row for state in states for row in state]
        # sorted by image, so that results do not depend on the number of processes
        self._gathered = sorted(gathered, key=lambda row: row[0])
        self._check_images([image_id for image_id, *_ in self._gathered])
        scores = [
            _score(
                table_of_detections(
                    self._gathered, self._classes, self._ground_truth, iou_type=iou_type
                ),
                self._ground_truth,
                iou_type=iou_type,
                protocols=self._protocols,
                backend=self._backend,
                notes=self._notes,
            )
            for iou_type in self._iou_types
        ]
        self._report = CocoReport(tuple(scores))
        return self._report.metrics

    def write(self, directory: Path) -> None:
        """Write `CocoReport`'s files and detections.json (COCO results, original ids)."""
        self._reported().write(directory)
        lines = ",\n".join(json.dumps(result) for result in self._results())
        write_file(directory / DETECTIONS_FILE, f"[{lines}]\n")

    def table(self) -> Group:
        """Return the summary and the AP of every class for the console."""
        return self._reported().table()

    def _reported(self) -> CocoReport:
        assert self._report is not None, "call compute() first"
        return self._report

    def _results(self) -> Iterator[dict[str, Any]]:
        for image_id, columns, masks in self._gathered:
            rows = torch.from_numpy(columns)
            detections = Detections(rows[:, :4], rows[:, 4], rows[:, 5].long(), masks)
            yield from detections_to_coco(image_id, detections, self._classes)

    def _check_images(self, got: list[int]) -> None:
        """Check that each expected image occurs once; else the numbers would be wrong."""
        expected = set(self._ground_truth.image_ids.tolist())
        images = f"expected {len(expected)} images, each once, got {len(got)}"
        assert len(got) == len(set(got)), f"{images}: some are repeated"
        assert set(got) <= expected, f"{images}: some are unexpected"
        assert self._allow_missing or len(got) == len(expected), f"{images}: some are missing"
