"""The timed functions: our training step, and a prediction; the operations that a function does."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, TypeVar

import torch
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from backbones.prediction import prepare_for_prediction
from detection.inference.graphed import GraphedDetector
from detection.inference.pipeline import InferencePipeline
from detection.structures import DetectionBatch
from detection.tasks.detection import DetectionTask
from engine.distributed import World
from engine.optim import build_optimizer
from engine.precision import autocast
from engine.schema import LoopConfig, OptimConfig, PrecisionSetting
from engine.step import move_task, training_step, wrap_losses
from engine.task import Batch, Task

Result = TypeVar("Result")

CPU = torch.device("cpu")

LEARNING_RATE = 1e-6
"""Small, so that the random weights hardly change over the rounds."""


def our_step(task: Task, loop: LoopConfig, *, device: torch.device) -> Callable[[Batch], object]:
    """Move the network to the device; return a function that runs one complete training step."""
    move_task(task, loop, device)
    task.model.train()
    losses_of = wrap_losses(task, loop, World(rank=0, size=1, device=device))
    config = OptimConfig(lr=LEARNING_RATE)
    optimizer = build_optimizer(task.model, config, batch_size=loop.batch_size)
    return lambda batch: training_step(
        losses_of, optimizer, [batch], clip_grad_norm=None, stop=False
    )


def our_prediction(
    task: DetectionTask,
    batch: DetectionBatch,
    *,
    precision: PrecisionSetting,
    cuda_graphs: bool = False,
) -> Callable[[], object]:
    """Return a function that detects the objects of each image, as `load_detector` would.

    `task` keeps its network; a copy on the device of `batch` is prepared for prediction.
    """
    device = batch.images.pixels.device
    model = copy.deepcopy(task.model).eval()
    prepare_for_prediction(model, LoopConfig(precision=precision), device=device)
    pipeline = InferencePipeline([model], task.config)
    predict = GraphedDetector(pipeline, device=device).predict if cuda_graphs else pipeline.predict
    return prediction(partial(predict, batch.at_all_scales), autocast(device, precision))


def prediction(
    predict: Callable[[], Result], precision: AbstractContextManager[object]
) -> Callable[[], Result]:
    """Return a function that runs `predict` without gradients, within an `autocast`."""

    def run() -> Result:
        with torch.inference_mode(), precision:
            return predict()

    return run


def operations_of(work: Callable[[], object]) -> int:
    """Return the multiplications and additions of the convolutions and products in `work`."""
    # Without an entry here an operator counts as 0 operations.
    # torch's counter does not know the oneDNN operators that our kernels call
    ours: dict[Any, Callable[..., int]] = {}
    if torch.backends.mkldnn.is_available():
        ours[torch.ops.mkldnn._convolution_pointwise] = _operations_of_convolution
    with FlopCounterMode(display=False, custom_mapping=ours) as counter:
        work()
    total: int = counter.get_total_flops()
    return total


def _operations_of_convolution(*shapes: Any, out_shape: Any) -> int:
    """Return the operations of a fused convolution (see `conv_relu`).

    The four-dimensional arguments are x and weight, or x, the added tensor and weight: x is the
    first one and weight the last.
    """
    x, *maps = [list(each) for each in shapes if isinstance(each, torch.Size) and len(each) == 4]
    operations: int = conv_flop_count(x, maps[-1], out_shape)
    return operations
