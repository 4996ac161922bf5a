"""What cannot train, said before the first step: frozen random weights, norms of a single value."""

import os

from backbones.config import NetworkConfig
from engine.errors import UserError
from engine.schema import LoopConfig


def check_frozen(config: NetworkConfig, *, frozen_stages: int = 0, has_weights: bool) -> None:
    """Refuse to keep random weights or the norms on them fixed: they cannot learn.

    Args:
        config: the backbone's.
        frozen_stages: how many stages do not train.
        has_weights: whether weights are loaded, into the backbone or into all of the network.

    Raises:
        UserError: there are none, and something is frozen.
    """
    if has_weights or (config.norm != "frozen" and not frozen_stages):
        return
    frozen = [f"frozen_stages={frozen_stages}"] if frozen_stages else []
    norm = [f"norm={config.norm}"] if config.norm == "frozen" else []
    fix = ["norm=batch"] * len(norm) + ["frozen_stages=0"] * len(frozen)
    raise UserError(
        f"model.backbone.weights: expected pretrained weights with {' and '.join(norm + frozen)}, "
        "got none: what is frozen would stay random; name a file of weights, or train from "
        f"random ones with {' '.join(f'model.backbone.{each}' for each in fix)}"
    )


def check_norm(key: str, loop: LoopConfig, *, side: int, stride: int, source: str) -> None:
    """Refuse a batch norm that would get one value a channel, which has no variance.

    Args:
        key: of the norm, for the message.
        loop: batch size and parts; each process and part takes its own share of a batch.
        side: the shorter side of the smallest square that the network sees, in pixels, padded.
        stride: pixels per cell of its last map with such a norm.
        source: the keys that make `side`, for the message.

    Raises:
        UserError: one image in a part, and one cell in its map.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))  # torchrun's; the processes meet in fit
    images = loop.batch_size // (world * loop.accumulate) * (world if loop.sync_batch_norm else 1)
    cells = -(-side // stride)
    if images > 1 or cells > 1:
        return
    raise UserError(
        f"{key}: expected more than one value a channel for batch norm, got one: 1 image in a part "
        f"of a batch (loop.batch_size={loop.batch_size} over {world} process(es) and "
        f"loop.accumulate={loop.accumulate}), and 1 cell in its smallest map ({source}, stride "
        f"{stride}); raise loop.batch_size or {source.split('=')[0]}, or set {key}=group"
    )
