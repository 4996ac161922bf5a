"""Preparation of a trained network for prediction: once at loading, not in each forward pass."""

import torch
from torch import nn

from backbones.norm import fold_norms
from engine.precision import chosen_precision
from engine.schema import LoopConfig
from engine.step import memory_layout

_PRODUCTS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
"""Layers whose weights `torch.autocast` would cast at each call."""


def prepare_for_prediction(network: nn.Module, loop: LoopConfig, *, device: torch.device) -> None:
    """Move a network to the device, and do once what does not depend on the image.

    Fixed norms are folded into their convolutions, and weights are cast to the precision of the
    products. The results are those of the network as it was, under `torch.autocast` as in
    evaluation; it cannot be trained or saved any more.

    Args:
        network: in evaluation mode; changed in place.
        loop: precision and memory layout.
        device: where it predicts.
    """
    fold_norms(network)
    if chosen_precision(device, loop.precision) == "bf16":
        for layer in network.modules():
            if isinstance(layer, _PRODUCTS):
                layer.to(torch.bfloat16)
    network.to(device, memory_format=memory_layout(loop))  # type: ignore[call-overload]
