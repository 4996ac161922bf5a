"""Loading of trained classifiers and ensembles, and export of a backbone for detectors."""

import json
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import cast

import torch
from torch import nn

from backbones.classification.config import SCHEMAS, ClassificationConfig
from backbones.classification.structures import ClassificationBatch
from backbones.classification.task import ClassificationTask, build_classifier
from backbones.metadata import without_writes
from backbones.trained_runs import read_run
from backbones.weights import listing
from engine.checkpoint import write_safetensors
from engine.distributed import pick_device
from engine.errors import UserError
from engine.loader import read_batches, split_batches, training_batches
from engine.log import RunLog
from engine.paths import status_of
from engine.precision import autocast
from engine.run_files import BACKBONE_FILE, WEIGHTS_FILE


def load_classifier(paths: Sequence[Path], overrides: Sequence[str] = ()) -> ClassificationTask:
    """Load one classifier, or several as an ensemble with averaged probabilities.

    Args:
        paths: run folders, checkpoints or .safetensors files, at least one. The first one's config
            gives the data and the test-time views.
        overrides: `a.b.c=value` changes to each config.

    Raises:
        UserError: a file is missing, damaged or not a classifier's, or its classes differ from the
            first one's.
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
    return ClassificationTask(without_writes(run.config, overrides), run.model, run.class_names)


def export_backbone(
    output: Path, *, metrics: Mapping[str, float], device: str | None = None
) -> None:
    """Write `backbone.safetensors` for `model.backbone.weights`: the network without its `fc`.

    If the config says so, the batch-norm statistics are recomputed first, so that a detector with
    frozen norms uses statistics of the final weights. model.safetensors is not changed. A
    backbone.safetensors newer than model.safetensors is kept.

    Args:
        output: the folder of a finished run.
        metrics: the run's accuracy, stored in the metadata with class names, pixel normalisation
            and config.
        device: as `--device`; None chooses a GPU if there is one.

    Raises:
        UserError: the run has not finished, or its training images are missing.
    """
    log = RunLog(None, is_main=True)
    path = output / BACKBONE_FILE
    if _is_newer(path, output / WEIGHTS_FILE):
        log.note(f"{path}: already made from these weights")
        return
    task = load_classifier([output])
    export = task.config.export
    backbone = task.config.model.backbone
    if export.recompute_norms and backbone.has_norms and backbone.norm == "batch":
        task.model.to(pick_device(device))
        count = recompute_batch_norm(task, limit=export.num_images)
        log.note(f"batch-norm statistics recomputed over {count} training images")
    state = task.model.backbone.state_dict()
    kept = {name: value for name, value in state.items() if not name.startswith("fc.")}
    scores = {name: value for name, value in metrics.items() if "/" not in name}  # not per class
    write_safetensors(path, kept, {**task.metadata(), "metrics": json.dumps(scores)})
    log.note(f"backbone for detectors: {path}")


def _is_newer(path: Path, source: Path) -> bool:
    ours, theirs = status_of(path), status_of(source)
    return ours is not None and theirs is not None and ours.st_mtime_ns > theirs.st_mtime_ns


@torch.no_grad()
def recompute_batch_norm(task: ClassificationTask, *, limit: int) -> int:
    """Replace batch norm's moving averages by means over training images (section 3.4).

    Only full batches are used, so that all have the same weight. Images are cropped and flipped as
    in training, but not mixed or erased, because detectors see unmixed images.

    Returns:
        The number of images: at most `limit`, but at least one batch.
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
        norm.momentum = None  # in torch, None means the plain mean over batches
    was_training = model.training
    model.train()
    loaded_batches = read_batches(
        data, plan, config=task.config.loader, device=device, substitute=True
    )
    for loaded in loaded_batches:
        with autocast(device, loop.precision):
            model(task.training_pixels(cast(ClassificationBatch, loaded.batch)))
    model.train(was_training)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return count * size
