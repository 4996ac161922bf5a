"""Trained detectors and ensembles of them, read from runs or weights files."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from backbones.metadata import read_category_ids
from backbones.trained_runs import read_run
from backbones.weights import listing
from detection.config import SCHEMAS, DetectionConfig
from detection.data.coco import ClassMap
from detection.models.build import build_detector
from detection.models.faster_rcnn import FasterRCNN
from engine.errors import UserError


@dataclass(frozen=True)
class TrainedDetector:
    """A trained detector or an ensemble: config, classes, and networks in eval mode on the CPU.

    config: of the first network. others: the other networks of an ensemble.
    """

    config: DetectionConfig
    classes: ClassMap
    model: FasterRCNN
    others: tuple[FasterRCNN, ...] = ()

    @property
    def networks(self) -> tuple[FasterRCNN, ...]:
        """All networks, at least one."""
        return (self.model, *self.others)


def load_trained(path: Path | str, overrides: Sequence[str] = ()) -> TrainedDetector:
    """Read a run folder (its model.safetensors), a checkpoint or a .safetensors file.

    Args:
        path: the folder or file. If a checkpoint has averaged weights, they are used.
        overrides: `a.b.c=value`, changes to the config in the file.

    Raises:
        UserError: the file is missing, damaged or not a detector, or an override is wrong.
    """
    run = read_run(
        Path(path),
        overrides,
        schemas=SCHEMAS,
        kind=DetectionConfig,
        build=build_detector,
        needed=("category_ids",),
        what="detector",
    )
    names = run.class_names
    ids = read_category_ids(run.metadata, count=len(names), source=run.path)
    return TrainedDetector(run.config, ClassMap(names, ids), run.model)


def load_ensemble(paths: Sequence[Path | str], overrides: Sequence[str] = ()) -> TrainedDetector:
    """Read one detector, or several as an ensemble; see `InferencePipeline`.

    Args:
        paths: at least one, each as for `load_trained`. The first one's config gives the data, the
            image sizes, the thresholds of detections and the `evaluation` section.
        overrides: changes to each config.

    Raises:
        UserError: as for `load_trained`, or a detector does not fit the first one: other classes,
            another padding, or masks in one of them alone.
    """
    if not paths:
        raise UserError("expected the path of a run, got none")
    first, *rest = [load_trained(path, overrides) for path in paths]
    for path, other in zip(paths[1:], rest, strict=True):
        _check_fits(other, first, path=path, first_path=paths[0])
    return TrainedDetector(
        first.config, first.classes, first.model, tuple(other.model for other in rest)
    )


def _check_fits(
    other: TrainedDetector, first: TrainedDetector, *, path: Path | str, first_path: Path | str
) -> None:
    """Raise UserError unless both detectors predict the same things from the same batches."""
    names, expected_names = other.classes.names, first.classes.names
    if names != expected_names:
        pairs = enumerate(zip_longest(names, expected_names, fillvalue="missing"))
        place, (ours, theirs) = next(each for each in pairs if each[1][0] != each[1][1])
        raise UserError(
            f"{path}: expected the classes of {first_path} ({listing(expected_names)}), "
            f"got {listing(names)}; class {place} is {ours}, not {theirs}"
        )
    for key, got, expected in (
        ("task", other.config.task, first.config.task),
        ("data.size_divisor", other.config.data.size_divisor, first.config.data.size_divisor),
        ("model.mask.aligned", other.config.model.mask.aligned, first.config.model.mask.aligned),
    ):
        if got != expected:
            raise UserError(f"{path}: expected {key}={expected} as in {first_path}, got {got}")
