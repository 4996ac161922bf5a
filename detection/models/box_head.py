"""Box head of Faster R-CNN: class logits and box deltas of pooled RoIs.

B images, R RoIs per image, N = B * R RoIs of a batch, K classes.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.kernels.pooling import mean_over_cells
from detection.ops.box_coder import BoxWeights, decode_boxes
from detection.ops.boxes import clip_boxes


class C4BoxHead(nn.Module):
    """Global average pooling of conv5's output on each RoI; conv5 is part of the backbone."""

    def forward(self, pooled: Tensor) -> Tensor:
        """Return (N, C) from (N, C, h, w)."""
        return mean_over_cells(pooled)


class FPNBoxHead(nn.Module):
    """Two fully connected layers on each pooled RoI (FPN, section 4.2)."""

    def __init__(self, in_channels: int, *, resolution: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_channels * resolution**2, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, hidden_dim)

    def forward(self, pooled: Tensor) -> Tensor:
        """Return (N, hidden_dim) from (N, C, resolution, resolution)."""
        return F.relu(self.fc2(F.relu(self.fc1(pooled.flatten(1)))))


class BoxPredictor(nn.Module):
    """The two output layers: class logits (background last) and a box for each class."""

    def __init__(self, in_dim: int, *, num_classes: int) -> None:
        super().__init__()
        self.class_logits = nn.Linear(in_dim, num_classes + 1)
        self.deltas = nn.Linear(in_dim, num_classes * 4)
        # Small weights: before training the boxes are the proposals (Fast R-CNN, section 2.3).
        for layer, std in ((self.class_logits, 0.01), (self.deltas, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return class logits (N, K+1) and deltas (N, K, 4) from (N, in_dim), float32."""
        class_logits: Tensor = self.class_logits(hidden)
        deltas: Tensor = self.deltas(hidden)
        # (N, K * 4) -> (N, K, 4): the four deltas of a class are adjacent outputs
        return class_logits.float(), deltas.unflatten(1, (-1, 4)).float()


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
        deltas: (B, R, K, 4) relative to the RoIs.
        boxes: (B, R, 4) the RoIs, network-input pixels.
        sizes: (B, 2) height and width of the images before padding.
        box_weights: scale of the deltas.
    """
    labels = class_logits[..., :-1].argmax(dim=2)
    # (B, R, K, 4) indexed by (B, R, 1, 1) -> (B, R, 1, 4) -> (B, R, 4)
    best_deltas = torch.take_along_dim(deltas, labels[..., None, None], dim=2)[:, :, 0]
    return clip_boxes(decode_boxes(best_deltas, boxes, weights=box_weights), sizes)
