"""Standard deviation of the responses of the 3x3 layers of a trained network (Figure 7).

The response of a layer is the output of its batch norm, before the nonlinearity and before the
addition (section 4.2). B images.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from backbones.classification.load_and_export import load_classifier
from backbones.classification.structures import ClassificationBatch
from backbones.plots import make_panels, save_figure
from engine.distributed import pick_device
from engine.loader import BatchPart, SampleKey, read_batches

NUM_IMAGES = 1000
"""Number of test images that the responses are measured on."""


def measure_responses(
    run: Path, *, num_images: int = NUM_IMAGES, device: str | None = None
) -> dict[str, float]:
    """Return the deviation of each layer of a finished run, on its first test images.

    Args:
        run: run folder, checkpoint or .safetensors file.
        num_images: number of test images; all of them if there are fewer.
        device: as `--device`; None picks a GPU if there is one.

    Raises:
        UserError: the weights or the images are missing or damaged.
    """
    task, place = load_classifier([run]), pick_device(device)
    task.model.to(place)
    data, size = task.val_data(), task.config.loop.eval_batch_size
    keys = [SampleKey(index, index) for index in range(min(num_images, len(data)))]
    plan = [BatchPart(keys[first : first + size]) for first in range(0, len(keys), size)]
    loaded_batches = read_batches(
        data, plan, config=task.config.loader, device=place, substitute=False
    )
    batches = (each.batch for each in loaded_batches if isinstance(each.batch, ClassificationBatch))
    pixels = (task.model.normalize(batch.pixels) for batch in batches)
    return response_deviations(task.model, pixels)


@torch.inference_mode()
def response_deviations(model: nn.Module, batches: Iterable[Tensor]) -> dict[str, float]:
    """Return the standard deviation of the responses of each 3x3 layer, in network order.

    It is taken over all images, channels and positions of a layer together, with sums in float64.
    The keys are the names of the batch norms. The model runs in evaluation mode, with running
    statistics; its mode is restored afterwards.

    Args:
        model: a convolution named `conv...` is followed by a batch norm named `bn...`.
        batches: normalised pixels (B, 3, H, W) on the model's device; at least one image.
    """
    sums: dict[str, Tensor] = {}
    was_training = model.training
    handles = [
        model.get_submodule(norm).register_forward_hook(_accumulating_hook(sums, norm))
        for norm in _norms_of_3x3_layers(model)
    ]
    model.eval()
    try:  # hooks collect the sums; the outputs are not used
        for x in batches:
            model(x)
    finally:
        for handle in handles:
            handle.remove()
        model.train(was_training)
    assert sums, "expected at least one image"
    return {name: _deviation(*values.tolist()) for name, values in sums.items()}


def draw_responses(deviations: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """Draw Figure 7: layers in network order at the top, by falling deviation at the bottom.

    Args:
        deviations: network -> layer -> deviation; networks may differ in their number of layers.
        path: PNG file to write.
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
    """Return the names of the norms after 3x3 convolutions, in network order."""
    names = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
            # layer1.0.conv2 -> layer1.0.bn2; conv1 -> bn1, without the leading dot
            parent, _, own = name.rpartition(".")
            names.append(f"{parent}.{own.replace('conv', 'bn')}".lstrip("."))
    return names


def _accumulating_hook(sums: dict[str, Tensor], name: str) -> Callable[..., None]:
    """Return a forward hook that adds to `sums[name]`: count, sum and sum of squares."""

    def add(module: nn.Module, inputs: Any, output: Tensor) -> None:
        x = output.double()  # a copy: the next layer may change the output in place
        values = torch.stack([x.new_tensor(x.numel()), x.sum(), x.square().sum()])
        sums[name] = values if name not in sums else sums[name] + values

    return add


def _deviation(count: float, total: float, squares: float) -> float:
    """Return the standard deviation from the sums: sqrt(E[x^2] - E[x]^2)."""
    mean = total / count
    return math.sqrt(max(squares / count - mean * mean, 0.0))  # rounding may give less than 0
