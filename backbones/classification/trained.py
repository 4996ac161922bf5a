"""What a run leaves: read it back, score an ensemble of such, write the backbone for detectors."""

import json
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import cast

import torch
from torch import nn

from backbones.classification.config import SCHEMAS, ClassificationConfig
from backbones.classification.structures import LabelledBatch
from backbones.classification.task import ClassificationTask, build_classifier
from backbones.metadata import writing_nothing
from backbones.trained_runs import read_run
from backbones.weights import listing
from engine.checkpoint import write_safetensors
from engine.distributed import pick_device
from engine.errors import UserError
from engine.loader import read_batches, split_batches, training_batches
from engine.log import RunLog
from engine.paths import status_of
from engine.precision import autocast
from engine.run_folder import EXPORT


def load_trained(paths: Sequence[Path], overrides: Sequence[str] = ()) -> ClassificationTask:
    """Read one classifier, or several as an ensemble whose probabilities are averaged.

    Args:
        paths: run folders, checkpoints or .safetensors files, at least one. Data and testing are as
            the first one's config says.
        overrides: `a.b.c=value`, changes to each config.

    Raises:
        UserError: a file is missing, damaged, no classifier's, or of other classes than the first.
    """
    tasks = [_load(path, overrides) for path in paths]
    first, *rest = tasks
    for path, task in zip(paths[1:], rest, strict=True):
        if task.class_names != first.class_names:
            expected, got = listing(first.class_names), listing(task.class_names)
            raise UserError(f"{path}: expected the classes of {paths[0]} ({expected}), got {got}")
    others = [task.model for task in rest]
    return ClassificationTask(first.config, first.model, first.class_names, ensemble=others)


def _load(path: Path, overrides: Sequence[str]) -> ClassificationTask:
    run = read_run(
        path,
        overrides,
        schemas=SCHEMAS,
        kind=ClassificationConfig,
        build=lambda config, count: build_classifier(config, num_classes=count),
        what="classifier",
    )
    return ClassificationTask(writing_nothing(run.config, overrides), run.model, run.class_names)


def export_backbone(
    output: Path, *, metrics: Mapping[str, float], device: str | None = None
) -> None:
    """Write `backbone.safetensors` for `model.backbone.weights`: the network without its `fc`.

    Its batch-norm statistics are computed anew when the config says so; a detector that freezes
    them then has those of the final weights. model.safetensors stays as it is, and so does a file
    that was made after it.

    Args:
        output: the folder of a finished run.
        metrics: its accuracy, kept beside the weights with class names, pixels and recipe.
        device: as `--device`; None picks a GPU when there is one.

    Raises:
        UserError: the run has not finished, or its training pictures are gone.
    """
    log = RunLog(None, is_main=True)
    path = output / "backbone.safetensors"
    if _is_newer(path, output / EXPORT):
        log.note(f"{path}: made from these weights already")
        return
    task = load_trained([output])
    export = task.config.export
    if export.recompute_norms and task.config.model.backbone.norm == "batch":
        task.model.to(pick_device(device))
        count = recompute_norms(task, limit=export.num_pictures)
        log.note(f"batch-norm statistics computed anew over {count} training pictures")
    state = task.model.backbone.state_dict()
    kept = {name: value for name, value in state.items() if not name.startswith("fc.")}
    scores = {name: value for name, value in metrics.items() if "/" not in name}
    write_safetensors(path, kept, {**task.metadata(), "metrics": json.dumps(scores)})
    log.note(f"backbone for detectors: {path}")


def _is_newer(path: Path, source: Path) -> bool:
    made, read = status_of(path), status_of(source)
    return made is not None and read is not None and made.st_mtime_ns > read.st_mtime_ns


@torch.no_grad()
def recompute_norms(task: ClassificationTask, *, limit: int) -> int:
    """Replace the moving statistics of batch norm by means over training pictures (section 3.4).

    Whole training batches are used, so that each counts the same; pictures are cut and mirrored as
    in training, but neither mixed nor erased, since detectors see whole pictures.

    Returns:
        The number of pictures: at most `limit`, but at least one batch.
    """
    data, loop, model = task.train_data(), task.config.loop, task.model
    device = model.pixel_mean.device
    size = min(loop.batch_size // loop.accumulate, len(data))
    batches = training_batches(data.groups, batch_size=size, seed=task.config.seed)
    count = max(min(limit, len(data)) // size, 1)
    plan = split_batches(data, islice(batches, count), rank=0, world_size=1, accumulate=1)
    norms = [each for each in model.modules() if isinstance(each, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's way to ask for the plain mean over batches
    was_training = model.training
    model.train()
    deliveries = read_batches(data, plan, config=task.config.loader, device=device, substitute=True)
    for delivery in deliveries:
        with autocast(device, loop.precision):
            model(task.training_pixels(cast(LabelledBatch, delivery.batch)))
    model.train(was_training)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return count * size
