"""Residual networks of the 2015 paper (sections 3.3, 4.1 and 4.2), and their plain counterparts.

State dict keys are torchvision's: conv1, bn1, layer1.0.conv1, ..., fc. Stage n of the paper, conv2
to conv5, is `layer{n - 1}`; its output is the feature c{n}. B images, H x W pixels, C channels.
"""

from collections.abc import Sequence
from typing import Literal, Self

from torch import Tensor, nn

from backbones.blocks import BasicBlock, Bottleneck, PaperBottleneck, Pool, Shortcut
from backbones.features import FeatureSpec
from backbones.kernels.pooling import mean_over_cells
from backbones.norm import FrozenBatchNorm2d, NormKind, conv_norm_relu, make_norm
from engine.errors import UserError

WIDTHS = (64, 128, 256, 512)
STEM_STRIDES = {"imagenet": 4, "cifar": 1}
KINDS = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
}


class ResNet(nn.Module):
    """Stem, three or four stages of blocks, and a classifier on the pooled last stage.

    num_classes: outputs of `fc`; None leaves it out. widths: channels inside the blocks of each
    stage. stem: "imagenet" is 7x7 stride 2 and a max pool, "cifar" one 3x3. shortcut: the paper's
    options A (padded identity where dimensions grow), B (projection there), C (projection
    everywhere), or "none" for a plain net.
    """

    def __init__(
        self,
        block: type[BasicBlock | Bottleneck],
        layers: Sequence[int],
        *,
        num_classes: int | None = 1000,
        norm: NormKind = "batch",
        norm_eps: float = 1e-5,
        shortcut: Shortcut = "B",
        stem: Literal["imagenet", "cifar"] = "imagenet",
        widths: Sequence[int] = WIDTHS,
    ) -> None:
        super().__init__()

        def new_norm(channels: int) -> nn.Module:
            return make_norm(norm, channels, eps=norm_eps)

        kernel, stride = (7, 2) if stem == "imagenet" else (3, 1)
        self.conv1 = nn.Conv2d(3, widths[0], kernel, stride, padding=kernel // 2, bias=False)
        self.bn1 = new_norm(widths[0])
        self.maxpool = nn.MaxPool2d(3, 2, padding=1) if stem == "imagenet" else nn.Identity()

        self.feature_specs: dict[str, FeatureSpec] = {}
        self.num_frozen = 0
        channels = widths[0]
        for index, (count, width) in enumerate(zip(layers, widths, strict=True)):
            blocks = nn.Sequential()
            for position in range(count):
                stride = 2 if index > 0 and position == 0 else 1
                blocks.append(
                    block(channels, width, stride=stride, shortcut=shortcut, norm=new_norm)
                )
                channels = width * block.expansion
            setattr(self, f"layer{index + 1}", blocks)
            spec = FeatureSpec(channels, STEM_STRIDES[stem] * 2**index)
            self.feature_specs[f"c{index + 2}"] = spec
        self.fc = nn.Identity() if num_classes is None else nn.Linear(channels, num_classes)

        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # He et al., 2015b: the paper's reference 13
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if norm == "frozen" and shortcut != "none":
            self._scale_branches(sum(layers) ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised pixels (B, 3, H, W) to logits (B, num_classes).

        Without `fc` the result is the pooled last feature, (B, C).
        """
        last = list(self.features(x).values())[-1]
        logits: Tensor = self.fc(mean_over_cells(last))
        return logits

    def features(self, x: Tensor, upto: int = 5) -> dict[str, Tensor]:
        """Map normalised pixels (B, 3, H, W) to c2..c{upto}, shaped as `feature_specs` says.

        The sides of a map are the image's over the stride, rounded up. A net of three stages
        ends at c4.
        """
        x = self.maxpool(conv_norm_relu(x, self.conv1, self.bn1))
        features = {}
        for number, name in enumerate(self.feature_specs, start=2):
            if number <= upto:
                features[name] = x = self.stage(x, number)
        return features

    def stage(self, x: Tensor, number: int) -> Tensor:
        """Run the paper's conv{number} alone, 2 to 5, on the output of the stage before."""
        result: Tensor = getattr(self, f"layer{number - 1}")(x)
        return result

    def stage_of_pooled(self, x: Tensor, number: int, *, pool: Pool) -> Tensor:
        """Return stage(pool(x, 1), number) for a linear `pool`, sooner: see `conv_norm_of_pooled`.

        Basic blocks begin with a 3x3, which does not commute with pooling: for them it is the same.
        """
        first, *rest = getattr(self, f"layer{number - 1}")
        x = first.forward_pooled(x, pool) if isinstance(first, Bottleneck) else first(pool(x, 1))
        for block in rest:
            x = block(x)
        return x

    def freeze_stages(self, count: int) -> None:
        """Stop training of the first stages: 0 none, 1 conv1, 2 conv1 and conv2, ... 5 all.

        Their parameters take no gradient, and their norms use stored statistics in `train()` too.
        """
        self.num_frozen = count
        for index, modules in enumerate(self._stages()):
            for module in modules:
                module.requires_grad_(index >= count)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set training mode, in which frozen stages stay in evaluation mode."""
        super().train(mode)
        for modules in self._stages()[: self.num_frozen]:
            for module in modules:
                module.eval()
        return self

    def _scale_branches(self, scale: float) -> None:
        """Scale what every block adds: L norms without statistics would let sums grow like 2^L.

        It lets a net of random weights keep its scale; weights that are loaded override it.
        """
        for block in self.modules():
            if isinstance(block, BasicBlock | Bottleneck):
                last = block.bn3 if isinstance(block, Bottleneck) else block.bn2
                assert isinstance(last, FrozenBatchNorm2d)
                last.weight.fill_(scale)

    def _stages(self) -> list[list[nn.Module]]:
        layers = [[getattr(self, f"layer{n}")] for n in range(1, len(self.feature_specs) + 1)]
        return [[self.conv1, self.bn1], *layers]


def build_resnet(
    kind: str,
    *,
    num_classes: int | None = None,
    norm: NormKind = "batch",
    norm_eps: float = 1e-5,
    stride_in_1x1: bool = False,
    shortcut: Shortcut = "B",
) -> ResNet:
    """Build one of KINDS; without classes it is a backbone for heads, with no `fc`.

    stride_in_1x1: bottlenecks stride as in the paper; the basic blocks of 18 and 34 have no 1x1.
    """
    block: type[BasicBlock | Bottleneck] = BasicBlock
    if kind not in ("resnet18", "resnet34"):
        block = PaperBottleneck if stride_in_1x1 else Bottleneck
    return ResNet(
        block,
        KINDS[kind],
        num_classes=num_classes,
        norm=norm,
        norm_eps=norm_eps,
        shortcut=shortcut,
    )


def resnet18(
    num_classes: int | None = 1000,
    *,
    norm: NormKind = "batch",
    norm_eps: float = 1e-5,
    shortcut: Shortcut = "B",
) -> ResNet:
    """Build ResNet-18, of basic blocks."""
    return build_resnet(
        "resnet18", num_classes=num_classes, norm=norm, norm_eps=norm_eps, shortcut=shortcut
    )


def resnet34(
    num_classes: int | None = 1000,
    *,
    norm: NormKind = "batch",
    norm_eps: float = 1e-5,
    shortcut: Shortcut = "B",
) -> ResNet:
    """Build ResNet-34, of basic blocks."""
    return build_resnet(
        "resnet34", num_classes=num_classes, norm=norm, norm_eps=norm_eps, shortcut=shortcut
    )


def resnet50(
    num_classes: int | None = 1000,
    *,
    norm: NormKind = "batch",
    norm_eps: float = 1e-5,
    stride_in_1x1: bool = False,
    shortcut: Shortcut = "B",
) -> ResNet:
    """Build ResNet-50, of bottlenecks."""
    return build_resnet(
        "resnet50",
        num_classes=num_classes,
        norm=norm,
        norm_eps=norm_eps,
        stride_in_1x1=stride_in_1x1,
        shortcut=shortcut,
    )


def resnet101(
    num_classes: int | None = 1000,
    *,
    norm: NormKind = "batch",
    norm_eps: float = 1e-5,
    stride_in_1x1: bool = False,
    shortcut: Shortcut = "B",
) -> ResNet:
    """Build ResNet-101, of bottlenecks."""
    return build_resnet(
        "resnet101",
        num_classes=num_classes,
        norm=norm,
        norm_eps=norm_eps,
        stride_in_1x1=stride_in_1x1,
        shortcut=shortcut,
    )


def resnet152(
    num_classes: int | None = 1000,
    *,
    norm: NormKind = "batch",
    norm_eps: float = 1e-5,
    stride_in_1x1: bool = False,
    shortcut: Shortcut = "B",
) -> ResNet:
    """Build ResNet-152, of bottlenecks."""
    return build_resnet(
        "resnet152",
        num_classes=num_classes,
        norm=norm,
        norm_eps=norm_eps,
        stride_in_1x1=stride_in_1x1,
        shortcut=shortcut,
    )


def plain18(num_classes: int | None = 1000) -> ResNet:
    """Build ResNet-18 without its shortcuts."""
    return resnet18(num_classes, shortcut="none")


def plain34(num_classes: int | None = 1000) -> ResNet:
    """Build ResNet-34 without its shortcuts."""
    return resnet34(num_classes, shortcut="none")


def cifar_resnet(
    depth: int,
    num_classes: int | None = 10,
    *,
    norm: NormKind = "batch",
    norm_eps: float = 1e-5,
    shortcut: Shortcut = "A",
) -> ResNet:
    """Build the 6n+2 layer net of section 4.2 for 32x32 images; plain with shortcut "none".

    Raises:
        UserError: `depth` is not 6n+2 with n of at least 1.
    """
    if depth < 8 or depth % 6 != 2:
        raise UserError(f"depth: expected 6n+2 (20, 32, 44, 56, 110, ...), got {depth}")
    return ResNet(
        BasicBlock,
        [depth // 6] * 3,
        num_classes=num_classes,
        norm=norm,
        norm_eps=norm_eps,
        shortcut=shortcut,
        stem="cifar",
        widths=(16, 32, 64),
    )
