"""Figure 7: how strongly each 3x3 layer of a trained network responds.

A layer's response is the output of its batch norm, before the nonlinearity and before the addition
(section 4.2). B images.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from backbones.classification.load_and_export import load_trained
from backbones.classification.structures import ClassificationBatch
from backbones.plots import make_panels, save_figure
from engine.distributed import pick_device
from engine.loader import Draw, Part, read_batches

NUM_IMAGES = 1000
"""Test images that the responses are measured on."""


def measure_responses(
    run: Path, *, num_images: int = NUM_IMAGES, device: str | None = None
) -> dict[str, float]:
    """Return the deviations of a finished run's layers on the first of its test images.

    Args:
        run: run folder, checkpoint or .safetensors file.
        num_images: how many; all when there are fewer.
        device: as `--device`; None picks a GPU when there is one.

    Raises:
        UserError: the weights or the images are missing or damaged.
    """
    task, place = load_trained([run]), pick_device(device)
    task.model.to(place)
    data, size = task.val_data(), task.config.loop.eval_batch_size
    draws = [Draw(index, index) for index in range(min(num_images, len(data)))]
    plan = [Part(draws[first : first + size]) for first in range(0, len(draws), size)]
    deliveries = read_batches(data, plan, config=task.config.loader, device=place, substitute=False)
    batches = (each.batch for each in deliveries if isinstance(each.batch, ClassificationBatch))
    pixels = (task.model.normalize(batch.pixels) for batch in batches)
    return response_deviations(task.model, pixels)


@torch.inference_mode()
def response_deviations(model: nn.Module, batches: Iterable[Tensor]) -> dict[str, float]:
    """Return the standard deviation of every 3x3 layer's responses, by name, in network order.

    It is taken over all images, channels and places of the layer at once. Sums are in float64.
    The model is evaluated with stored statistics, and is left as it was.

    Args:
        model: its convolutions are named `conv...`, and the batch norm after each `bn...` alike.
        batches: normalised pixels (B, 3, H, W) on the model's device; at least one image.
    """
    sums: dict[str, Tensor] = {}
    was_training = model.training
    handles = [
        model.get_submodule(norm).register_forward_hook(_adding_to(sums, norm))
        for norm in _norms_of_3x3_layers(model)
    ]
    model.eval()
    try:
        for x in batches:
            model(x)
    finally:
        for handle in handles:
            handle.remove()
        model.train(was_training)
    assert sums, "expected at least one image"
    return {name: _deviation(*values.tolist()) for name, values in sums.items()}


def draw_responses(deviations: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """Draw Figure 7: layers in network order above, by falling deviation below.

    Args:
        deviations: of each layer, by network; a network may have any number of layers.
        path: the PNG file.
    """
    figure, panels = make_panels(2, columns=1, size=6.0)
    in_order, by_size = panels
    for network, layers in deviations.items():
        values = list(layers.values())
        shape = "o--" if "plain" in network else "o-"
        for axes, heights in ((in_order, values), (by_size, sorted(values, reverse=True))):
            axes.plot(range(1, len(values) + 1), heights, shape, label=network, markersize=3)
    in_order.set_xlabel("layer index (in network order)")
    by_size.set_xlabel("layer index (by falling deviation)")
    for axes in panels:
        axes.set_ylabel("standard deviation")
        axes.set_ylim(bottom=0)
        axes.legend()
    save_figure(figure, path)


def _norms_of_3x3_layers(model: nn.Module) -> list[str]:
    """Return the names of the norms behind 3x3 convolutions, in network order."""
    names = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
            parent, _, own = name.rpartition(".")
            names.append(f"{parent}.{own.replace('conv', 'bn')}".lstrip("."))
    return names


def _adding_to(sums: dict[str, Tensor], name: str) -> Callable[..., None]:
    """Return a hook that adds count, sum and sum of squares of an output to `sums[name]`."""

    def add(module: nn.Module, inputs: Any, output: Tensor) -> None:
        x = output.double()  # before the next layer changes it in place
        values = torch.stack([x.new_tensor(x.numel()), x.sum(), x.square().sum()])
        sums[name] = values if name not in sums else sums[name] + values

    return add


def _deviation(count: float, total: float, squares: float) -> float:
    mean = total / count
    return math.sqrt(max(squares / count - mean * mean, 0.0))  # rounding may fall below 0
