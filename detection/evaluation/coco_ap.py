"""COCO average precision: what is scored, its numbers, table and files. The engines do the rest.

K categories, T=10 IoU thresholds, R=101 recall thresholds.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Group
from rich.table import Table

from backbones.score_tables import pairs_table
from detection.config import EngineChoice, Protocol
from detection.data.coco import ClassMap, detections_to_coco
from detection.evaluation.coco_engines import Engine, accumulate, choose_engine, summarize
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
from detection.evaluation.report import write_pr_curves
from detection.evaluation.voc_ap import score_protocols
from detection.structures import DetectionBatch, Detections
from engine.errors import UserError
from engine.files import write_file

# COCOeval.summarize's order
SUMMARY = (
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large"),
)
_ALL_AREAS, _MOST_DETECTIONS = 0, 2


@dataclass(frozen=True)
class CocoScore:
    """The outcome of one scoring.

    metrics: `SUMMARY`'s twelve numbers and `ap/<class>` in [0, 1], NaN where there is no such
    object; `num_images`, `num_detections`; those of `score_protocols`. precision: (T, R, K) over
    all areas with 100 detections an image, NaN for a class without objects. class_names: by rising
    category id. engine: who computed it. note: what was scored, for the reader of the table.
    """

    metrics: dict[str, float]
    precision: np.ndarray
    class_names: tuple[str, ...]
    iou_type: IoUType
    engine: Engine
    note: str

    @property
    def has_objects(self) -> bool:
        """Whether there was something to find: no number of AP exists without."""
        return not np.isnan(self.precision).all()

    def table(self) -> Group:
        """Return the summary and the AP of every class, in percent, for the console."""
        if not self.has_objects:
            return Group(self.note)
        kind = "boxes" if self.iou_type == "bbox" else "masks"
        summary = _table(
            f"COCO AP and AR of {kind}, in percent, by {self.engine}", SUMMARY, self.metrics
        )
        others = [key for key in self.metrics if key.endswith("_map") and "/" not in key]
        more = [_table("mAP by other rules, in percent", others, self.metrics)] if others else []
        keys = [f"ap/{name}" for name in self.class_names]
        return Group(summary, *more, self.note, _table("AP by class", keys, self.metrics))


@dataclass(frozen=True)
class CocoReport:
    """The score of boxes, of masks, or of both; the names of the second's numbers have `mask_`."""

    scores: tuple[CocoScore, ...]

    @property
    def metrics(self) -> dict[str, float]:
        """All numbers by name; see `CocoScore`."""
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
        """Write metrics.json (null where a number does not exist), pr_curves.png, and masks'.

        `engine` in metrics.json is the name of the package that computed COCO's numbers.
        """
        numbers = {k: None if math.isnan(v) else v for k, v in self.metrics.items()}
        metrics = {**numbers, "engine": self.scores[0].engine}
        text = json.dumps(metrics, indent=2, ensure_ascii=False)
        write_file(directory / "metrics.json", f"{text}\n")
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
    engine: EngineChoice = "auto",
    protocols: Sequence[Protocol] = (),
) -> CocoReport:
    """Score a COCO results file: boxes, masks or both, whichever it has.

    Args:
        path: the results.
        annotations: the COCO JSON that they belong to.
        named_images: score only the images that the results name. COCO's rule is to score all that
            are annotated; those without a result then count as images without detections.
        engine: who computes COCO's numbers; `auto`, as for all that is to be reported, pycocotools.
        protocols: further rules to score boxes by.

    Raises:
        UserError: a file cannot be read; a result is malformed, or of an image or category that
            the annotations lack; protocols without boxes; an engine that is not installed.
    """
    chosen = choose_engine(engine, final=True)
    results = read_results(path)
    iou_types = iou_types_of(results)
    if "bbox" not in iou_types and protocols:
        raise UserError(f"{path}: expected boxes with evaluation.protocols, got masks")
    boxes_too: Literal[True, "if any"] = "if any" if "bbox" in iou_types else True
    ground_truth = read_ground_truth(annotations, with_masks="segm" in iou_types and boxes_too)
    matches = match_results(results, ground_truth, source=str(path))
    named = set(matches.image_ids.tolist())
    # a file without detections scores 0, not nothing
    if named_images and named:
        ground_truth = ground_truth.within(named)
    lines = [*matches.notes]
    if unnamed := len(ground_truth.image_ids) - len(named):
        lines.append(
            f"{unnamed} annotated images that the results do not name are scored as images without "
            "detections"
        )
    if "segm" in iou_types and not ground_truth.with_masks:
        iou_types = ("bbox",)
        lines.append("masks of the results are not scored: the annotations have none")
    scores = []
    for iou_type in iou_types:
        found, notes = table_of_results(
            results, matches, ground_truth, iou_type=iou_type, source=str(path)
        )
        score = _score(
            found,
            ground_truth,
            iou_type=iou_type,
            protocols=protocols if iou_type == "bbox" else (),
            engine=chosen,
            notes=[*lines, *notes],
        )
        scores.append(score)
    return CocoReport(tuple(scores))


