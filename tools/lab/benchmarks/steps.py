"""What is timed: a training step of ours or the peer's, a prediction; and its operations."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count
from torchvision.models.detection import FasterRCNN as PeerRCNN

from engine.distributed import World
from engine.optim import build_optimizer
from engine.schema import LoopConfig, OptimConfig
from engine.step import memory_layout, training_step, wrap_losses
from engine.task import Batch, Task

CPU = torch.device("cpu")

LEARNING_RATE = 1e-6
"""Small, so that random weights stay where they are over the rounds."""


def our_step(task: Task, loop: LoopConfig, *, device: torch.device) -> Callable[[Batch], object]:
    """Put the network on the device; return one whole step of the training loop."""
    task.model.to(device, memory_format=memory_layout(loop))  # type: ignore[call-overload]
    task.model.train()
    losses_of = wrap_losses(task, loop, World(rank=0, size=1, device=device))
    config = OptimConfig(lr=LEARNING_RATE)
    optimizer = build_optimizer(task.model, config, batch_size=loop.batch_size)
    return lambda batch: training_step(
        losses_of, optimizer, [batch], clip_grad_norm=None, stop=False
    )


def peer_step(
    peer: PeerRCNN, pictures: Sequence[Tensor], targets: Sequence[dict[str, Tensor]]
) -> Callable[[], object]:
    """Return a step as torchvision's reference scripts take it."""
    peer.train()
    parameters = [each for each in peer.parameters() if each.requires_grad]
    optimizer = SGD(parameters, lr=LEARNING_RATE, momentum=0.9, weight_decay=1e-4)

    def step() -> None:
        loss = torch.stack(list(peer(pictures, targets).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def prediction(
    predict: Callable[[], object], precision: AbstractContextManager[object] | None = None
) -> Callable[[], object]:
    """Return `predict` without gradients, in the precision of an `autocast`."""

    def run() -> object:
        with torch.inference_mode(), precision or nullcontext():
            return predict()

    return run


def operations_of(work: Callable[[], object]) -> int:
    """Return the multiplications and additions of the convolutions and products in `work`."""
    ours: dict[Any, Callable[..., int]] = {}
    if torch.backends.mkldnn.is_available():
        ours[torch.ops.mkldnn._convolution_pointwise] = _operations_of_fused
    with FlopCounterMode(display=False, custom_mapping=ours) as counter:
        work()
    total: int = counter.get_total_flops()
    return total


def _operations_of_fused(*shapes: Any, out_shape: Any) -> int:
    """Return the operations of a fused convolution (see `conv_relu`) from its arguments' shapes.

    They are those of x, weight and bias, or of x, what is added, weight and bias.
    """
    x, *maps = [list(each) for each in shapes if isinstance(each, torch.Size) and len(each) == 4]
    operations: int = conv_flop_count(x, maps[-1], out_shape)
    return operations
