"""The peer in two ways, like for like with ours and as its users run it, and ours against both.

Like for like, the peer has our precision and memory layout, and on a CPU it keeps freed memory as
ours does. Its users run it in float32 (on a GPU in TF32), contiguous in memory, with malloc's
default. In both ways it runs eagerly.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim import SGD
from torchvision.models.detection import FasterRCNN as PeerRCNN

from detection.structures import DetectionBatch
from detection.tasks.detection import DetectionTask
from engine.precision import autocast
from engine.schema import PrecisionSetting
from tools.lab.benchmarks.measure import Comparison, FreedMemory, Row, compare
from tools.lab.benchmarks.networks import Case, make_peer, peer_inputs, peer_targets
from tools.lab.benchmarks.settings import Settings
from tools.lab.benchmarks.steps import LEARNING_RATE, prediction

Way = Literal["like for like", "peer as its users run it"]
WAYS: tuple[Way, ...] = get_args(Way)
FREED_MEMORY: dict[Way, FreedMemory] = {
    "like for like": "kept",
    "peer as its users run it": "kept by ours",
}
Target = tuple[float | None, float | None]
"""(promised, aim) of a row."""


def peer_step(
    case: Case, task: DetectionTask, batch: DetectionBatch, way: Way, *, precision: PrecisionSetting
) -> Callable[[], object]:
    """Return a function that runs a training step as in torchvision's reference scripts.

    The network has the weights of `task` and is on the device of `batch`; `precision` is ours.
    """
    peer, device = peer_in(case, task, batch, way), batch.images.pixels.device
    images, targets = peer_inputs(batch), peer_targets(batch)
    parameters = [each for each in peer.parameters() if each.requires_grad]
    optimizer = SGD(parameters, lr=LEARNING_RATE, momentum=0.9, weight_decay=1e-4)

    def step() -> None:
        with autocast(device, _precision(way, precision)):
            losses = peer(images, targets)
        loss = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def peer_prediction(
    case: Case, task: DetectionTask, batch: DetectionBatch, way: Way, *, precision: PrecisionSetting
) -> Callable[[], list[dict[str, Tensor]]]:
    """Return a function that detects the objects of each image; the arguments as in `peer_step`."""
    peer, device = peer_in(case, task, batch, way).eval(), batch.images.pixels.device
    predict = partial(peer, peer_inputs(batch))
    return prediction(predict, autocast(device, _precision(way, precision)))


def compare_both_ways(
    ours: Callable[[], object],
    peer: Callable[[Way], Callable[[], object]],
    settings: Settings,
    *,
    device: torch.device,
) -> dict[Way, Comparison]:
    """Time ours against the peer in each way; `peer` builds it when it is timed."""
    on_cpu = device.type == "cpu"
    return {
        way: compare(
            ours,
            peer(way),
            rounds=settings.rounds,
            freed_memory=FREED_MEMORY[way] if on_cpu else "as set",
            log=settings.log,
        )
        for way in WAYS
    }


def speed_rows(
    work: str, comparisons: Mapping[Way, Comparison], targets: Mapping[Way, Target]
) -> list[Row]:
    """Return a row for each way: how many times as fast as the peer ours does the `work`."""
    return [
        Row(f"{work}, {way}", taken.ratio, "x", *targets[way], detail=str(taken))
        for way, taken in comparisons.items()
    ]


def peer_in(case: Case, task: DetectionTask, batch: DetectionBatch, way: Way) -> PeerRCNN:
    """Return the peer for a batch, on its device, in training mode and in the layout of a way."""
    height, width = batch.images.sizes[0].tolist()
    peer = make_peer(case, task, size=(height, width)).to(batch.images.pixels.device)
    if way == "like for like":
        peer.to(memory_format=torch.channels_last)
        # its own transform makes a contiguous batch of any images
        peer.backbone.register_forward_pre_hook(_channels_last)
    return peer


def _channels_last(_: nn.Module, images: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(each.contiguous(memory_format=torch.channels_last) for each in images)


def _precision(way: Way, ours: PrecisionSetting) -> PrecisionSetting:
    return ours if way == "like for like" else "fp32"