def _score(
    found: DetectionTable,
    ground_truth: GroundTruth,
    *,
    iou_type: IoUType,
    protocols: Sequence[Protocol],
    engine: Engine,
    notes: Sequence[str] = (),
) -> CocoScore:
    """Score the images of `ground_truth`; detections in others do not count."""
    found = found.within(ground_truth.image_ids)
    accumulated = accumulate(found, ground_truth, iou_type=iou_type, engine=engine)
    precision = accumulated.precision[..., _ALL_AREAS, _MOST_DETECTIONS]
    precision = np.where(precision < 0, np.nan, precision)
    names = tuple(ground_truth.names.values())
    metrics: dict[str, float] = {
        name: float(value) if value >= 0 else math.nan
        for name, value in zip(SUMMARY, summarize(accumulated, iou_type), strict=True)
    }
    # a class is absent as a whole or not at all, so that a plain mean keeps its NaN
    per_class = precision.mean(axis=(0, 1))
    metrics |= {f"ap/{name}": float(ap) for name, ap in zip(names, per_class, strict=True)}
    metrics |= {"num_images": len(ground_truth.image_ids), "num_detections": len(found.scores)}
    metrics |= score_protocols(found, ground_truth, protocols=protocols)
    lines = _note(found, ground_truth, iou_type=iou_type)
    note = "\n".join([*lines, *notes])
    return CocoScore(metrics, precision, names, iou_type, engine, note)


def _note(found: DetectionTable, ground_truth: GroundTruth, *, iou_type: IoUType) -> list[str]:
    """Return lines on what was scored, and what of it was not as COCO's files have it."""
    table, rows, num_images = ground_truth.table, ground_truth.rows, len(ground_truth.image_ids)
    num_named = len(np.unique(found.image_ids))
    lines = [f"{len(found.scores)} detections in {num_named} of {num_images} images"]
    if unscored := len(ground_truth.images.ids) - num_images:
        lines.append(f"{unscored} annotated images that the results do not name are not scored")
    if table.is_crowd[rows].all():
        got = f"{len(rows)} crowd regions alone" if len(rows) else "no annotations"
        lines.append(f"nothing to score: {ground_truth.path} has {got} in these images")
    for name, is_missing in (("area", table.lacks_area), ("iscrowd", table.lacks_iscrowd)):
        if count := int(is_missing[rows].sum()):
            lines.append(f"{name} was missing, and filled in, for {count} objects")
    if iou_type == "segm" and (empty := int((~table.segmentations.are_there[rows]).sum())):
        lines.append(f"{empty} crowd regions have no mask that can be read, and cover nothing")
    if difficult := int(table.is_difficult[rows].sum()):
        lines.append(f"{difficult} difficult objects count like any other in COCO's numbers")
    if ignored := int(table.is_ignored[rows].sum()):
        lines.append(f"{ignored} objects marked `ignore` count like any other in COCO's numbers")
    return lines


