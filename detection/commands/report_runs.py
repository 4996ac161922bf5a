"""Reports that need the network of a run: of classifiers and localizers, and of proposals."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from detection.commands.tasks import load_task
from detection.evaluation.ground_truth import GroundTruth
from detection.evaluation.proposal_recall import proposal_recall
from engine.backend_settings import backend_settings
from engine.distributed import process_group
from engine.errors import EvaluationError
from engine.evaluate import raise_evaluation_failure, run_evaluation
from engine.log import RunLog
from engine.step import move_task

if TYPE_CHECKING:
    from backbones.classification.task import ClassificationTask
    from detection.localization.base_task import LocalizationBaseTask
    from detection.report.detection_report import Report


def recall_of_proposals(
    run: Path,
    overrides: Sequence[str],
    ground_truth: GroundTruth,
    *,
    device: torch.device,
    log: RunLog,
) -> dict[str, Any]:
    """Find the proposals of a detector in all images and return their recall.

    Raises:
        UserError: the run has no weights, or an image is bad.
    """
    from detection.tasks.detection import DetectionTask
    from detection.tasks.proposals import predict_proposals

    task = load_task([run], overrides)
    assert isinstance(task, DetectionTask)
    found = predict_proposals(task, device=device, progress=log.progress)
    ids = [image for image in ground_truth.image_ids.tolist() if image in found]
    return proposal_recall([found[image] for image in ids], ground_truth.within(ids))


def report_on_network(
    run: Path, overrides: Sequence[str], *, device: str | None, log: RunLog
) -> "Report":
    """Evaluate a classifier or a localizer on its validation images, and analyse the result.

    Raises:
        UserError: the run has no weights, or its images are bad.
    """
    from backbones.classification.task import ClassificationTask

    task = load_task([run], overrides)
    config = task.config
    with (
        process_group(device, timeout_s=config.loop.collective_timeout_s) as world,
        backend_settings(config.loop, world.device),
    ):
        move_task(task, config.loop, world.device)
        try:
            evaluator = run_evaluation(task, config, world, log).evaluator
        except EvaluationError as error:
            raise_evaluation_failure(error)
    if isinstance(task, ClassificationTask):
        return _of_classifier(task, evaluator.state(), log)
    return _of_localizer(task, evaluator.state(), log)  # type: ignore[arg-type]


def _of_classifier(task: "ClassificationTask", state: list[Any], log: RunLog) -> "Report":
    from backbones.classification.folder import FolderDataset
    from backbones.classification.metrics import merge_records
    from backbones.images import read_image
    from detection.report.classification_report import classification_report

    data = task.val_data()
    if isinstance(data, FolderDataset):
        folder = Path(task.config.data.root) / "val"
        name_of, load = data.file_name, lambda image: read_image(folder / data.file_name(image))
    else:
        name_of, load = "image {}".format, data.pixels.__getitem__
    return classification_report(
        merge_records(state),
        task.class_names,
        file_name=name_of,
        load=load,
        progress=log.progress,
    )


def _of_localizer(task: "LocalizationBaseTask", state: list[Any], log: RunLog) -> "Report":
    from detection.report.localization_report import localization_report

    return localization_report(state, task.val_data().images, progress=log.progress)
