"""Box head of Faster R-CNN: class logits and box deltas of pooled RoIs.

B images, R RoIs per image, N = B * R RoIs of a batch, K classes.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.kernels.pooling import mean_over_cells
from detection.config import RoIConfig
from detection.models.region_convs import RegionConvs, init_convolutions
from detection.ops.box_coder import BoxWeights, decode_boxes
from detection.ops.boxes import clip_boxes, take_boxes
from detection.ops.precision import at_least_float32


class C4BoxHead(nn.Module):
    """Global average pooling of conv5's output on each RoI; conv5 is part of the backbone."""

    def forward(self, pooled: Tensor, valid: Tensor | None = None) -> Tensor:
        """Return (N, C) from (N, C, h, w). It has no norm, so `valid` is not used."""
        return mean_over_cells(pooled)


class FPNBoxHead(nn.Module):
    """3x3 convolutions (none in FPN, section 4.2), then fully connected layers, on each pooled RoI.

    State dict keys: convs.conv1, convs.norm1, ..., fc1, fc2, ...

    Args:
        in_channels: C of the RoIs.
        resolution: their side, in cells.
        config: number and width of the layers, norm of the convolutions, initialisation.
    """

    def __init__(self, in_channels: int, *, resolution: int, config: RoIConfig) -> None:
        super().__init__()
        self.convs = RegionConvs(
            in_channels, num_convs=config.num_convs, channels=config.conv_dim, norm=config.norm
        )
        init_convolutions(self.convs)
        self.num_fcs = config.num_fcs
        in_dim = self.convs.out_channels * resolution**2
        for number in range(1, config.num_fcs + 1):
            layer = nn.Linear(in_dim, config.hidden_dim)
            if config.fc_init == "caffe2_xavier":
                nn.init.kaiming_uniform_(layer.weight, a=1)  # detectron2's c2_xavier_fill
                nn.init.zeros_(layer.bias)
            self.add_module(f"fc{number}", layer)
            in_dim = config.hidden_dim

    def forward(self, pooled: Tensor, valid: Tensor | None = None) -> Tensor:
        """Return (N, hidden_dim) from (N, C, resolution, resolution).

        valid: (N,) bool, the RoIs that give batch norm its statistics; None: all.
        """
        hidden: Tensor = self.convs(pooled, valid).flatten(1)
        for number in range(1, self.num_fcs + 1):
            layer: nn.Linear = getattr(self, f"fc{number}")
            hidden = F.relu(layer(hidden))
        return hidden


class BoxPredictor(nn.Module):
    """The two output layers: class logits (background last) and a box for each class.

    With `class_agnostic_boxes` there is one box for all classes.
    """

    def __init__(
        self, in_dim: int, *, num_classes: int, class_agnostic_boxes: bool = False
    ) -> None:
        super().__init__()
        self.class_logits = nn.Linear(in_dim, num_classes + 1)
        self.deltas = nn.Linear(in_dim, (1 if class_agnostic_boxes else num_classes) * 4)
        # Small weights: before training the boxes are the proposals (Fast R-CNN, section 2.3).
        for layer, std in ((self.class_logits, 0.01), (self.deltas, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return class logits (N, K+1) and deltas (N, K, 4) from (N, in_dim), at least float32.

        Class-agnostic deltas are (N, 1, 4).
        """
        class_logits: Tensor = self.class_logits(hidden)
        # (N, K * 4) -> (N, K, 4): the four deltas of a class are adjacent outputs
        deltas: Tensor = self.deltas(hidden).unflatten(1, (-1, 4))
        return at_least_float32(class_logits), at_least_float32(deltas)


class BoxStage(nn.Module):
    """One stage of the region head: a box head and its two output layers."""

    def __init__(self, box_head: C4BoxHead | FPNBoxHead, box_predictor: BoxPredictor) -> None:
        super().__init__()
        self.box_head = box_head
        self.box_predictor = box_predictor


@torch.no_grad()
def next_stage_boxes(
    class_logits: Tensor,
    deltas: Tensor,
    boxes: Tensor,
    sizes: Tensor,
    *,
    box_weights: BoxWeights,
) -> Tensor:
    """Return the RoIs of the next stage: each RoI moved by the deltas of its best class.

    Args:
        class_logits: (B, R, K+1), background last. Background is never the best class.
        deltas: (B, R, K, 4) relative to the RoIs, or (B, R, 1, 4) for all classes.
        boxes: (B, R, 4) the RoIs, network-input pixels.
        sizes: (B, 2) height and width of the images before padding.
        box_weights: scale of the deltas.
    """
    labels = class_logits[..., :-1].argmax(dim=2).clamp(max=deltas.shape[2] - 1)
    # (B, R, K, 4) at (B, R, 1) -> (B, R, 1, 4) -> (B, R, 4)
    best_deltas = take_boxes(deltas, labels[..., None])[:, :, 0]
    return clip_boxes(decode_boxes(best_deltas, boxes, weights=box_weights), sizes)
