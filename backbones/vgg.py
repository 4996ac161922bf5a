"""VGG-16 (Simonyan and Zisserman 2014, configuration D), the ResNet paper's baseline in detection.

B images, N images or RoIs, H x W pixels. The paper's layers keep their names: conv1_1 ... conv5_3,
fc6, fc7; its last one, fc8, is `fc` as in every backbone.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from backbones.features import Backbone, FeatureSpec, scaled_channels
from backbones.norm import conv_norm_relu

STAGES = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))
"""Number of convolutions and channels of conv1 to conv5."""
HIDDEN_DIM = 4096
POOLED_SIDE = 7
"""Side of the map that fc6 reads, in cells."""
_NO_NORM = nn.Identity()


class VGG16(Backbone):
    """VGG-16: 13 convolutions of 3x3 with bias, without norms, and three fully connected layers.

    Features. c4: conv5_3, at stride 16. Detectors share it among all RoIs, as they share a residual
    network's conv4_x (Fast R-CNN, section 2.2), and so it has the name under which they read that.
    c5: fc7, which stage 5 (fc6 and fc7) computes from 7x7 cells, of an image or of an RoI.

    num_classes: outputs of `fc`; None builds no `fc`. width_multiplier: see `scaled_channels`.
    """

    def __init__(self, num_classes: int | None = 1000, *, width_multiplier: float = 1.0) -> None:
        super().__init__()
        channels = 3
        for stage, (count, width) in enumerate(STAGES, start=1):
            for number in range(1, count + 1):
                out_channels = scaled_channels(width, width_multiplier)
                conv = nn.Conv2d(channels, out_channels, 3, padding=1)
                setattr(self, f"conv{stage}_{number}", conv)
                channels = out_channels
        hidden = scaled_channels(HIDDEN_DIM, width_multiplier)
        self.fc6 = nn.Linear(channels * POOLED_SIDE**2, hidden)
        self.fc7 = nn.Linear(hidden, hidden)
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Identity() if num_classes is None else nn.Linear(hidden, num_classes)
        self.feature_specs |= {"c4": FeatureSpec(channels, 16), "c5": FeatureSpec(hidden, 32)}

        for module in self.modules():
            # He initialisation. By fan-in, which keeps the scale of the activations: there is no
            # norm that would.
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        if isinstance(self.fc, nn.Linear):
            nn.init.normal_(self.fc.weight, std=0.01)  # as torchvision; no ReLU follows

    def features(self, x: Tensor, upto: int = 5) -> dict[str, Tensor]:
        """Map normalised pixels (B, 3, H, W) to the features c4 and, if `upto` is 5, c5.

        c4 has ceil(H / 16) x ceil(W / 16) cells: pooling rounds up as in Caffe, in which VGG-16 was
        trained. torchvision rounds down, which only matters if a side is no multiple of 32. c5 is
        one cell: as in torchvision, a map of another size than 7x7 is averaged to 7x7 first.
        """
        c4 = self.stage(x, 4)
        if upto < 5:
            return {"c4": c4}
        pooled = F.adaptive_avg_pool2d(_pool(c4), POOLED_SIDE)
        return {"c4": c4, "c5": self.stage(pooled, 5)}

    def stage(self, x: Tensor, number: int) -> Tensor:
        """Run stage 4 on pixels (B, 3, H, W), or stage 5 on pooled maps (N, C, 7, 7).

        Stage 4 is conv1_1 to conv5_3. Stage 5 is fc6 and fc7, and returns (N, 4096, 1, 1): one
        cell, which an average over cells leaves as it is.
        """
        if number == 4:
            for index, layers in enumerate(self._convolutions()):
                x = _pool(x) if index > 0 else x
                for conv in layers:
                    x = conv_norm_relu(x, conv, _NO_NORM)
            return x
        assert number == 5, f"expected stage 4 or 5, got {number}"
        hidden = self.dropout(F.relu(self.fc6(x.flatten(1))))
        hidden = self.dropout(F.relu(self.fc7(hidden)))
        cell: Tensor = hidden[:, :, None, None]
        return cell

    def _convolutions(self) -> list[list[nn.Conv2d]]:
        """Return the convolutions of conv1 to conv5."""
        return [
            [getattr(self, f"conv{stage}_{number}") for number in range(1, count + 1)]
            for stage, (count, _) in enumerate(STAGES, start=1)
        ]

    def stages(self) -> list[list[nn.Module]]:
        """Return the convolutions of conv1 to conv5, the last with fc6 and fc7."""
        stages: list[list[nn.Module]] = [list(layers) for layers in self._convolutions()]
        stages[-1] += [self.fc6, self.fc7, self.dropout]
        return stages


def _pool(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 2, ceil_mode=True)


def vgg16(num_classes: int | None = 1000, *, width_multiplier: float = 1.0) -> VGG16:
    """Build VGG-16."""
    return VGG16(num_classes, width_multiplier=width_multiplier)
