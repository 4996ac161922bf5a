"""Preparation of a trained network for prediction: once at loading, not in each forward pass."""

import torch
from torch import nn

from backbones.norm import fold_norms
from engine.precision import chosen_precision
from engine.schema import PrecisionSetting

_PRODUCTS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
"""Layers whose weights `torch.autocast` would cast at each call."""


def prepare_for_prediction(
    network: nn.Module, *, device: torch.device, precision: PrecisionSetting
) -> None:
    """Move a network to the device, and do once what does not depend on the image.

    Fixed norms are folded into their convolutions, weights are cast to the precision of the
    products and laid out channels last. The results are those of the network as it was, under
    `torch.autocast` as in evaluation; it cannot be trained or saved any more.

    Args:
        network: in evaluation mode; changed in place.
        device: where it predicts.
        precision: as `loop.precision`.
    """
    fold_norms(network)
    if chosen_precision(device, precision) == "bf16":
        for layer in network.modules():
            if isinstance(layer, _PRODUCTS):
                layer.to(torch.bfloat16)
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