class CocoEvaluator:
    """Gathers detections of a validation set, in any order and over any number of processes.

    Args:
        ground_truth: of the validation set.
        classes: the map between labels and category ids.
        image_ids: the images of which `compute` expects detections, each once.
        allow_missing: images may be missing (skipped by a stated policy); they then count as
            images without detections.
        protocols: further rules to score boxes by.
        with_masks: score masks too, and take their AP for the main metric.
        engine: who computes COCO's numbers.
    """

    def __init__(
        self,
        ground_truth: GroundTruth,
        classes: ClassMap,
        image_ids: Iterable[int],
        *,
        allow_missing: bool = False,
        protocols: Sequence[Protocol] = (),
        with_masks: bool = False,
        engine: Engine = "pycocotools",
    ) -> None:
        self.main_metric = "mask_ap" if with_masks else "ap"
        self._iou_types: tuple[IoUType, ...] = ("bbox", "segm") if with_masks else ("bbox",)
        self._ground_truth = ground_truth.within(image_ids)
        self._classes = classes
        self._allow_missing = allow_missing
        self._protocols = protocols
        self._engine = engine
        self._gathered: list[DetectionRows] = []
        self._report: CocoReport | None = None

    def update(self, batch: DetectionBatch, predictions: Sequence[Detections]) -> None:
        """Add one batch: a `Detections` for each of its images, in order."""
        for image_id, found in zip(batch.image_ids.tolist(), predictions, strict=True):
            columns = [found.boxes, found.scores[:, None], found.labels[:, None].float()]
            rows = torch.cat(columns, dim=1).cpu().numpy()
            self._gathered.append(DetectionRows(image_id, rows, found.masks))

    def state(self) -> list[DetectionRows]:
        """Return what this process has gathered."""
        return self._gathered

    def compute(self, states: Sequence[list[DetectionRows]]) -> dict[str, float]:
        """Score the union of the states; see `CocoScore.metrics`."""
        gathered = [row for state in states for row in state]
        self._gathered = sorted(gathered, key=lambda row: row[0])
        self._check_images([image_id for image_id, *_ in self._gathered])
        scores = [
            _score(
                table_of_detections(
                    self._gathered, self._classes, self._ground_truth, iou_type=iou_type
                ),
                self._ground_truth,
                iou_type=iou_type,
                protocols=self._protocols if iou_type == "bbox" else (),
                engine=self._engine,
            )
            for iou_type in self._iou_types
        ]
        self._report = CocoReport(tuple(scores))
        return self._report.metrics

    def write(self, directory: Path) -> None:
        """Write `CocoReport`'s files and detections.json (COCO results, original ids)."""
        self._reported().write(directory)
        lines = ",\n".join(json.dumps(result) for result in self._results())
        write_file(directory / "detections.json", f"[{lines}]\n")

    def table(self) -> Group:
        """Return the summary and the AP of every class for the console."""
        return self._reported().table()

    def _reported(self) -> CocoReport:
        assert self._report is not None, "compute() comes first"
        return self._report

    def _results(self) -> Iterator[dict[str, Any]]:
        for image_id, columns, masks in self._gathered:
            rows = torch.from_numpy(columns)
            detections = Detections(rows[:, :4], rows[:, 4], rows[:, 5].long(), masks)
            yield from detections_to_coco(image_id, detections, self._classes)

    def _check_images(self, got: list[int]) -> None:
        """Each expected image is there once, or the numbers would mean something else."""
        expected = set(self._ground_truth.image_ids.tolist())
        images = f"expected {len(expected)} images, each once, got {len(got)}"
        assert len(got) == len(set(got)), f"{images}: some more than once"
        assert set(got) <= expected, f"{images}: some that nobody asked for"
        assert self._allow_missing or len(got) == len(expected), f"{images}: some are missing"
