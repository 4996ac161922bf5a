"""Checks before training starts: frozen random weights, batch norm over a single value."""

import os

from backbones.config import NetworkConfig
from engine.errors import UserError
from engine.schema import LoopConfig


def check_frozen_has_weights(
    config: NetworkConfig, *, frozen_stages: int = 0, has_weights: bool
) -> None:
    """Check that frozen stages or norms have pretrained weights: frozen random ones cannot learn.

    Norms with fixed statistics count as frozen: random ones do not normalise.

    Args:
        config: the backbone's config.
        frozen_stages: number of stages that do not train.
        has_weights: whether weights are loaded, into the backbone or into the whole network.

    Raises:
        UserError: no weights are loaded, and something is frozen.
    """
    frozen_norms = config.has_norms and config.norm in ("frozen", "fixed_statistics")
    if has_weights or not (frozen_norms or frozen_stages):
        return
    frozen = [f"frozen_stages={frozen_stages}"] if frozen_stages else []
    norm = [f"norm={config.norm}"] if frozen_norms else []
    fix = ["norm=batch"] * len(norm) + ["frozen_stages=0"] * len(frozen)
    raise UserError(
        f"model.backbone.weights: expected pretrained weights with {' and '.join(norm + frozen)}, "
        "got none: the frozen layers would stay random; name a weights file, or train from "
        f"random weights with {' '.join(f'model.backbone.{each}' for each in fix)}"
    )


def check_batch_norm_size(
    key: str, loop: LoopConfig, *, side: int, stride: int, source: str
) -> None:
    """Check that batch norm gets more than one value per channel: one value has no variance.

    Args:
        key: config key of the norm, for the message.
        loop: batch size and accumulation; each process and part gets its own share of a batch.
        side: shorter side of the smallest padded network input, in pixels.
        stride: stride of the last feature map that has such a norm.
        source: the config keys that determine `side`, for the message.

    Raises:
        UserError: a part of a batch has one image, and its smallest feature map one cell.
    """
    # set by torchrun; the process group itself is created later, in fit
    world = int(os.environ.get("WORLD_SIZE", "1"))
    # sync_batch_norm takes its statistics over all processes
    images = loop.batch_size // (world * loop.accumulate) * (world if loop.sync_batch_norm else 1)
    cells = -(-side // stride)  # rounded up
    if images > 1 or cells > 1:
        return
    raise UserError(
        f"{key}: expected more than one value per channel for batch norm, got one: 1 image in a "
        f"part of a batch (loop.batch_size={loop.batch_size} over {world} process(es) and "
        f"loop.accumulate={loop.accumulate}), and 1 cell in its smallest feature map ({source}, "
        f"stride {stride}); raise loop.batch_size or {source.split('=')[0]}, or set {key}=group"
    )
