"""Planning and measuring the runs of the CIFAR-10 study.

Errors are fractions in [0, 1] here. The training error is measured on the minibatches of the
training loop (augmented images, batch norm with batch statistics), as in the paper's curves.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from backbones.classification.config import SCHEMAS, ClassificationConfig
from engine.config import load_config
from engine.errors import UserError
from tools.lab.planned_runs import PlannedRun
from tools.lab.study.config import ScaleConfig
from tools.lab.study.training import chosen_seeds, curve_of, override, training_seconds

TAIL_FRACTION = 0.1
"""Fraction of the log lines, at the end of a run, that the training error is averaged over."""


@dataclass(frozen=True)
class Run(PlannedRun[ClassificationConfig]):
    """A training run of the study: one network with one seed."""

    network: str
    seed: int


@dataclass(frozen=True)
class Measurement:
    """Errors and training time of a finished run.

    train_error: mean over the last tenth of the log lines. test_error: top-1 error of the final
    evaluation. seconds: training time without evaluations and checkpoints. train_curve, test_curve:
    (step, error) pairs.
    """

    train_error: float
    test_error: float
    seconds: float
    train_curve: list[tuple[int, float]]
    test_curve: list[tuple[int, float]]


def plan_runs(
    scale: ScaleConfig,
    *,
    configs: Path,
    output: Path,
    seeds: Sequence[int] | None = None,
    data: str | None = None,
) -> list[Run]:
    """Return the runs of a scale, ordered by network, then by seed.

    Args:
        scale: networks, overrides and seeds.
        configs: folder that the paths of `scale.networks` are relative to.
        output: parent of the run folders, `<network>-seed<k>`.
        seeds: replaces the seeds of the scale.
        data: replaces `data.root` of the configs.

    Raises:
        UserError: a config file is missing or invalid, or its `model.backbone.kind` is not
                the network that the scale names.
    """
    runs = []
    root = [] if data is None else [override("data.root", data)]
    for network, file in scale.networks.items():
        for seed in chosen_seeds(scale.seeds, seeds):
            overrides = [*scale.overrides, f"seed={seed}", *root]
            config = load_config(configs / file, overrides, schemas=SCHEMAS)
            assert isinstance(config, ClassificationConfig)
            kind = config.model.backbone.kind
            if kind != network:
                raise UserError(
                    f"{configs / file}: model.backbone.kind: expected {network}, got {kind}"
                )
            runs.append(Run(config, output / f"{network}-seed{seed}", network, seed))
    return runs


def measure(run: Run) -> Measurement:
    """Read the errors, curves and times that a finished run has logged.

    Raises:
        UserError: its metrics.jsonl is missing or damaged, or holds no errors.
    """
    train_curve = curve_of(run, "train", "train_error")
    test_curve = curve_of(run, "eval", "top1_error")
    # at least one line
    count = math.ceil(len(train_curve) * TAIL_FRACTION)
    return Measurement(
        train_error=statistics.fmean(error for _, error in train_curve[-count:]),
        test_error=test_curve[-1][1],
        seconds=training_seconds(run),
        train_curve=train_curve,
        test_curve=test_curve,
    )
